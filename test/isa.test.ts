// Tests that every instruction set's forms give the same answers. test/cpu/forms.test.ts holds each form by itself to
// its definition, at every width, dtype and ragged size: here the suites of the operations run on the plain loops, and
// with each set's forms what it can't see.
import { expect, test } from "bun:test";
import { Device } from "../src/index.ts";

const folder = `${import.meta.dir}/..`;

function bun(isa: string, ...args: string[]) {
  const env = { ...process.env, BNB_ISA: isa, BNB_DEVICE: "cpu" };
  const run = Bun.spawnSync([process.execPath, ...args], { cwd: folder, env });
  return { exitCode: run.exitCode, output: run.stdout.toString() + run.stderr.toString() };
}

/** The forms that this processor can run: asked for by name, the library says whether it uses them. */
const isas = ["plain", "base", "avx2", "avx512", "avx512vnni", "neon", "dotprod", "i8mm"].filter((isa) => {
  const { output } = bun(isa, "-e", 'console.log((await import("./src/index.ts")).Device.open("cpu").description)');
  return output.includes(`, ${isa} kernels`);
});

test("the best is used where none is asked for", () => {
  const { description } = Device.open("cpu");
  if (!process.env.BNB_ISA) expect(description).toContain(`, ${isas.at(-1)} kernels`);
  expect(isas.length).toBeGreaterThanOrEqual(2);
});

function passes(isa: string, suites: readonly string[], ...options: string[]): string {
  const paths = suites.map((suite) => `test/${suite}.test.ts`);
  const { exitCode, output } = bun(isa, "test", "--timeout=60000", ...options, ...paths);
  if (exitCode !== 0) console.error(output.slice(-4000));
  expect(exitCode).toBe(0);
  return output;
}

/** Suites that are so quick that each set runs them whole. */
const quick = ["attention", "rms_norm", "activate"];

/** Of the others, what depends on a form and is more than its definition: upstream's bytes, and errors in long sums. */
const beyondDefinitions: readonly [suite: string, names: readonly string[]][] = [
  ["quantize", ["upstream's bytes", "thresholds are exact", "errors are those of theory"]],
  ["scales", ["particular blocks", "no block is worse"]],
  ["kbits", ["codes are one string of bits", "errors are those of theory"]],
  ["matmul", ["rows of \\d+ elements", "\\d+ rows, (high|medium)", "bit by bit", "each precision", "do not overflow"]],
  ["matmul_backward", ["large enough", "the slope of the product"]],
  ["embedding", ["gives the bytes"]],
  ["int8", ["upstream's bytes", "as large as they get", "shows in its row"]],
  ["tensor", ["casts round to nearest even"]],
  ["optim", ["upstream's numbers", "8-bit training follows"]],
];

const suites = beyondDefinitions.map(([suite]) => suite);

test("the plain loops", () => {
  passes("plain", [...suites, ...quick, "elementwise"]);
}, 600_000);

// The process that runs this file has the best one; the others run here.
test.each(isas.slice(1, -1))(
  "%s",
  (isa) => {
    passes(isa, quick);
    const names = [...new Set(beyondDefinitions.flatMap(([, names]) => names))];
    const output = passes(isa, suites, "--test-name-pattern", names.join("|"));
    for (const name of names) expect(output).toMatch(new RegExp(`^\\(pass\\) .*${name}`, "m"));
  },
  600_000,
);
