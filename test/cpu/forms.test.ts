// Owns the run of forms_test.c: the CPU's forms by themselves, under the undefined-behaviour sanitizer, at the edge of
// unreadable pages; among them AVX-512's on machines that lack it, by the portable form at its width and by emulation.
import { beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { root } from "../../scripts/run.ts";
import { findZig } from "../../scripts/zig.ts";

const folder = `${root}/.cache/cpu`;
const program = `${folder}/forms_test`;
const flags = [
  "-std=c23",
  "-O2",
  "-g",
  "-fno-math-errno",
  "-fsanitize=undefined",
  "-fno-sanitize-recover=all",
  "-ftrivial-auto-var-init=pattern",
];

/** As in build.zig; the portable form sixteen floats wide; and AVX-512's with its instructions emulated. */
const forms: Record<string, string[]> =
  process.arch === "x64"
    ? {
        base: ["-mcpu=x86_64"],
        avx2: ["-mcpu=haswell"],
        avx512: ["-mcpu=skylake_avx512"],
        avx512vnni: ["-mcpu=cascadelake"],
        wide: ["-mcpu=haswell", "-DPORTABLE_WIDTH=16", "-Wno-psabi"],
        emulated: ["-mcpu=haswell", "-include", "test/cpu/emulate_avx512.h", "-Wno-psabi"],
      }
    : {
        neon: ["-mcpu=generic"],
        dotprod: ["-mcpu=generic+dotprod"],
        wide: ["-mcpu=generic", "-DPORTABLE_WIDTH=16", "-Wno-psabi"],
      };

async function zig(...args: string[]): Promise<void> {
  const run = Bun.spawn([findZig(), "cc", ...flags, ...args], { cwd: root, stdout: "ignore", stderr: "pipe" });
  const [exitCode, stderr] = await Promise.all([run.exited, new Response(run.stderr).text()]);
  if (exitCode !== 0) throw new Error(`zig cc ${args.join(" ")}:\n${stderr}`);
}

beforeAll(async () => {
  mkdirSync(folder, { recursive: true });
  const objects = Object.entries(forms).map(([isa, cpu]) => ({ isa, cpu, object: `${folder}/${isa}.o` }));
  await Promise.all(
    objects.map(({ isa, cpu, object }) => zig(...cpu, `-DISA=${isa}`, "-c", "csrc/cpu/isa.c", "-o", object)),
  );
  const sources = ["csrc/cpu/dispatch.c", "csrc/cpu/pool.c", "test/cpu/forms_test.c"];
  await zig(...objects.map(({ object }) => object), ...sources, "-lm", "-lpthread", "-o", program);
}, 300_000);

/** What forms_test exits with where the processor can't run a form. */
const absent = 3;

describe("forms_test", () => {
  test.each(Object.keys(forms))(
    "%s",
    (isa) => {
      const { exitCode, stderr } = Bun.spawnSync([program, isa]);
      if (exitCode === absent) return console.log(`  ${isa}: this processor can't run it`);
      expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: "" });
    },
    120_000,
  );
});
