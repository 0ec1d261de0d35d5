// Owns `bun run bench`: the operations on the sizes of a language model's layer, timed in one process by tinybench.
import os from "node:os";
import { Bench } from "tinybench";
import { table } from "../src/cli/table.ts";
import {
  currentDevice,
  dequantize4bit,
  dequantizeBlockwise,
  Int8Weight,
  linear,
  matmul4bit,
  matmul8bit,
  optim,
  Parameter,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
  version,
} from "../src/index.ts";
import { normal } from "../test/cases.ts";

const device = currentDevice();
const [n, k] = [4096, 4096];
console.log(
  `bunsandbytes ${version} on ${device.kind} (${device.description}); ${os.cpus()[0]?.model}, ${os.cpus().length} processors`,
);

const w = Tensor.from(normal(n * k, 1, 0.02), [n, k]);
const q4 = quantize4bit(w);
const nested = quantize4bit(w, { compressStatistics: true });
const q8 = quantizeBlockwise(w, { blocksize: 256 });
const int8 = Int8Weight.quantize(w);

/** A case: its name, what it runs, and the bytes it must move and the operations it must do at least. */
const cases: { name: string; run: () => Disposable | undefined; bytes: number; flops?: number }[] = [
  { name: "quantize4bit", run: () => quantize4bit(w), bytes: w.byteLength + q4.byteLength },
  { name: "dequantize4bit to float32", run: () => dequantize4bit(q4), bytes: w.byteLength + q4.byteLength },
  {
    name: "dequantize4bit to bfloat16",
    run: () => dequantize4bit(q4, { dtype: "bfloat16" }),
    bytes: w.byteLength / 2 + q4.byteLength,
  },
  {
    name: "quantizeBlockwise",
    run: () => quantizeBlockwise(w, { blocksize: 256 }),
    bytes: w.byteLength + q8.byteLength,
  },
  { name: "Int8Weight.quantize", run: () => Int8Weight.quantize(w), bytes: w.byteLength + int8.byteLength },
  { name: "dequantizeBlockwise", run: () => dequantizeBlockwise(q8), bytes: w.byteLength + q8.byteLength },
];
for (const m of [1, 4, 32, 512]) {
  const x = Tensor.from(normal(m * k, m), [m, k]);
  const half = x.cast("float16");
  const flops = 2 * m * n * k;
  const bytes = q4.byteLength + x.byteLength + m * n * 4;
  cases.push(
    { name: `matmul4bit ${m} rows, highest`, run: () => matmul4bit(x, q4), bytes, flops },
    { name: `matmul4bit ${m} rows, nested scales`, run: () => matmul4bit(x, nested), bytes, flops },
    { name: `matmul4bit ${m} rows, float16, high`, run: () => matmul4bit(half, q4), bytes, flops },
    {
      name: `matmul8bit ${m} rows, float16, threshold 6`,
      run: () => matmul8bit(half, int8, { threshold: 6 }),
      bytes: int8.byteLength + half.byteLength + m * n * 2,
      flops,
    },
    {
      name: `linear ${m} rows, dense float32`,
      run: () => linear(x, w),
      bytes: w.byteLength + x.byteLength + m * n * 4,
      flops,
    },
  );
}

const parameter = new Parameter(w.to(device));
parameter.grad = Tensor.from(normal(n * k, 2, 0.01), [n, k]);
for (const [Class, bytesOfStates] of [
  [optim.Adam8bit, 2],
  [optim.Adam32bit, 8],
  [optim.Lion8bit, 1],
  [optim.LAMB8bit, 2],
] as const) {
  const optimizer = new Class([parameter], { lr: 1e-5 });
  const run = () => {
    optimizer.step();
    return undefined;
  };
  cases.push({ name: `${Class.name} step`, run, bytes: (12 + 2 * bytesOfStates) * n * k });
}

const bench = new Bench({ time: Number(process.env.BENCH_MS ?? 400), timestampProvider: "bunNanoseconds" });
for (const { name, run } of cases)
  bench.add(name, () => {
    run()?.[Symbol.dispose]();
    device.wait();
  });
await bench.run();

const rows = bench.tasks.map((task, i) => {
  const { bytes, flops } = cases[i]!;
  const result = task.result;
  if (result.state !== "completed") throw new Error(`${task.name} did not complete: ${result.state}`);
  const ms = result.latency.p50;
  const rate = flops === undefined ? "–" : (flops / ms / 1e6).toFixed(1);
  return [task.name, ms.toFixed(3), result.latency.min.toFixed(3), (bytes / ms / 1e6).toFixed(1), rate];
});
console.log(table([[`weight [${n}, ${k}]`, "median ms", "least ms", "GB/s", "GFLOP/s"], ...rows]));
