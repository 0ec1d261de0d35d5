// What `bunsandbytes/bench` exports: how much longer one function takes than another, measured in turns.
import { Bench } from "tinybench";
import { BnbError } from "../error.ts";

/** How long one of two functions took a call, in milliseconds, over all rounds. */
export interface Timing {
  readonly medianMs: number;
  /** The least: what the machine can do undisturbed. */
  readonly leastMs: number;
}

/** Two functions side by side. */
export interface Ratio {
  readonly a: Timing;
  readonly b: Timing;
  /** The median over the rounds of b's time over a's: above 1, `a` is faster. */
  readonly ratio: number;
  /** The lowest and the highest round's ratio: where 1 lies between them, noise may have decided. */
  readonly range: readonly [lowest: number, highest: number];
}

/** How long {@link ratio} measures. */
export interface RatioOptions {
  /** Turns that both take: 9 by default. */
  rounds?: number;
  /** How long each function is called in a round at least: 20 by default. */
  milliseconds?: number;
}

/**
 * Times two functions in turns, so that what else the machine does falls on both, and gives the ratio of their times. A
 * promise that a function returns is waited for; what is disposable is disposed of, within the time.
 *
 * @example
 * ```ts
 * import { ratio } from "bunsandbytes/bench";
 * import { linear, matmul4bit, quantize4bit, Tensor } from "bunsandbytes";
 *
 * const w = Tensor.from(new Float32Array(4096 * 4096).fill(0.1), [4096, 4096]);
 * const q = quantize4bit(w);
 * const x = Tensor.from(new Float32Array(4096).fill(1), [1, 4096]);
 * const { ratio: faster, range } = await ratio(() => matmul4bit(x, q), () => linear(x, w));
 * console.log(`4 bits: ${faster.toFixed(1)} times as fast (${range.map((r) => r.toFixed(1)).join(" to ")})`);
 * ```
 *
 * @throws BnbError if an option is no number above 0; what a function throws
 */
export async function ratio(a: () => unknown, b: () => unknown, options: RatioOptions = {}): Promise<Ratio> {
  const { rounds = 9, milliseconds = 20 } = options;
  for (const [name, value] of Object.entries({ rounds, milliseconds }))
    if (!(value > 0)) throw new BnbError(`ratio: ${name} is ${value}, expected a number above 0.`);
  const [ofA, ofB]: [Timing[], Timing[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    // Who is second finds the caches as the first left them: the order changes from round to round.
    const order = round % 2 ? [b, a] : [a, b];
    const [first, second] = [await timed(order[0]!, milliseconds), await timed(order[1]!, milliseconds)];
    ofA.push(round % 2 ? second : first);
    ofB.push(round % 2 ? first : second);
  }
  const ratios = ofA.map((timing, i) => ofB[i]!.medianMs / timing.medianMs).sort((x, y) => x - y);
  return { a: summary(ofA), b: summary(ofB), ratio: middle(ratios), range: [ratios[0]!, ratios.at(-1)!] };
}

async function timed(run: () => unknown, milliseconds: number): Promise<Timing> {
  const bench = new Bench({
    ...{ time: milliseconds, iterations: 1, warmupTime: 0, warmupIterations: 1 },
    ...{ timestampProvider: "bunNanoseconds", throws: true },
  });
  bench.add("", async () => {
    const result = (await run()) as Partial<Disposable> | undefined;
    result?.[Symbol.dispose]?.();
  });
  await bench.run();
  const { result } = bench.tasks[0]!;
  if (result.state !== "completed") throw new Error(`the function to be timed did not complete: ${result.state}`);
  return { medianMs: result.latency.p50, leastMs: result.latency.min };
}

const middle = (sorted: readonly number[]) => sorted[sorted.length >> 1]!;

const summary = (timings: readonly Timing[]): Timing => ({
  medianMs: middle(timings.map(({ medianMs }) => medianMs).sort((x, y) => x - y)),
  leastMs: Math.min(...timings.map(({ leastMs }) => leastMs)),
});
