// `bun run bench:scaling`: how the cost of matmul4bit grows with rows, sizes, block size, precision and threads.
import os from "node:os";
import { Command } from "commander";
import { root, say, stop } from "../scripts/run.ts";
import { type Limits, measureReads, shareOfLimit } from "../src/bench/limits.ts";
import { latencyOf } from "../src/bench/measure.ts";
import { table } from "../src/cli/table.ts";
import { currentDevice, matmul4bit, quantize4bit, Tensor } from "../src/index.ts";
import type { Precision } from "../src/native.ts";
import { blocksizes4, layerShapes, normal } from "../test/cases.ts";
import { peak } from "./peak.ts";
import { digits, type Table } from "./peers/tables.ts";

/** One product: NF4 unless `blocksize` or `nested` say otherwise. */
interface Point {
  readonly label: string;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly precision: Precision;
  readonly blocksize?: number;
  readonly nested?: boolean;
}

interface Series {
  readonly title: string;
  readonly points: readonly Point[];
}

/** What a process with its own number of threads found: milliseconds of each point, in the order of the series. */
interface Run {
  readonly threads: number;
  readonly limits: Limits;
  readonly ms: readonly number[][];
}

export interface ScalingRecord {
  readonly schema: typeof schema;
  readonly machine: Readonly<Record<string, string | number>>;
  readonly date: string;
  readonly series: readonly Series[];
  readonly runs: readonly Run[];
}

export const schema = "bunsandbytes-scaling-1";

const size = { m: 1, n: 4096, k: 4096 };
const precisions: readonly Precision[] = ["highest", "high", "medium"];

const bySize = (title: string, precision: Precision, sizes: [label: string, Partial<typeof size>][]): Series => ({
  title,
  points: sizes.map(([label, changed]) => ({ label, ...size, ...changed, precision })),
});

/** What docs/performance.md shows. */
const series: readonly Series[] = [
  ...precisions.map((precision) =>
    bySize(
      `Rows of x, ${precision}: weight [4096, 4096]`,
      precision,
      [1, 2, 4, 5, 8, 16, 32, 64, 128, 512].map((m) => [`M = ${m}`, { m }]),
    ),
  ),
  bySize(
    "Rows of the weight, highest: M = 1, K = 4096",
    "highest",
    [64, 256, 1024, 4096, 16384].map((n) => [`N = ${n}`, { n }]),
  ),
  bySize(
    "Columns of the weight, highest: M = 1, N = 4096",
    "highest",
    [64, 256, 1024, 4096, 16384, 4100].map((k) => [`K = ${k}`, { k }]),
  ),
  {
    title: "Block size, highest: M = 1, weight [4096, 4096]",
    points: [
      ...blocksizes4.map((blocksize) => ({
        label: `block ${blocksize}`,
        ...size,
        precision: "highest" as const,
        blocksize,
      })),
      { label: "block 64, nested scales", ...size, precision: "highest", nested: true },
    ],
  },
  bySize(
    "Layers of real models, highest: M = 1",
    "highest",
    Object.entries(layerShapes).map(([name, shape]) => [`${name} [${shape.n}, ${shape.k}]`, shape]),
  ),
];

/** A point, ready to be timed. */
function prepare({ m, n, k, precision, blocksize = 64, nested = false }: Point) {
  const row = 64;
  using few = Tensor.from(normal(row * k, 1, 0.02), [row, k]);
  using w = repeated(few, n);
  const q = quantize4bit(w, { blocksize, compressStatistics: nested });
  const x = Tensor.from(normal(m * k, 2), [m, k]);
  const device = currentDevice();
  const run = () => {
    matmul4bit(x, q, { precision }).dispose();
    device.wait();
  };
  const release = () => {
    x.dispose();
    q.dispose();
  };
  return { run, release };
}

/** A weight of n rows that are those of `few` again and again: random numbers take longer than what is to be timed. */
function repeated(few: Tensor<"float32">, n: number): Tensor<"float32"> {
  const values = few.read();
  const [, k] = few.shape as [number, number];
  const all = new Float32Array(n * k);
  for (let at = 0; at < all.length; at += values.length) all.set(values.subarray(0, all.length - at), at);
  return Tensor.from(all, [n, k]);
}

