// Copies of src/ that count how often each of their statements and functions runs, in memory that all processes and
// Workers of a run share: a file's, so that nothing is lost where a process is killed or a Worker is ended.
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { createInstrumenter } from "istanbul-lib-instrument";
import { root } from "../run.ts";
import type { Lines } from "./lcov.ts";

/** The lines of a statement or function, from 1. */
export type Span = readonly [from: number, to: number];

/** A file's counters: where they begin, and what each is for. Those of functions come before those of statements. */
export interface Counted {
  readonly first: number;
  readonly functions: readonly Span[];
  readonly statements: readonly Span[];
}

/** By file, from the repository's root. */
export type Layout = Record<string, Counted>;

/** Makes the copies, unless they are there, and gives their folder. */
export function prepare(counters: string): string {
  const names = [...new Bun.Glob("src/**/*.ts").scanSync(root)].sort();
  const texts = names.map((name) => readFileSync(`${root}/${name}`, "utf8"));
  const folder = `${counters}/statements/${Bun.hash(texts.join("\0")).toString(36)}`;
  if (existsSync(`${folder}/layout.json`)) return folder;
  const instrumenter = createInstrumenter({
    esModules: true,
    parserPlugins: ["typescript", "importAttributes", "explicitResourceManagement", "topLevelAwait"],
    coverageGlobalScopeFunc: false,
    coverageGlobalScope: "globalThis",
  });
  const layout: Layout = {};
  let first = 0;
  for (const [i, name] of names.entries()) {
    mkdirSync(dirname(`${folder}/${name}`), { recursive: true });
    writeFileSync(`${folder}/${name}`, instrumenter.instrumentSync(texts[i]!, name));
    const { fnMap, statementMap } = instrumenter.lastFileCoverage();
    const functions = Object.values(fnMap).map(({ decl, loc }): Span => [decl.start.line, loc.end.line]);
    const statements = Object.values(statementMap).map(({ start, end }): Span => [start.line, end.line]);
    layout[name] = { first, functions, statements };
    first += functions.length + statements.length;
  }
  writeFileSync(`${folder}/counters`, new Uint32Array(first));
  chmodSync(`${folder}/counters`, 0o666); // a test may start a process as another user
  writeFileSync(`${folder}/layout.json`, JSON.stringify(layout)); // the last: it says that all is there
  return folder;
}

/** How often each line ran: as often as the innermost statement or function that it belongs to. */
export function linesOf({ functions, statements }: Counted, counts: ArrayLike<number>): Map<number, number> {
  const found = [...functions, ...statements].map(([from, to], i) => ({ from, to, count: counts[i]! }));
  const lines = new Map<number, number>();
  for (const { from, to, count } of found.sort((a, b) => b.to - b.from - (a.to - a.from)))
    for (let line = from; line <= to; line++) lines.set(line, count);
  return lines;
}

/** What processes and Workers ran of all of src/, whichever of its states the copies are of. */
export function linesOfProcesses(counters: string): Lines[] {
  return readdirSync(`${counters}/statements`).map((hash) => {
    const folder = `${counters}/statements/${hash}`;
    const layout: Layout = JSON.parse(readFileSync(`${folder}/layout.json`, "utf8"));
    const counts = new Uint32Array(new Uint8Array(readFileSync(`${folder}/counters`)).buffer);
    return new Map(Object.entries(layout).map(([name, file]) => [name, linesOf(file, counts.subarray(file.first))]));
  });
}
