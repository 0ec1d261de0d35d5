// Compiled objects by what they are made from, kept for every clone on this machine: what is missing is compiled, as
// many at a time as there are cores. Imports no packages: setup needs it.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync } from "node:fs";
import { homedir } from "node:os";
import { output, root } from "./run.ts";
import { findZig, zigVersion } from "./zig.ts";

/** A compiler's command, and what tells its versions apart. */
export interface Compiler {
  readonly command: readonly string[];
  readonly version: string;
}

export const zigCompiler = (): Compiler => ({ command: [findZig(), "cc"], version: zigVersion });

/** A compiler that this machine has. */
export const systemCompiler = (path: string): Compiler => ({
  command: [path],
  version: output([path, "--version"]) ?? path,
});

/** What one object is made from. Paths, in the flags too, begin at the repository's folder, or clones share nothing. */
export interface Unit {
  readonly compiler: Compiler;
  readonly source: string;
  readonly flags: readonly string[];
  /** The files that the source may include or embed. */
  readonly includes: readonly string[];
}

const cache = `${process.env.XDG_CACHE_HOME || `${homedir()}/.cache`}/bunsandbytes/objects`;
const keptDays = 30;

/**
 * Files under the repository's folder by patterns, in order.
 *
 * @throws where a pattern finds nothing: an object would be taken for the same whatever changes
 */
export const filesOf = (...patterns: string[]): string[] =>
  patterns.flatMap((pattern) => {
    const found = [...new Bun.Glob(pattern).scanSync(root)].sort();
    if (!found.length) throw new Error(`No file is called ${pattern}.`);
    return found;
  });

/**
 * The units' objects, in their order.
 *
 * @throws with the compiler's message where a source does not compile
 */
export async function objectsOf(units: readonly Unit[]): Promise<string[]> {
  mkdirSync(cache, { recursive: true });
  const states = new Map<string, string>();
  const stateOf = (files: readonly string[]) => {
    const list = files.join("\0");
    const texts = () => files.map((file) => `${file}\0${readFileSync(`${root}/${file}`, "latin1")}`).join("\0");
    const state = states.get(list) ?? Bun.hash(texts()).toString(36);
    states.set(list, state);
    return state;
  };
  const objects = units.map(({ compiler, source, flags, includes }) => {
    const text = readFileSync(`${root}/${source}`, "utf8");
    const key = JSON.stringify([compiler.version, stateOf(includes), flags, source, text]);
    const to = `${cache}/${new Bun.CryptoHasher("sha256").update(key).digest("hex").slice(0, 32)}.o`;
    return { to, command: [...compiler.command, ...flags, "-c", source, "-o", `${to}.${process.pid}`] };
  });
  const missing = new Map(objects.filter(({ to }) => !existsSync(to)).map(({ to, command }) => [to, command]));
  const left = [...missing.keys()];
  await inParallel([...missing.values()], (index) => renameSync(`${left[index]}.${process.pid}`, left[index]!));
  const paths = objects.map(({ to }) => to);
  forget(new Set(paths));
  return paths;
}

/** Marks the objects that were used, and removes those that nobody has used for long. */
function forget(used: ReadonlySet<string>): void {
  const now = new Date();
  for (const path of used) utimesSync(path, now, now);
  for (const name of readdirSync(cache)) {
    const path = `${cache}/${name}`;
    if (now.getTime() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? now.getTime()) > keptDays * 86_400_000)
      rmSync(path, { force: true });
  }
}

/**
 * Runs commands side by side, as many as there are cores, with a count where someone watches.
 *
 * @param ended is told of each command that has succeeded
 * @throws with what the first that fails says
 */
export async function inParallel(
  commands: readonly (readonly string[])[],
  ended: (index: number) => void = () => {},
): Promise<void> {
  const waiting = commands.entries();
  let done = 0;
  const worker = async () => {
    for (const [index, command] of waiting) {
      const child = Bun.spawn([...command], { cwd: root, stdout: "inherit", stderr: "pipe" });
      const [status, message] = await Promise.all([child.exited, new Response(child.stderr).text()]);
      if (status !== 0) throw new Error(`${command.join(" ")}\n${message}`);
      ended(index);
      done++;
      if (process.stderr.isTTY && commands.length > 1) process.stderr.write(`\r  ${done} of ${commands.length} `);
    }
  };
  await Promise.all(Array.from({ length: Math.min(navigator.hardwareConcurrency, commands.length) }, worker));
  if (process.stderr.isTTY && commands.length > 1) process.stderr.write("\r\x1b[K");
}
