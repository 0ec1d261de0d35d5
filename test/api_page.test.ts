// docs/api.md is what the docstrings say.
import { expect, test } from "bun:test";
import { apiPage, path } from "../scripts/api.ts";

test("docs/api.md is as `bun scripts/api.ts --write` makes it", async () => {
  expect(await Bun.file(path).text()).toBe(apiPage());
});
