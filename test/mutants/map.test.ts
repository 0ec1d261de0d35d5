// That the mutation run can be believed: its map leads to tests that are there, its operators change what they say, and
// the changes that an attack made still have their place in the source.
import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { namedMutants } from "./named.ts";
import { mutantsOf } from "./operators.ts";
import { testsOf } from "./tests.ts";

const root = resolve(import.meta.dir, "../..");
const sources = ["src/**/*.ts", "csrc/*.{c,h}", "csrc/{ops,cpu}/*.{c,h}", "metal/*.metal"].flatMap((pattern) => [
  ...new Bun.Glob(pattern).scanSync(root),
]);

test("every source has tests, each of which is there", () => {
  expect(sources.length).toBeGreaterThan(200);
  for (const file of sources) {
    const stages = testsOf(file);
    const names = stages.flatMap(({ tests }) => tests.filter((name) => name.endsWith(".ts")));
    expect([file, names.length > 0, names.filter((name) => !existsSync(`${root}/${name}`))]).toEqual([file, true, []]);
    for (const { tests } of stages) {
      const filter = tests.at(tests.indexOf("-t") + 1)!.replace(/^\^|, $/g, "");
      if (tests.includes("-t")) expect(readFileSync(`${root}/${tests[0]}`, "utf8")).toContain(filter);
    }
  }
});

test("each named change has its one place", () => {
  for (const { file, before, after } of namedMutants(root)) expect([file, before === after]).toEqual([file, false]);
});

const afterOf = (line: string, file = "csrc/x.c") => mutantsOf(file, line).map(({ after }) => after);

test("operators change one place each", () => {
  expect(afterOf("  if (a < b && c) x = 1.0f + y[2];")).toEqual([
    "  if (a <= b && c) x = 1.0f + y[2];",
    "  if (a < b || c) x = 1.0f + y[2];",
    "  if (a < b && c) x = 1.0f - y[2];",
    "  if (a < b && c) x = 1.0f + y[3];",
    "  if (a < b && c) x = 1.1f + y[2];",
  ]);
  expect(afterOf("// a < b", "src/x.ts")).toEqual([]);
  expect(afterOf("x = 0.0f;")).toEqual([]);
});

test("what only the speed depends on is left alone, and no more than that", () => {
  const left = (line: string) => afterOf(line).length;
  expect(left("    parallel_for(rows, ceil_div(1 << 15, columns), body, job);")).toBe(0);
  expect(left("    parallel_for(rows + 1, ceil_div(1 << 15, columns), body, job);")).toBe(2);
  expect(left("        .bytes_moved = a->bytes + 2 * b->bytes,")).toBe(0);
  expect(left("    threadgroup float values[256], nested[256];")).toBe(0);
  expect(left("    threadgroup float values[FEW / 32];")).toBe(2);
  expect(left("    return named[1];")).toBe(1);
  expect(left("    total += x[1];")).toBe(1);
  expect(afterOf("    for (; i + 4 <= last; i += 4) f(i);")).toEqual([
    "    for (; i + 4 < last; i += 4) f(i);",
    "    for (; i + 5 <= last; i += 4) f(i);",
    "    for (; i + 4 <= last; i += 5) f(i);",
  ]);
  expect(left("    if (lane == 0) shared[simdgroup] = all;")).toBe(1);
});
