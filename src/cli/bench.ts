// Owns `bunsandbytes bench`: the operations on the size of a language model's layer, timed in one process by tinybench.
import os from "node:os";
import { Command, InvalidArgumentError } from "commander";
import { Bench } from "tinybench";
import { currentDevice, type Device } from "../device.ts";
import { Int8Weight, matmul8bit } from "../int8.ts";
import { linear, matmul4bit } from "../matmul.ts";
import * as optim from "../optim/index.ts";
import { Parameter } from "../parameter.ts";
import { dequantize4bit, dequantizeBlockwise, quantize4bit, quantizeBlockwise } from "../quantize.ts";
import { Tensor } from "../tensor.ts";
import { version } from "../version.ts";
import { table } from "./table.ts";

/** The layer: rows and columns of its weight. */
const [n, k] = [4096, 4096];

/** A case: its name, what it runs, and the bytes it must move and the operations it must do at least. */
interface Case {
  readonly name: string;
  readonly run: () => Disposable | undefined;
  readonly bytes: number;
  readonly flops?: number;
}

/** What is measured of a case, in milliseconds and in what that makes a second. */
interface Measured {
  readonly name: string;
  readonly medianMs: number;
  readonly leastMs: number;
  readonly gigabytesPerSecond: number;
  readonly gigaflops?: number;
}

const uniform = (length: number, scale: number) => Float32Array.from({ length }, () => scale * (2 * Math.random() - 1));

function quantizeCases(w: Tensor<"float32">): Case[] {
  const bytes = { float: w.byteLength, half: w.byteLength / 2 };
  const q4 = quantize4bit(w);
  const q8 = quantizeBlockwise(w, { blocksize: 256 });
  const int8 = Int8Weight.quantize(w);
  return [
    { name: "quantize4bit", run: () => quantize4bit(w), bytes: bytes.float + q4.byteLength },
    { name: "dequantize4bit to float32", run: () => dequantize4bit(q4), bytes: bytes.float + q4.byteLength },
    {
      name: "dequantize4bit to bfloat16",
      run: () => dequantize4bit(q4, { dtype: "bfloat16" }),
      bytes: bytes.half + q4.byteLength,
    },
    {
      name: "quantizeBlockwise",
      run: () => quantizeBlockwise(w, { blocksize: 256 }),
      bytes: bytes.float + q8.byteLength,
    },
    { name: "dequantizeBlockwise", run: () => dequantizeBlockwise(q8), bytes: bytes.float + q8.byteLength },
    { name: "Int8Weight.quantize", run: () => Int8Weight.quantize(w), bytes: bytes.float + int8.byteLength },
  ];
}

function matmulCases(w: Tensor<"float32">): Case[] {
  const q4 = quantize4bit(w);
  const nested = quantize4bit(w, { compressStatistics: true });
  const int8 = Int8Weight.quantize(w);
  return [1, 4, 32, 512].flatMap((m) => {
    const x = Tensor.from(uniform(m * k, 1), [m, k]);
    const half = x.cast("float16");
    const flops = 2 * m * n * k;
    const activations = x.byteLength + m * n * 4;
    const bytes = q4.byteLength + activations;
    return [
      { name: `matmul4bit ${m} rows, highest`, run: () => matmul4bit(x, q4), bytes, flops },
      { name: `matmul4bit ${m} rows, nested scales`, run: () => matmul4bit(x, nested), bytes, flops },
      { name: `matmul4bit ${m} rows, float16, high`, run: () => matmul4bit(half, q4), bytes, flops },
      {
        name: `matmul8bit ${m} rows, float16, threshold 6`,
        run: () => matmul8bit(half, int8, { threshold: 6 }),
        bytes: int8.byteLength + half.byteLength + m * n * 2,
        flops,
      },
      { name: `linear ${m} rows, dense float32`, run: () => linear(x, w), bytes: w.byteLength + activations, flops },
    ];
  });
}

function optimizerCases(w: Tensor<"float32">): Case[] {
  const parameter = new Parameter(w.to(w.device));
  parameter.grad = Tensor.from(uniform(n * k, 0.01), [n, k]);
  const classes = [
    [optim.Adam8bit, 2],
    [optim.Adam32bit, 8],
    [optim.Lion8bit, 1],
    [optim.LAMB8bit, 2],
  ] as const;
  return classes.map(([Class, bytesOfStates]) => {
    const optimizer = new Class([parameter], { lr: 1e-5 });
    const run = () => {
      optimizer.step();
      return undefined;
    };
    return { name: `${Class.name} step`, run, bytes: (12 + 2 * bytesOfStates) * n * k };
  });
}

async function measure(device: Device, milliseconds: number): Promise<Measured[]> {
  const w = Tensor.from(uniform(n * k, 0.02), [n, k]);
  const cases = [...quantizeCases(w), ...matmulCases(w), ...optimizerCases(w)];
  const bench = new Bench({ time: milliseconds, timestampProvider: "bunNanoseconds" });
  for (const { name, run } of cases)
    bench.add(name, () => {
      run()?.[Symbol.dispose]();
      device.wait();
    });
  await bench.run();
  return bench.tasks.map((task, i) => {
    const { name, bytes, flops } = cases[i]!;
    const { result } = task;
    if (result.state !== "completed") throw new Error(`${name} did not complete: ${result.state}`);
    const { p50: medianMs, min: leastMs } = result.latency;
    const gigabytesPerSecond = bytes / medianMs / 1e6;
    return { name, medianMs, leastMs, gigabytesPerSecond, ...(flops && { gigaflops: flops / medianMs / 1e6 }) };
  });
}

function positive(text: string): number {
  const value = Number(text);
  if (value > 0) return value;
  throw new InvalidArgumentError("Expected a number of milliseconds above 0.");
}

export function benchCommand(): Command {
  return new Command("bench")
    .description("Time the operations on a layer of 4096 by 4096, on the current device (BNB_DEVICE chooses another).")
    .option("--time <ms>", "how long to time each case at least", positive, 400)
    .option("--json", "print the result as JSON on standard output")
    .addHelpText("after", "\nExample:\n  BNB_DEVICE=cpu BNB_NUM_THREADS=1 bunsandbytes bench --time 200")
    .action(async (flags: { time: number; json?: boolean }) => {
      const device = currentDevice();
      const processors = `${os.cpus()[0]?.model.trim()}, ${os.cpus().length} processors`;
      const machine = `bunsandbytes ${version} on ${device.kind} (${device.description}); ${processors}`;
      if (!flags.json) console.log(machine);
      const results = await measure(device, flags.time);
      if (flags.json) return console.log(JSON.stringify({ machine, results }, null, 2));
      const rows = results.map(({ name, medianMs, leastMs, gigabytesPerSecond, gigaflops }) => [
        name,
        medianMs.toFixed(3),
        leastMs.toFixed(3),
        gigabytesPerSecond.toFixed(1),
        gigaflops?.toFixed(1) ?? "–",
      ]);
      console.log(table([[`weight [${n}, ${k}]`, "median ms", "least ms", "GB/s", "GFLOP/s"], ...rows]));
    });
}
