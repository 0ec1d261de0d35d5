// Several simulated NVIDIA GPUs in one process: each has its own memory, and what is shared serves them all.
import { expect, test } from "bun:test";
import { resolve } from "node:path";
import { fakeCuda } from "./host/build.ts";

const root = resolve(import.meta.dir, "../..");

function run(script: string, faults: string): { out: string; err: string } {
  const { stdout, stderr } = Bun.spawnSync(
    [process.execPath, "-e", `import * as bnb from "./src/index.ts";\n${script}`],
    {
      cwd: root,
      env: {
        ...process.env,
        ...{
          BNB_DEVICE: "",
          BNB_STRICT: "1",
          BNB_CUDA_LIBRARY: fakeCuda(),
          BNB_FAKE_CUDA: faults,
          BNB_SIM_BUN: process.execPath,
        },
      },
    },
  );
  return { out: stdout.toString(), err: stderr.toString() };
}

test.skipIf(process.platform !== "linux" || process.arch !== "x64")(
  "a codebook serves two GPUs",
  () => {
    const script = `
    const numbers = Float32Array.from({ length: 256 }, (_, i) => Math.sin(i));
    for (const kind of ["cuda", "cuda:1"]) {
      const q = bnb.quantize4bit(bnb.Tensor.from(numbers, [4, 64], { device: bnb.Device.open(kind) }));
      console.log(kind, bnb.dequantize4bit(q, { dtype: "float32" }).read()[7].toFixed(4));
    }`;
    const { out, err } = run(script, "devices=2");
    expect(err).toBe("");
    const [first, second] = out
      .trim()
      .split("\n")
      .map((line) => line.split(" "));
    expect([first![0], second![0]]).toEqual(["cuda", "cuda:1"]);
    expect(second![1]).toBe(first![1]!);
  },
  60_000,
);
