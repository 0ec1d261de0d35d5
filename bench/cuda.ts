// `bun run bench:cuda [word…]`: this library on an NVIDIA GPU beside bitsandbytes and torch on the same one, in all
// cases or in those whose names contain one of the words.
//
// Ours are calls of the public API, one after the other with nothing waited for in between, so that what the host costs
// counts where the GPU is faster. The peers' products are replays of CUDA graphs, which cost the host nothing; so where
// products are short, ours are timed once more as a recording that is run again. Weights alternate among copies that
// the GPU's cache can't hold. Medians of five rounds.

import type { FloatDType, QuantizedTensor } from "../src/index.ts";
import {
  Device,
  dequantize4bit,
  int8ScaledMm,
  linearBackwardWeight,
  matmul4bit,
  matmul4bitBackward,
  optim,
  Parameter,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { Recording } from "../src/recording.ts";

interface Case {
  /** In bench/cuda_peer.py a function has the name, or `times` the branch. */
  readonly operation:
    | "matmul"
    | "backward dx"
    | "backward dw"
    | "quantize4bit"
    | "dequantize4bit"
    | "quantizeBlockwise"
    | "int8"
    | "adam8bit";
  readonly dtype: FloatDType;
  readonly m?: number;
  readonly n: number;
  readonly k: number;
  readonly nested?: boolean;
}

const shapes = [
  [4096, 4096],
  [14336, 4096],
  [28672, 8192],
] as const;
const elements = { n: 16384, k: 4096 };

const allCases: Case[] = [
  ...shapes.flatMap(([n, k]) =>
    [1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048].map(
      (m): Case => ({ operation: "matmul", dtype: "bfloat16", m, n, k }),
    ),
  ),
  ...shapes.map(([n, k]): Case => ({ operation: "matmul", dtype: "bfloat16", m: 1, n, k, nested: true })),
  ...shapes
    .slice(0, 2)
    .flatMap(([n, k]) => [512, 2048].map((m): Case => ({ operation: "backward dx", dtype: "bfloat16", m, n, k }))),
  { operation: "backward dw", dtype: "bfloat16", m: 2048, n: 4096, k: 4096 },
  ...(["float32", "bfloat16"] as const).flatMap((dtype): Case[] => [
    { operation: "quantize4bit", dtype, ...elements },
    { operation: "dequantize4bit", dtype, ...elements },
    { operation: "quantizeBlockwise", dtype, ...elements },
  ]),
  ...[128, 512, 2048].map((m): Case => ({ operation: "int8", dtype: "float16", m, n: 4096, k: 4096 })),
  { operation: "adam8bit", dtype: "float32", ...elements },
];

const cacheBytes = 260e6;

/** Random numbers that differ enough to be like weights, made once. */
const noise = Float32Array.from({ length: 1 << 20 }, () => Math.random() + Math.random() - 1);

function random(device: Device, rows: number, columns: number, dtype: FloatDType): Tensor<FloatDType> {
  const numbers = new Float32Array(rows * columns);
  for (let at = 0; at < numbers.length; at += noise.length)
    numbers.set(noise.subarray(0, Math.min(noise.length, numbers.length - at)), at);
  const made = Tensor.from(numbers, [rows, columns], { device });
  return dtype === "float32" ? made : made.cast(dtype);
}

/** What a call of a case is, one after the other over copies of what it reads. */
function callsOf(one: Case, device: Device): (() => void)[] {
  const { operation, dtype, m = 1, n, k } = one;
  const copies = (bytes: number) => Math.max(2, Math.ceil(cacheBytes / bytes));
  const weight = (): QuantizedTensor => {
    using w = random(device, n, k, "bfloat16");
    return quantize4bit(w, { compressStatistics: one.nested ?? false });
  };
  const weights = () => Array.from({ length: copies((n * k) / 2) }, weight);
  switch (operation) {
    case "matmul": {
      const x = random(device, m, k, dtype);
      return weights().map((w) => () => matmul4bit(x, w).dispose());
    }
    case "backward dx": {
      const dy = random(device, m, n, dtype);
      return weights().map((w) => () => matmul4bitBackward(dy, w).dispose());
    }
    case "backward dw": {
      const pair = () => [random(device, m, n, dtype), random(device, m, k, dtype)] as const;
      const pairs = Array.from({ length: copies(2 * m * (n + k)) }, pair);
      return pairs.map(
        ([dy, x]) =>
          () =>
            linearBackwardWeight(dy, x).dispose(),
      );
    }
    case "quantize4bit": {
      const x = random(device, n, k, dtype);
      return [() => quantize4bit(x).dispose()];
    }
    case "dequantize4bit": {
      const w = weight();
      return [() => dequantize4bit(w, { dtype }).dispose()];
    }
    case "quantizeBlockwise": {
      const x = random(device, n, k, dtype);
      return [() => quantizeBlockwise(x, { blocksize: 256 }).dispose()];
    }
    case "int8": {
      const bytes = (rows: number) =>
        Tensor.from(
          Int8Array.from({ length: rows * k }, (_, i) => (i * 40503) >> 7),
          [rows, k],
          { device },
        );
      const stats = (rows: number) => Tensor.from(new Float32Array(rows).fill(1), [rows], { device });
      const [a, b, ofA, ofB] = [bytes(m), bytes(n), stats(m), stats(n)];
      return [() => int8ScaledMm(a, b, ofA, ofB).dispose()];
    }
    case "adam8bit": {
      const p = new Parameter(random(device, n, k, "float32") as Tensor<"float32">);
      p.grad = random(device, n, k, "float32") as Tensor<"float32">;
      const adam = new optim.Adam8bit([p], { lr: 1e-3 });
      return [() => adam.step()];
    }
  }
}

/** Microseconds a call, in rounds of `least` milliseconds and more. */
function time(calls: readonly (() => void)[], device: Device, least = 20): number {
  const run = (rounds: number) => {
    const started = performance.now();
    for (let i = 0; i < rounds; i++) for (const call of calls) call();
    device.wait();
    return performance.now() - started;
  };
  run(1);
  const rounds = Math.max(1, Math.ceil(least / Math.max(run(1), 0.01)));
  const found = Array.from({ length: 5 }, () => (run(rounds) / rounds / calls.length) * 1e3);
  return found.sort((a, b) => a - b)[2]!;
}

/** The same of calls that were recorded once, as a step of a model is. */
function timeRecorded(calls: readonly (() => void)[], device: Device): number {
  using recording = Recording.of(() => {
    for (const call of calls) call();
  }, device);
  return time([() => recording.run()], device) / calls.length;
}

/** Where a call is so short that the host's cost shows. */
const isShort = ({ operation, m }: Case) => operation === "matmul" && m! <= 16;

const nameOf = ({ operation, dtype, m, n, k, nested }: Case) =>
  `${operation} ${m ? `M=${m} ` : ""}${n}×${k} ${dtype}${nested ? ", nested scales" : ""}`;

/** The peers' times by case, and who they are; or why there are none. */
async function peers(): Promise<{ who: string; times: Record<string, Record<string, number>> } | string> {
  const child = Bun.spawn(["python3", `${import.meta.dir}/cuda_peer.py`], {
    stdin: new Blob([JSON.stringify(cases.map((one) => ({ ...one, name: nameOf(one) })))]),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (status === 0) return JSON.parse(out.trim().split("\n").at(-1)!);
  return `There are no peers to compare with, for Python with torch and bitsandbytes on CUDA can't be had: ${err.trim().split("\n").at(-1)}`;
}

const words = process.argv.slice(2);
const cases = allCases.filter((one) => words.length === 0 || words.some((word) => nameOf(one).includes(word)));
if (cases.length === 0) {
  console.error(`No case's name contains ${words.join(" or ")}: they are\n${allCases.map(nameOf).join("\n")}`);
  process.exit(1);
}
let device: Device;
try {
  device = Device.open("cuda");
} catch (error) {
  console.log(`There is nothing to time: ${(error as Error).message}`);
  process.exit(0);
}
console.log(device.description);
time(callsOf(cases[0]!, device), device, 500); // clocks rise under load: else the first case would be timed at low ones
const ours = new Map<string, { us: number; recorded?: number }>();
for (const one of cases) {
  const calls = callsOf(one, device);
  const found = { us: time(calls, device), ...(isShort(one) && { recorded: timeRecorded(calls, device) }) };
  ours.set(nameOf(one), found);
  console.error(`${nameOf(one)}: ${found.us.toFixed(1)} µs`);
  Bun.gc(true);
}
const beside = await peers();
if (typeof beside === "string") console.log(beside);
else console.log(beside.who);
const times = typeof beside === "string" ? {} : beside.times;
console.log("\nA ratio says how many times as long the peer takes; in brackets, beside ours as a recording.\n");
console.log("| case | µs | recorded, µs | bitsandbytes, µs | ratio | torch, dense, µs | ratio |");
console.log("| :--- | ---: | ---: | ---: | ---: | ---: | ---: |");
for (const [name, { us, recorded }] of ours) {
  const cell = (peer: string) => {
    const other = times[name]?.[peer];
    if (other === undefined) return "– | –";
    const again = recorded === undefined ? "" : ` (${(other / recorded).toFixed(2)})`;
    return `${other.toFixed(1)} | ${(other / us).toFixed(2)}${again}`;
  };
  const ourCells = `${us.toFixed(1)} | ${recorded?.toFixed(1) ?? "–"}`;
  console.log(`| ${name} | ${ourCells} | ${cell("bitsandbytes")} | ${cell("torch")} |`);
}
console.log(`\nFallbacks to the CPU: ${device.counters.fallbacks}.`);
