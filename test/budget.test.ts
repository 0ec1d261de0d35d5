// The package's budget: what is beyond it is told, and with what.
import { expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { beyond, budget, filesOf, kernelsBeyond, type Sized } from "../scripts/budget.ts";

test("what is within the budget is, and one byte or one package more is told with the largest files", () => {
  const dependencies = Array.from({ length: budget.dependencies }, (_, i) => `package${i}`);
  const most = budget.unpacked * 1e6;
  const packed = (budget.tarball - budget.kernels) * 1e6;
  expect(beyond([["lib/a.so", most]], dependencies, packed)).toEqual([]);
  const files: Sized[] = [
    ["lib/a.so", most],
    ["src/b.js", 1],
  ];
  expect(beyond(files, [...dependencies, "onemore"], packed + 1)).toEqual([
    expect.stringMatching(/unpacked, and the most is 13: lib\/a\.so 13\.00, src\/b\.js/),
    expect.stringMatching(/tarball takes 5\.00 MB, with 0\.5 for CUDA's kernels, and the most is 5: lib\/a\.so/),
    expect.stringMatching(/onemore/),
  ]);
});

test("CUDA's kernels have a part of their own, whether they are there or not", () => {
  const kernels: Sized = ["lib/kernels.ptx.zst", budget.kernels * 1e6];
  expect(beyond([kernels], [], budget.tarball * 1e6)).toEqual([]);
  expect(beyond([kernels], [], budget.tarball * 1e6 + 1)).toHaveLength(1);
  expect(beyond([["lib/kernels.ptx.zst", 0]], [], (budget.tarball - budget.kernels) * 1e6 + 1)).toHaveLength(1);
  expect(kernelsBeyond([kernels])).toEqual([]);
  expect(kernelsBeyond([["lib/kernels.ptx.zst", budget.kernels * 1e6 + 1]])).toEqual([
    expect.stringMatching(/the most is 0\.5\./),
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
