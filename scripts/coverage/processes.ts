// Preloaded by every process that a test starts while lines are counted, such as a command: counts the lines of src/
// that it runs, which Bun does in the test's own process only, and leaves them as an lcov file.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { plugin } from "bun";
import { createInstrumenter } from "istanbul-lib-instrument";
import { root } from "../run.ts";
import { countersFolder } from "./counters.ts";

interface Place {
  readonly start: { readonly line: number };
  readonly end: { readonly line: number };
}

/** What a file's counters say: by statement, where it is and how often it ran. */
interface Counted {
  readonly statementMap: Record<string, Place>;
  readonly s: Record<string, number>;
}

/** How often each line ran: as often as the innermost statement that it belongs to. */
export function linesOf({ statementMap, s }: Counted): Map<number, number> {
  const lengthOf = ({ start, end }: Place) => end.line - start.line;
  const found = Object.entries(statementMap).sort(([, a], [, b]) => lengthOf(b) - lengthOf(a));
  const lines = new Map<number, number>();
  for (const [statement, { start, end }] of found)
    for (let line = start.line; line <= end.line; line++) lines.set(line, s[statement]!);
  return lines;
}

/** As an lcov file says it. */
export function lcovOf(counted: Record<string, Counted>): string {
  const files = Object.entries(counted).map(([path, file]) => {
    const rows = [...linesOf(file)].map(([line, count]) => `DA:${line},${count}\n`);
    return `SF:${path}\n${rows.join("")}end_of_record\n`;
  });
  return files.join("");
}

const folder = countersFolder();
if (folder) {
  const sources = `${resolve(root)}/src/`;
  plugin({
    name: "counted lines",
    setup(build) {
      const instrumenter = createInstrumenter({
        esModules: true,
        parserPlugins: ["typescript", "importAttributes", "explicitResourceManagement", "topLevelAwait"],
        coverageGlobalScopeFunc: false,
        coverageGlobalScope: "globalThis",
      });
      // Not asynchronous: some modules are had by require().
      build.onLoad({ filter: /\/src\/.*\.ts$/ }, ({ path }) => {
        const text = readFileSync(path, "utf8");
        const contents = path.startsWith(sources) ? instrumenter.instrumentSync(text, path) : text;
        return { contents, loader: "ts" };
      });
    },
  });
  process.on("exit", () => {
    const counted = (globalThis as { __coverage__?: Record<string, Counted> }).__coverage__;
    if (!counted) return;
    mkdirSync(`${folder}/processes`, { recursive: true });
    writeFileSync(`${folder}/processes/${process.pid}-${Date.now()}.info`, lcovOf(counted));
  });
}
