// What `bun run test:coverage` makes of the files that Bun and llvm-cov write.
import { expect, test } from "bun:test";
import { addLcov, byFolder, holes, holesOf, type Lines, tableOf } from "../scripts/coverage/lcov.ts";

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
const nameOf = (path: string) => (/^c?src\//.test(path) ? path : undefined);

function linesOf(...texts: string[]): Lines {
  const lines: Lines = new Map();
  for (const one of texts) addLcov(lines, one, nameOf);
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
