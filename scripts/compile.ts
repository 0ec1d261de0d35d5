// The native library for this machine, by zig as a plain C compiler. zig's own build runner, which `zig build` needs,
// takes minutes to compile on a machine that has never run it; what ships is built by build.zig, from the same list.
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { builtLibrary, type Platform } from "./platforms.ts";
import { output, root, say, stop } from "./run.ts";
import { findZig } from "./zig.ts";

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

/**
 * Compiles a platform's library with forms for some instruction sets, to `library`. zig keeps what it compiled, by contents, so that
 * only what changed is compiled again.
 */
export async function compileLibrary(
  platform: Platform,
  sets: readonly InstructionSet[],
  library = builtLibrary(platform),
): Promise<void> {
  const zig = findZig();
  const folder = `${root}/.cache/build/${platform.name}`;
  mkdirSync(folder, { recursive: true });
  const object = (source: string, cpu: string, to: string, more: readonly string[] = []) => ({
    to,
    command: [
      ...[zig, "cc", "-target", platform.target, `-mcpu=${cpu}`, "-O3", "-fno-sanitize=all", "-g0", ...sources.flags],
      ...[...more, "--embed-dir=metal", "-c", `csrc/${source}`, "-o", to],
    ],
  });
  const objects = [
    // The instruction sets first, for they take longest.
    ...sets.map(({ name, cpu }) => object(sources.forms, cpu, `${folder}/forms-${name}.o`, [`-DISA=${name}`])),
    ...sources.sources.map((source) =>
      object(source, "baseline", `${folder}/${source.replaceAll("/", "-")}.o`, formsFlags(sets)),
    ),
  ];
  await inParallel(objects.map(({ command }) => command));

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
  await inParallel([
    [
      zig,
      ...link,
      ...(platform.name.startsWith("linux") ? ["-fsoname=libbunsandbytes.so"] : []),
      `-femit-bin=${library}`,
      ...objects.map(({ to }) => to),
    ],
  ]);
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
