// Tests that docs/bitsandbytes.md tells the truth: it names all that bitsandbytes has, names nothing here that
// is not there, and its examples run.
import { describe, expect, test } from "bun:test";
import { Glob } from "bun";
import * as bunsandbytes from "../src/index.ts";
import { names } from "./golden/names.json";

const root = `${import.meta.dir}/..`;
const doc = await Bun.file(`${root}/docs/bitsandbytes.md`).text();
const sources = await Promise.all(
  ["src/**/*.ts", "csrc/**/*.c"].flatMap((pattern) =>
    [...new Glob(pattern).scanSync(root)].map((file) => Bun.file(`${root}/${file}`).text()),
  ),
);
const source = sources.join("\n");

/** The code spans of a cell, without the dash that stands for nothing. */
const spans = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, span]) => span!);

/** The tables of three columns by their headings: what there is upstream, and what here. */
const sections = doc
  .split(/^## /m)
  .slice(1)
  .map((text) => {
    const rows = text.split("\n").filter((line) => /^\|.*`.*\|/.test(line));
    const cells = rows.map((row) => row.split("|").slice(1, -1));
    return { heading: text.split("\n")[0]!.replaceAll("`", ""), cells };
  })
  .filter(({ heading }) => heading !== "What differs");

describe("every name of bitsandbytes is there, and no other", () => {
  test.each(Object.entries(names))("%s", (group, known) => {
    const cells = sections.find(({ heading }) => heading === group)?.cells ?? [];
    expect(cells.flatMap(([theirs]) => spans(theirs!)).sort()).toEqual([...known].sort());
  });
});

/** What a dotted path leads to: exports, then members of a class or of what it makes. */
function isExported(path: string): boolean {
  const [last, ...before] = path.split(".").reverse() as [string, ...string[]];
  let at: unknown = bunsandbytes;
  for (const name of before.reverse()) at = (at as Record<string, unknown>)?.[name];
  if (typeof at === "function" && last in at.prototype) return true;
  return at !== undefined && at !== null && last in (at as object);
}

/** A code span that stands for something here: a flag, a command, a variable of the environment, or an export. */
function isHere(span: string): boolean {
  if (span.startsWith("--")) return new RegExp(`"(-\\w, )?${span}[ "]`).test(source);
  const [, command] = /^bunsandbytes (\w+)$/.exec(span) ?? [];
  if (command) return source.includes(`new Command("${command}")`);
  if (span.startsWith("BNB_")) return source.includes(`"${span}"`) || source.includes(`env.${span}`);
  return isExported(span);
}

test("what stands for it here exists", () => {
  const named = sections.flatMap(({ cells }) => cells.flatMap(([, ours]) => spans(ours!)));
  expect(named.length).toBeGreaterThan(120);
  expect(named.filter((span) => !isHere(span))).toEqual([]);
  expect(["quantize5bit", "optim.Nadam", "--nothing", "bunsandbytes guess", "BNB_NOTHING"].filter(isHere)).toEqual([]);
});

test("a row without a counterpart says why", () => {
  const bare = sections.flatMap(({ cells }) => cells).filter(([, ours, note]) => !spans(ours!).length && !note!.trim());
  expect(bare).toEqual([]);
});

test("what its prose calls ours exists", () => {
  const paths = [...doc.matchAll(/`((?:nn|optim|checkpoint)\.\w+|--[a-z-]+)`/g)].map(([, path]) => path!);
  expect(paths.filter((path) => !isHere(path))).toEqual([]);
});

describe("its examples run", () => {
  const examples = [...doc.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, example]) => example!);
  test.each(examples)("%s", (example) => {
    const run = Bun.spawnSync([process.execPath, "-e", example], { cwd: root });
    expect(run.stderr.toString()).toBe("");
    expect(run.exitCode).toBe(0);
  });
});
