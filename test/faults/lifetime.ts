// Lifetimes under stress, each in a process of its own: `bun lifetime.ts dispose|collect|workers|terminate <count>`.
// Prints JSON with what was done and the most memory that it took.
import { currentDevice, matmul4bit, quantize4bit, Tensor } from "../../src/index.ts";

const workers = 8;

function check(holds: boolean, sentence: string): void {
  if (!holds) throw new Error(sentence);
}

const bytes = () => currentDevice().counters.bytes;
const rss = () => process.memoryUsage.rss();

/** Makes and disposes of tensors one by one: nothing is left, and the process does not grow. */
function dispose(count: number) {
  const values = new Float32Array(64);
  const round = (times: number) => {
    for (let i = 0; i < times; i++) Tensor.from(values, [1, 64]).dispose();
  };
  round(20_000);
  Bun.gc(true);
  const [before, used] = [rss(), bytes()];
  round(count);
  Bun.gc(true);
  const grown = rss() - before;
  check(bytes() === used, `${bytes() - used} native bytes are left`);
  check(grown < 64 << 20, `the process grew by ${grown} bytes`);
  return { made: count, grownBytes: grown };
}

/** Drops tensors of 4 MB without disposing of them, which only the collector frees. */
function collect(count: number) {
  const values = new Float32Array(1 << 20);
  const used = bytes();
  for (let i = 0; i < count; i++) Tensor.from(values, [1024, 1024]);
  const { peak } = currentDevice().counters;
  Bun.gc(true);
  check(peak < 512 << 20, `${peak} native bytes were in use at once, of ${count * 4} MB made`);
  return { made: count, peakBytes: peak, leftBytes: bytes() - used };
}

/** One worker's share of the work: the same numbers each time, whatever else goes on. */
function product(rounds: number, shared: bigint): bigint {
  let hash = shared;
  for (let i = 0; i < rounds; i++) {
    const values = Float32Array.from({ length: 96 * 128 }, (_, at) => Math.sin(at + (i % 7)));
    using w = Tensor.from(values, [96, 128]);
    using q = quantize4bit(w, { quantType: "nf4", compressStatistics: i % 2 === 0 });
    using x = Tensor.from(values.subarray(0, 5 * 128), [5, 128]);
    using y = matmul4bit(x, q);
    hash ^= Bun.hash.wyhash(y.read() as Float32Array, BigInt(i));
    if (i % 3 === 0) quantize4bit(w).codes; // left to the collector
  }
  return hash;
}

async function hammer(rounds: number) {
  const expected = product(rounds, 0n);
  const work = (abandon: boolean) =>
    new Promise<bigint | undefined>((resolve, reject) => {
      const worker = new Worker(import.meta.path, { argv: ["worker", String(rounds)] });
      worker.onmessage = ({ data }) => resolve(data as bigint);
      worker.onerror = (event) => reject(new Error(event.message));
      if (!abandon) return;
      setTimeout(() => {
        worker.terminate();
        resolve(undefined);
      }, 30);
    });
  const done = await Promise.all(Array.from({ length: workers }, (_, i) => work(i >= workers - 2)));
  const results = done.filter((result) => result !== undefined);
  for (const result of results) check(result === expected, `a worker computed ${result}, expected ${expected}`);
  check(product(rounds, 0n) === expected, "the main thread computes something else afterwards");
  check(results.length >= workers - 2, `${results.length} workers came to an end`);
  return { workers, finished: results.length, roundsEach: rounds };
}

/**
 * Ends workers wherever they are, between a call and the line that takes its result over too: nothing of theirs is
 * left.
 */
async function terminate(count: number) {
  const used = bytes();
  for (let i = 0; i < count; i++) {
    const worker = new Worker(import.meta.path, { argv: ["endless"] });
    await new Promise((resolve) => worker.addEventListener("message", resolve));
    await Bun.sleep(i % 20);
    const closed = new Promise((resolve) => worker.addEventListener("close", resolve));
    worker.terminate();
    await closed;
  }
  for (let wait = 0; wait < 100 && bytes() !== used; wait++) await Bun.sleep(20);
  check(bytes() === used, `${bytes() - used} native bytes are left of ${count} workers`);
  return { terminated: count };
}

/** Makes results until it is ended. */
function endless(): never {
  const kept = Array.from({ length: 20 }, () => Tensor.zeros([256, 256]));
  postMessage(kept.length);
  for (;;) {
    using half = kept[0]!.cast("float16");
    using whole = half.cast("float32");
    void whole;
  }
}

if (Bun.isMainThread) {
  const [mode, count] = process.argv.slice(2);
  const modes: Record<string, (count: number) => unknown> = { dispose, collect, workers: hammer, terminate };
  console.log(JSON.stringify(await modes[mode!]!(Number(count))));
  process.exit(0);
} else if (process.argv.at(-1) === "endless") {
  endless();
} else {
  postMessage(product(Number(process.argv.at(-1)), 0n));
}
