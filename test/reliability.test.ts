// Tests that docs/reliability.md promises nothing that is not tried: its table of promises, kinds of fault and
// tests is compared with what there is.
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dir, "..");
const text = readFileSync(join(root, "docs/reliability.md"), "utf8");

/** Rows of the table under a heading, without its head. */
function rowsUnder(heading: string): string[][] {
  const section = text.split(/^#+ /m).find((part) => part.startsWith(`${heading}\n`))!;
  const lines = section.split("\n").filter((line) => line.startsWith("|"));
  return lines.slice(2).map((line) =>
    line
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

const promises = rowsUnder("What is promised").map(([fault]) => fault!);
const held = rowsUnder("What holds it") as [fault: string, kinds: string, test: string][];

test("every promise is held by something, and nothing else is", () => {
  expect(promises.length).toBeGreaterThan(15);
  expect(held.map(([fault]) => fault)).toEqual(expect.arrayContaining(promises));
  expect(promises).toEqual(expect.arrayContaining(held.map(([fault]) => fault)));
});

test("every kind of fault tries a promise, and those that are named are there", () => {
  const command = [process.execPath, join(root, "test/faults/long.ts"), "--list"];
  const kinds: string[] = JSON.parse(Bun.spawnSync(command).stdout.toString());
  const named = held.flatMap(([, kinds]) => kinds.split(", ").filter(Boolean));
  expect([...new Set(named)].sort()).toEqual(kinds.sort());
});

/** Files of tests by the name that the table gives them. */
const files = new Map(
  [...new Bun.Glob("test/**/*.test.ts").scanSync(root)].map((path) => [/([^/]+)\.test\.ts$/.exec(path)![1]!, path]),
);

test.each(held.map(([fault, , named]) => [fault, named] as const))("%s: its test is there", (_, named) => {
  const [, stem, title] = /^(\w+): "(.+)"$/.exec(named)!;
  const source = readFileSync(join(root, files.get(stem!)!), "utf8");
  expect(source).toContain(`"${title}`);
});
