// The build of forms_test.c: the CPU's forms by themselves, for this processor or another. What ships is tried as it
// ships; what only tests have, which is the same sources in every width, is compiled with the caller's flags.
import { mkdirSync, renameSync } from "node:fs";
import { formsFlags, formsUnit, sources } from "../../scripts/compile.ts";
import { filesOf, inParallel, objectsOf, type Unit, zigCompiler } from "../../scripts/objects.ts";
import { root } from "../../scripts/run.ts";
import { findZig } from "../../scripts/zig.ts";

export type Architecture = "x64" | "arm64";

const wide = ["-DPORTABLE_WIDTH=16", "-Wno-psabi"];

/**
 * What only tests have: the portable form sixteen floats wide, and four with ARM's matrix instruction; AVX-512's with
 * its instructions emulated; and the best of what every such processor can run, under the caller's sanitizer.
 */
const own: Record<Architecture, Record<string, string[]>> = {
  x64: {
    wide: ["-mcpu=haswell", ...wide],
    narrow: ["-mcpu=haswell", "-DPORTABLE_WIDTH=4"],
    emulated: ["-mcpu=haswell", "-include", "test/cpu/emulate_avx512.h", "-Wno-psabi"],
    checked: ["-mcpu=haswell"],
  },
  arm64: { wide: ["-mcpu=generic", ...wide], checked: ["-mcpu=generic"] },
};

/** The names of an architecture's forms. */
export const formsOf = (architecture: Architecture): string[] => [
  ...sources.instructionSets[architecture].map(({ name }) => name),
  ...Object.keys(own[architecture]),
];

/** What forms_test exits with where the processor can't run any of the forms. */
export const absent = 3;

/**
 * Compiles forms_test.c with every form of an architecture, and gives the program's path.
 *
 * @param target what zig is to compile for
 * @param flags of all but what ships
 */
export async function buildForms(architecture: Architecture, target: string, ...flags: string[]): Promise<string> {
  const sets = sources.instructionSets[architecture];
  const includes = filesOf("csrc/*.h", "csrc/{cpu,gpu}/*.h", "metal/*.h", "test/cpu/*.{h,c}");
  const unit = (source: string, ...more: string[]): Unit => ({
    compiler: zigCompiler(),
    source,
    flags: ["-target", target, "-std=c23", "-O2", "-g1", "-fno-math-errno", ...more],
    includes,
  });
  const objects = await objectsOf([
    ...Object.entries(own[architecture]).map(([name, options]) =>
      unit(`csrc/${sources.forms}`, ...flags, ...options, `-DISA=${name}`, "-DONE_COPY"),
    ),
    ...sets.map((set) => formsUnit({ target }, set)),
    ...["csrc/cpu/dispatch.c", "csrc/cpu/pool.c"].map((source) => unit(source, ...flags, ...formsFlags(sets))),
    unit("test/cpu/forms_test.c", "-fno-sanitize=all"), // which takes most of the time of a run
    unit("test/undefined.c", "-fno-sanitize=all"),
  ]);
  const folder = `${root}/.cache/cpu/${architecture}`;
  mkdirSync(folder, { recursive: true });
  const program = `${folder}/forms_test`;
  // Not by `zig cc`, which would first make runtimes of its own; they are wanted by musl alone, which arithmetic of 128
  // bits is in.
  const runtimes = target.endsWith("musl") ? [] : ["-fno-compiler-rt", "-fno-ubsan-rt"];
  const link = ["build-exe", "-lc", ...runtimes, "-OReleaseFast", "-target", target];
  await inParallel([[findZig(), ...link, `-femit-bin=${program}.${process.pid}`, ...objects]]);
  renameSync(`${program}.${process.pid}`, program);
  return program;
}
