// The native library for this machine, by zig as a plain C compiler. zig's own build runner, which `zig build` needs,
// takes minutes to compile on a machine that has never run it; what ships is built by build.zig, from the same list.
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { filesOf, inParallel, objectsOf, type Unit, zigCompiler } from "./objects.ts";
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

/** What any source may include or embed. */
const included = filesOf("{csrc,metal}/**/*.{h,metal,json}").sort();

type Target = Pick<Platform, "target">;

/** -O3 is what ships; -O0 is enough where nobody runs the library, in a fifth of the time. */
export type Optimisation = "-O3" | "-O0";

function unit({ target }: Target, source: string, cpu: string, more: readonly string[], level: Optimisation): Unit {
  const optimised = [level, "-fno-sanitize=all", "-g0"];
  const flags = ["-target", target, `-mcpu=${cpu}`, ...optimised, ...sources.flags, ...more, "--embed-dir=metal"];
  return { compiler: zigCompiler(), source: `csrc/${source}`, flags, includes: included };
}

/** An instruction set's forms, as they ship; or at -O0, with nothing copied for speed either. */
export const formsUnit = (target: Target, set: InstructionSet, level: Optimisation = "-O3"): Unit =>
  unit(target, sources.forms, set.cpu, [`-DISA=${set.name}`, ...(level === "-O0" ? ["-DONE_COPY"] : [])], level);

/**
 * Compiles a platform's library with forms for some instruction sets, to `library`. Another clone, or one that was
 * moved, compiles nothing again. Where a header has changed, zig's own cache knows who includes it.
 */
export async function compileLibrary(
  platform: Platform,
  sets: readonly InstructionSet[],
  library = builtLibrary(platform),
  level: Optimisation = "-O3",
): Promise<void> {
  const units = [
    // The instruction sets first, for they take longest.
    ...sets.map((set) => formsUnit(platform, set, level)),
    ...sources.sources.map((source) => unit(platform, source, "baseline", formsFlags(sets), level)),
  ];
  const link = ["-dynamic", "-lc", "-fno-compiler-rt", "-fstrip", "-OReleaseFast", "-target", platform.target];
  const soname = platform.name.startsWith("linux") ? ["-fsoname=libbunsandbytes.so"] : [];
  try {
    const objects = await objectsOf(units);
    mkdirSync(dirname(library), { recursive: true });
    await inParallel([[findZig(), "build-lib", ...link, ...soname, `-femit-bin=${library}`, ...objects]]);
  } catch (error) {
    say((error as Error).message);
    stop("The native library could not be built: the compiler's message is above.");
  }
}
