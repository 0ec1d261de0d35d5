// The build of forms_test.c: the CPU's forms by themselves, for this processor or another, each as it ships.
import { mkdirSync } from "node:fs";
import { formsFlags, sources } from "../../scripts/compile.ts";
import { root } from "../../scripts/run.ts";
import { findZig } from "../../scripts/zig.ts";

export type Architecture = "x64" | "arm64";

/** What ships, under its names: what zig is to compile it for. */
const shipped = (architecture: Architecture) =>
  Object.fromEntries(sources.instructionSets[architecture].map(({ name, cpu }) => [name, [`-mcpu=${cpu}`]]));

const wide = ["-DPORTABLE_WIDTH=16", "-Wno-psabi"];

/**
 * What ships, and what only tests have: the portable form sixteen floats wide, and four with ARM's matrix instruction;
 * AVX-512's with its instructions emulated.
 */
export const forms: Record<Architecture, Record<string, string[]>> = {
  x64: {
    ...shipped("x64"),
    wide: ["-mcpu=haswell", ...wide],
    narrow: ["-mcpu=haswell", "-DPORTABLE_WIDTH=4"],
    emulated: ["-mcpu=haswell", "-include", "test/cpu/emulate_avx512.h", "-Wno-psabi"],
  },
  arm64: { ...shipped("arm64"), wide: ["-mcpu=generic", ...wide] },
};

/** What forms_test exits with where the processor can't run a form. */
export const absent = 3;

async function zig(...args: string[]): Promise<void> {
  const flags = ["-std=c23", "-O2", "-g", "-fno-math-errno"];
  const run = Bun.spawn([findZig(), "cc", ...flags, ...args], { cwd: root, stdout: "ignore", stderr: "pipe" });
  const [exitCode, stderr] = await Promise.all([run.exited, new Response(run.stderr).text()]);
  if (exitCode !== 0) throw new Error(`zig cc ${args.join(" ")}:\n${stderr}`);
}

/** Compiles forms_test.c with every form of an architecture, and gives the program's path. */
export async function buildForms(architecture: Architecture, ...flags: string[]): Promise<string> {
  const folder = `${root}/.cache/cpu/${architecture}`;
  mkdirSync(folder, { recursive: true });
  const objects = Object.entries(forms[architecture]).map(async ([isa, options]) => {
    const object = `${folder}/${isa}.o`;
    await zig(...flags, ...options, `-DISA=${isa}`, "-c", "csrc/cpu/isa.c", "-o", object);
    return object;
  });
  const program = `${folder}/forms_test`;
  const units = ["csrc/cpu/dispatch.c", "csrc/cpu/pool.c", "test/cpu/forms_test.c"];
  const tables = formsFlags(sources.instructionSets[architecture]);
  await zig(...flags, ...tables, ...(await Promise.all(objects)), ...units, "-lm", "-lpthread", "-o", program);
  return program;
}
