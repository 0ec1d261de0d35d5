// Tests that every instruction set's forms give the same answers: the suites of the operations, once for each.
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

// The process that runs this file has the best one; the others run here.
test.each(isas.slice(0, -1))(
  "%s",
  (isa) => {
    const { exitCode, output } = bun(
      isa,
      "test",
      "--timeout=60000",
      "test/quantize.test.ts",
      "test/scales.test.ts",
      "test/kbits.test.ts",
      "test/matmul.test.ts",
      "test/matmul_backward.test.ts",
      "test/embedding.test.ts",
      "test/int8.test.ts",
      "test/tensor.test.ts",
      "test/optim.test.ts",
    );
    if (exitCode !== 0) console.error(output.slice(-4000));
    expect(exitCode).toBe(0);
  },
  600_000,
);
