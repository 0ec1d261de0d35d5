// Preloaded by the processes and Workers that a test starts while lines are counted, such as a command: they run the
// copies of src/ that count, which Bun does in the tests' own thread only.
import { readFileSync } from "node:fs";
import { relative, resolve } from "node:path";
import { plugin } from "bun";
import { root } from "../run.ts";
import { countStarted, statementsFolder } from "./started.ts";
import type { Layout } from "./statements.ts";

/** A file's counters as its copy makes them. */
interface Counters {
  f: ArrayLike<number>;
  s: ArrayLike<number>;
}

const folder = statementsFolder();
if (folder) {
  const layout: Layout = JSON.parse(readFileSync(`${folder}/layout.json`, "utf8"));
  const bytes = Bun.mmap(`${folder}/counters`);
  const all = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
  const files = new Proxy<Record<string, Counters>>(
    {},
    {
      set(files, name: string, file: Counters) {
        const { first, functions, statements } = layout[name]!;
        const between = first + functions.length;
        files[name] = Object.assign(file, {
          f: all.subarray(first, between),
          s: all.subarray(between, between + statements.length),
        });
        return true;
      },
    },
  );
  Object.assign(globalThis, { __coverage__: files });
  const sources = `${resolve(root)}/src/`;
  plugin({
    name: "counted statements",
    setup(build) {
      // Not asynchronous: some modules are had by require().
      build.onLoad({ filter: new RegExp(`^${RegExp.escape(sources)}.*\\.ts$`) }, ({ path }) => ({
        contents: readFileSync(`${folder}/${relative(resolve(root), path)}`, "utf8"),
        loader: "ts",
      }));
    },
  });
  countStarted();
}
