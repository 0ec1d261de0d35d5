// What `bun run test:coverage` makes of the files that Bun and llvm-cov write.
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import bunfig from "../bunfig.toml";
import { linesOfText } from "../scripts/coverage/kernels.ts";
import {
  addKnown,
  addLcov,
  below,
  byFolder,
  holes,
  holesOf,
  type Lines,
  type PlaceOf,
  tableOf,
} from "../scripts/coverage/lcov.ts";
import { linesOf as linesOfCounted } from "../scripts/coverage/statements.ts";

/** Two files of two folders, and one that does not count. */
const text = `TN:
SF:src/a.ts
DA:1,3
DA:2,0
DA:3,0
DA:7,0
DA:8,1
DA:9,0
end_of_record
SF:csrc/ops/b.c
DA:1,1
DA:2,18446744073709551615
end_of_record
SF:test/c.ts
DA:1,0
end_of_record
`;
const placeOf: PlaceOf = (path, line) => (/^c?src\//.test(path) ? [path, line] : undefined);

function linesOf(...texts: string[]): Lines {
  const lines: Lines = new Map();
  for (const one of texts) addLcov(lines, one, placeOf);
  return lines;
}

test("lines are summed up by folder and by root, and what does not count is left out", () => {
  expect(tableOf(byFolder(linesOf(text)))).toBe(`| folder       | files | lines | that ran |
| ------------ | ----: | ----: | -------: |
| all of csrc/ |     1 |     2 |  100.0 % |
| all of src/  |     1 |     6 |   33.3 % |
| csrc/ops/    |     1 |     2 |  100.0 % |
| src/         |     1 |     6 |   33.3 % |`);
});

test("holes are files below the share, with the lines that no run ran", () => {
  expect(holesOf(holes(linesOf(text), 0.95))).toBe("src/a.ts: 33.3 %; not 2–7, 9");
  expect(holes(linesOf(text), 0.3)).toEqual([]);
});

test("a line that ran in one pass ran", () => {
  const other = "SF:src/a.ts\nDA:2,1\nDA:9,1\nend_of_record\n";
  expect(holesOf(holes(linesOf(text, other), 0.95))).toBe("src/a.ts: 66.6 %; not 3–7");
});

test("a share is never rounded up to what it has not reached", () => {
  const lines: Lines = new Map([["src/a.ts", new Map(Array.from({ length: 2000 }, (_, i) => [i, i]))]]);
  expect(tableOf(byFolder(lines))).toContain(" 99.9 %");
});

test("src in total and each of its files are held to a share, to the line", () => {
  const file = (ran: number) => new Map(Array.from({ length: 1000 }, (_, i) => [i + 1, i < ran ? 1 : 0]));
  const found = (a: number, b: number) =>
    below(
      new Map([
        ["src/a.ts", file(a)],
        ["src/b.ts", file(b)],
        ["csrc/c.c", file(0)],
      ]),
      "src",
      { total: 0.95, file: 0.9 },
    );
  expect(found(1000, 900)).toEqual([]);
  expect(found(999, 900)).toEqual(["all of src/: 94.9 % of its lines ran, expected at least 95.0 % (--least)."]);
  expect(found(1000, 899)).toEqual([
    expect.stringMatching(/^all of src\/: 94\.9 %/),
    "src/b.ts: 89.9 % of its lines ran, expected at least 90.0 % (bunfig.toml).",
  ]);
  expect(below(new Map(), "src", { total: 0.95, file: 0.9 })).toHaveLength(1); // nothing was counted at all
});

test("bunfig.toml's threshold is one that Bun knows, and names no file that is gone", () => {
  const { coverageThreshold, coveragePathIgnorePatterns } = bunfig.test;
  // Bun passes over other names in silence, and wants 90 % of functions where only lines are named.
  expect(Object.keys(coverageThreshold)).toEqual(["lines", "functions"]);
  const names = (pattern: string) => [...new Bun.Glob(pattern).scanSync(`${import.meta.dir}/..`)];
  expect(coveragePathIgnorePatterns.filter((pattern: string) => names(pattern).length === 0)).toEqual([]);
});

test("Bun holds each file by itself to its threshold, whatever the total, and says nothing of it", () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-coverage-"));
  const unused = "export function g(a: number) {\n  const b = a + 1;\n  const c = b + 1;\n  return c;\n}\n";
  const used = Array.from({ length: 90 }, (_, i) => `export const x${i} = ${i};`);
  writeFileSync(join(folder, "whole.ts"), used.join("\n"));
  writeFileSync(join(folder, "half.ts"), `export const f = (a: number) => a + 1;\n${unused}`);
  writeFileSync(
    join(folder, "x.test.ts"),
    'import { test } from "bun:test"; import "./whole.ts"; import { f } from "./half.ts"; test("x", () => void f(1));',
  );
  const statusOf = (lines: number) => {
    writeFileSync(join(folder, "bunfig.toml"), `[test]\ncoverageThreshold = { lines = ${lines}, functions = 0 }\n`);
    return Bun.spawnSync([process.execPath, "test", "--coverage"], { cwd: folder }).exitCode;
  };
  expect([statusOf(0.1), statusOf(0.9)]).toEqual([0, 1]); // 91 of some 95 lines
  rmSync(folder, { recursive: true });
});

test("a copy counts each line as often as the innermost statement or function that it belongs to", () => {
  const file = {
    first: 0,
    functions: [
      [1, 9],
      [4, 6],
    ] as const,
    statements: [
      [2, 2],
      [3, 6],
      [5, 5],
      [8, 8],
    ] as const,
  };
  expect([...linesOfCounted(file, [7, 0, 7, 6, 0, 5])].sort(([a], [b]) => a - b)).toEqual([
    [1, 7],
    [2, 7],
    [3, 6],
    [4, 0],
    [5, 0],
    [6, 0],
    [7, 7],
    [8, 5],
    [9, 7],
  ]);
});

test("what processes ran counts for lines that are known, or for files that are not", () => {
  const lines = linesOf(text);
  addKnown(
    lines,
    new Map([
      [
        "src/a.ts",
        new Map([
          [2, 4],
          [4, 9],
        ]),
      ],
      ["src/new.ts", new Map([[1, 0]])],
    ]),
  );
  expect(lines.get("src/a.ts")!.get(2)).toBe(4);
  expect(lines.get("src/a.ts")!.has(4)).toBe(false);
  expect(lines.get("src/new.ts")).toEqual(new Map([[1, 0]]));
});

test("a line of a translated kernel is the kernel's", () => {
  const translated = ["#include <simulator.h>", '#line 7 "a.metal"', "one", "two", '#line 1 "b.h"', "three"].join("\n");
  expect(linesOfText(translated)).toEqual([
    undefined,
    undefined,
    undefined,
    ["a.metal", 7],
    ["a.metal", 8],
    undefined,
    ["b.h", 1],
  ]);
});
