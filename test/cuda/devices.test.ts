// Several simulated NVIDIA GPUs in one process: each has its own memory, and what is shared serves them all.
import { expect, test } from "bun:test";
import { run, simulates } from "./child.ts";

test.skipIf(!simulates)(
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

const products = `
  const numbers = (length, by) => Float32Array.from({ length }, (_, i) => Math.sin(i * by));
  for (const m of [1, 20, 70, 600, 2100]) {
    const results = ["cpu", "cuda"].map((kind) => {
      const device = bnb.Device.open(kind);
      const w = bnb.quantize4bit(bnb.Tensor.from(numbers(40 * 128, 1.3), [40, 128], { device }));
      const x = bnb.Tensor.from(numbers(m * 128, 0.7), [m, 128], { device }).cast("bfloat16");
      return bnb.matmul4bit(x, w).cast("float32").read();
    });
    let [error, size] = [0, 0];
    for (const [i, want] of results[0].entries()) error += (results[1][i] - want) ** 2, size += want ** 2;
    console.log(m, Math.sqrt(error / size) < 6e-3);
  }`;

test.skipIf(!simulates).each([
  ["90", ["matmul_few_1_1_8", "matmul_hopper_bf16_64", "matmul_hopper_bf16_128", "dense_hopper_bf16_128"]],
  ["90,tensors=0", ["matmul_few_1_1_8", "matmul_many_2_4_1_4_4", "matmul_many_4_4_2_4_3", "matmul_dense_half_128"]],
  ["86", ["matmul_few_1_1_8", "matmul_many_2_4_1_4_4", "matmul_many_4_4_2_4_3", "matmul_dense_half_128"]],
])(
  "products of every size, by the kernels for capability %s, are the CPU's",
  (capability, kernels) => {
    const { out, err } = run(products, `capability=${capability}`, { BNB_PROFILE: "1" });
    expect(out).toBe("1 true\n20 true\n70 true\n600 true\n2100 true\n");
    for (const kernel of kernels) expect(err).toContain(`\n${kernel} `);
  },
  120_000,
);