async function measure(milliseconds: number): Promise<Run> {
  const threads = Number(process.env.BNB_NUM_THREADS);
  const limits = { threads, reads: await measureReads(threads), gigaflops: peak(threads) };
  const ms: number[][] = [];
  for (const { points } of series) {
    const found: number[] = [];
    for (const point of points) {
      const { run, release } = prepare(point);
      const { medianMs } = await latencyOf(point.label, run, milliseconds);
      release();
      found.push(Number(medianMs.toPrecision(4)));
    }
    ms.push(found);
  }
  return { threads, limits, ms };
}

/** A table of each series: a time, and the share of the limit, for each number of threads. */
export function scalingTables({ series: all, runs }: ScalingRecord): { title: string; table: Table }[] {
  return all.map(({ title, points }, s) => {
    const heads = runs.map(({ threads }) => (threads === 1 ? "1 thread" : `${threads} threads`));
    const head = [
      "",
      ...heads.flatMap((threads) => [`${threads}, ms`, "GFLOP/s", "of limit"]),
      ...(runs.length > 1 ? ["scales"] : []),
    ];
    const rows = points.map((point, p) => {
      const flops = 2 * point.m * point.n * point.k;
      const bytes =
        point.n * point.k * (1 / 2 + (point.nested ? 1 : 4) / (point.blocksize ?? 64)) +
        4 * point.m * (point.n + point.k);
      const cells = runs.flatMap(({ ms, limits }) => {
        const took = ms[s]![p]!;
        const share = shareOfLimit(limits, { bytes, flops }, took);
        return [digits(took), (flops / took / 1e6).toFixed(1), `${(100 * share).toFixed(0)} %`];
      });
      const scales = runs.length > 1 ? [`${(runs[0]!.ms[s]![p]! / runs.at(-1)!.ms[s]![p]!).toFixed(2)}×`] : [];
      return [point.label, ...cells, ...scales];
    });
    return { title, table: [head, ...rows] };
  });
}

export function limitTable({ runs }: ScalingRecord): Table {
  const sizes = runs[0]!.limits.reads.map(({ bytes }) => `reading ${(bytes / 2 ** 20).toFixed(0)} MB, GB/s`);
  const rows = runs.map(({ threads, limits }) => [
    String(threads),
    ...limits.reads.map((rate) => rate.gigabytesPerSecond.toFixed(1)),
    limits.gigaflops!.toFixed(0),
  ]);
  return [["threads", ...sizes, "fp32 multiply-adds, GFLOP/s"], ...rows];
}

/** Runs this file in a process with so many threads, which a process can't change once it has begun. */
function measureIn(threads: number, milliseconds: number): Run {
  say(`With ${threads} ${threads === 1 ? "thread" : "threads"} …`);
  const command = [process.execPath, import.meta.path, "--here", "--time", String(milliseconds)];
  const env = { ...process.env, BNB_NUM_THREADS: String(threads), BNB_DEVICE: "cpu" };
  const { exitCode, stdout } = Bun.spawnSync(command, { env, stderr: "inherit" });
  if (exitCode !== 0) stop(`${command.join(" ")} failed: its message is above.`);
  return JSON.parse(stdout.toString());
}

async function main(flags: { time: number; here?: boolean; save: string }): Promise<void> {
  if (flags.here) {
    console.log(JSON.stringify(await measure(flags.time)));
    return;
  }
  const load = os.loadavg()[0]!;
  const most = os.availableParallelism();
  const runs = (most > 1 ? [1, most] : [1]).map((threads) => measureIn(threads, flags.time));
  const machine = {
    processor: os.cpus()[0]?.model.trim() ?? "unknown",
    processors: os.cpus().length,
    system: `${os.type()} ${process.arch}`,
    "load before the run": Number(load.toFixed(2)),
  };
  const record: ScalingRecord = { schema, machine, date: new Date().toISOString(), series, runs };
  await Bun.write(flags.save, `${JSON.stringify(record)}\n`);
  console.log(table(limitTable(record)));
  for (const { title, table: rows } of scalingTables(record)) console.log(`\n${title}\n${table(rows)}`);
  say(`\nKept in ${flags.save}.`);
}

if (import.meta.main)
  await new Command("bench:scaling")
    .description("Time matmul4bit over rows, sizes, block sizes and precisions, on one thread and on all.")
    .option("--time <ms>", "how long to time each point at least", Number, 150)
    .option("--save <file>", "where to keep the result", `${root}/.cache/bench/scaling.json`)
    .option("--here", "measure in this process, with the threads that it has, and print JSON")
    .action(main)
    .parseAsync();
