// The package's budget: what is beyond it is told, and with what.
import { expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { beyond, budget, filesOf } from "../scripts/budget.ts";

test("what is within the budget is, and one byte or one package more is told with the largest files", () => {
  const dependencies = Array.from({ length: budget.dependencies }, (_, i) => `package${i}`);
  expect(beyond([["lib/a.so", 8e6]], dependencies, 8)).toEqual([]);
  const over = beyond(
    [
      ["lib/a.so", 8e6],
      ["src/b.js", 1],
    ],
    [...dependencies, "onemore"],
    8,
  );
  expect(over).toEqual([
    expect.stringMatching(/the most is 8: lib\/a\.so 8\.00, src\/b\.js/),
    expect.stringMatching(/onemore/),
  ]);
});

test("the dependencies of today are within it", () => {
  expect(beyond([], Object.keys(packageJson.dependencies), 0)).toEqual([]);
});

test("every file counts, hidden ones and those of folders too", () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-budget-"));
  mkdirSync(join(folder, "lib/x"), { recursive: true });
  writeFileSync(join(folder, ".hidden"), "12");
  writeFileSync(join(folder, "lib/x/a.so"), "12345");
  expect(filesOf(folder)).toEqual([
    ["lib/x/a.so", 5],
    [".hidden", 2],
  ]);
  rmSync(folder, { recursive: true });
});
