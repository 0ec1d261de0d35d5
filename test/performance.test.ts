// Owns the test that docs/performance.md tells the truth: its figures are those of bench/results.
import { expect, test } from "bun:test";
import { documented, page } from "../bench/document.ts";

test("docs/performance.md has the figures of bench/results: bun run bench:document writes them", async () => {
  const text = await Bun.file(page).text();
  expect(await documented(text)).toBe(text);
});
