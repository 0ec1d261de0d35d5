// The native library for this machine, by zig as a plain C compiler. zig's own build runner, which `zig build` needs,
// takes minutes to compile on a machine that has never run it; what ships is built by build.zig, from the same list.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync } from "node:fs";
import { homedir } from "node:os";
import { dirname } from "node:path";
import { builtLibrary, type Platform } from "./platforms.ts";
import { output, root, say, stop } from "./run.ts";
import { findZig, zigVersion } from "./zig.ts";

/** What csrc/sources.json says: what is compiled, and how. build.zig reads it too. */
export interface Sources {
  readonly flags: readonly string[];
  readonly sources: readonly string[];
  /** The unit that is compiled for each instruction set. */
  readonly forms: string;
  readonly instructionSets: { readonly x64: readonly InstructionSet[]; readonly arm64: readonly InstructionSet[] };
}

export interface InstructionSet {
  readonly name: string;
  /** What zig calls a processor that has it. */
  readonly cpu: string;
  /** What says that a processor has it: words of /proc/cpuinfo, or names that sysctl knows. */
  readonly needs: { readonly linux: readonly string[]; readonly darwin: readonly string[] };
}

export const sources: Sources = JSON.parse(readFileSync(`${root}/csrc/sources.json`, "utf8"));

/** An architecture's instruction sets, best first. */
export function instructionSets({ name }: Pick<Platform, "name">): readonly InstructionSet[] {
  return sources.instructionSets[name.endsWith("arm64") ? "arm64" : "x64"];
}

/** Those of {@link instructionSets} that this processor has. */
export function ownInstructionSets(platform: Pick<Platform, "name">): readonly InstructionSet[] {
  const linux = existsSync("/proc/cpuinfo") ? new Set(readFileSync("/proc/cpuinfo", "utf8").split(/\s+/)) : undefined;
  const has = ({ needs }: InstructionSet) =>
    linux
      ? needs.linux.every((word) => linux.has(word))
      : needs.darwin.every((name) => output(["sysctl", "-n", name]) === "1");
  return instructionSets(platform).filter(has);
}

/** The flags that tell csrc/cpu/dispatch.c which sets are there. */
export const formsFlags = (sets: readonly { readonly name: string }[]) => sets.map(({ name }) => `-DFORMS_${name}`);

/** Objects by what they are made from, for every clone on this machine. */
const cache = `${process.env.XDG_CACHE_HOME || `${homedir()}/.cache`}/bunsandbytes/objects`;
const keptDays = 30;

/** What any source may include or embed. */
const included = [...new Bun.Glob("{csrc,metal}/**/*.{h,metal,json}").scanSync(root)].sort();

/**
 * Compiles a platform's library with forms for some instruction sets, to `library`. Objects are kept, by contents:
 * another clone, or one that was moved, compiles nothing again. Where a header has changed, zig's own cache knows who
 * includes it.
 */
export async function compileLibrary(
  platform: Platform,
  sets: readonly InstructionSet[],
  library = builtLibrary(platform),
): Promise<void> {
  const zig = findZig();
  mkdirSync(cache, { recursive: true });
  const headers = Bun.hash(included.map((file) => `${file}\0${readFileSync(`${root}/${file}`, "utf8")}`).join("\0"));
  const object = (source: string, cpu: string, more: readonly string[] = []) => {
    const flags = [
      "-target",
      platform.target,
      `-mcpu=${cpu}`,
      "-O3",
      "-fno-sanitize=all",
      "-g0",
      ...sources.flags,
      ...more,
    ];
    const text = readFileSync(`${root}/csrc/${source}`, "utf8");
    const key = new Bun.CryptoHasher("sha256").update(
      JSON.stringify([zigVersion, headers.toString(), flags, source, text]),
    );
    const to = `${cache}/${key.digest("hex").slice(0, 32)}.o`;
    return {
      to,
      command: [zig, "cc", ...flags, "--embed-dir=metal", "-c", `csrc/${source}`, "-o", `${to}.${process.pid}`],
    };
  };
  const objects = [
    // The instruction sets first, for they take longest.
    ...sets.map(({ name, cpu }) => object(sources.forms, cpu, [`-DISA=${name}`])),
    ...sources.sources.map((source) => object(source, "baseline", formsFlags(sets))),
  ];
  const missing = objects.filter(({ to }) => !existsSync(to));
  await inParallel(missing.map(({ command }) => command));
  for (const { to } of missing) renameSync(`${to}.${process.pid}`, to);

  mkdirSync(dirname(library), { recursive: true });
  const link = [
    "build-lib",
    "-dynamic",
    "-lc",
    "-fno-compiler-rt",
    "-fstrip",
    "-OReleaseFast",
    "-target",
    platform.target,
  ];
  const soname = platform.name.startsWith("linux") ? ["-fsoname=libbunsandbytes.so"] : [];
  await inParallel([[zig, ...link, ...soname, `-femit-bin=${library}`, ...objects.map(({ to }) => to)]]);
  forget(new Set(objects.map(({ to }) => to)));
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

/** Runs commands side by side, as many as there are cores, with a count where someone watches. */
async function inParallel(commands: readonly string[][]): Promise<void> {
  const waiting = commands.entries();
  let done = 0;
  const worker = async () => {
    for (const [, command] of waiting) {
      const child = Bun.spawn(command, { cwd: root, stdout: "inherit", stderr: "pipe" });
      const [status, message] = await Promise.all([child.exited, new Response(child.stderr).text()]);
      if (status !== 0) {
        say(message);
        stop("The native library could not be built: the compiler's message is above.");
      }
      done++;
      if (process.stderr.isTTY && commands.length > 1) process.stderr.write(`\r  ${done} of ${commands.length} `);
    }
  };
  await Promise.all(Array.from({ length: Math.min(navigator.hardwareConcurrency, commands.length) }, worker));
  if (process.stderr.isTTY && commands.length > 1) process.stderr.write("\r\x1b[K");
}
