// The way from logits to an id, in transformers' order: penalty, temperature, top-k, top-p, min-p, chance.
import { BnbError } from "../error.ts";
import type { Largest } from "../topk.ts";

/** How the next token is chosen. */
export interface SamplingOptions {
  /** Logits are divided by it: below 1 likely tokens become likelier. 0 takes the likeliest, always. */
  temperature?: number | undefined;
  /** Only this many of the likeliest tokens; 0 means all. */
  topK?: number | undefined;
  /** Only the likeliest tokens that together have this probability (nucleus sampling, Holtzman et al. 2020). */
  topP?: number | undefined;
  /** Only tokens at least this share as likely as the likeliest. */
  minP?: number | undefined;
  /**
   * Above 1: logits of tokens that stand in the text already are divided by it, or multiplied where negative
   * (CTRL).
   */
  repetitionPenalty?: number | undefined;
  /** The same seed gives the same text; by default each text has another. */
  seed?: number | undefined;
  /** Sees, and may change, the logits of each token before anything else does: for grammars and biases. */
  logitsProcessor?: ((logits: Float32Array, ids: readonly number[]) => void) | undefined;
}

/**
 * Logits that are so much below the largest, in units of the temperature, have a share that no sum can tell from
 * none.
 */
const negligible = 40;

/** Native top-k serves up to this many. */
const nativeMost = 1024;

/** A token and its log probability, as `logprobs` lists them. */
export interface TokenLogprob {
  readonly id: number;
  /** The natural logarithm of its probability, before penalty, temperature and cuts. */
  readonly logprob: number;
}

/** Chooses ids by one set of options, with its own stream of random numbers. */
export class Sampler {
  readonly #options: { temperature: number; topK: number; topP: number; minP: number; repetitionPenalty: number };
  readonly #process: SamplingOptions["logitsProcessor"];
  readonly #random: () => number;

  /** @throws BnbError for an option out of its range */
  constructor(options: SamplingOptions, what: string) {
    const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
    const seed = options.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!;
    checkRange(what, "temperature", temperature, 0, 100);
    checkRange(what, "topK", topK, 0, 2 ** 31, true);
    checkRange(what, "topP", topP, Number.MIN_VALUE, 1);
    checkRange(what, "minP", minP, 0, 1);
    checkRange(what, "repetitionPenalty", repetitionPenalty, 1e-3, 1e3);
    checkRange(what, "seed", seed, -(2 ** 53), 2 ** 53, true);
    this.#options = { temperature, topK, topP, minP, repetitionPenalty };
    this.#process = options.logitsProcessor;
    this.#random = randomOf(seed);
  }

  /** How many of the largest logits are enough to choose by; `undefined`: it takes all. */
  get largest(): number | undefined {
    const { temperature, topK, repetitionPenalty } = this.#options;
    if (this.#process || repetitionPenalty !== 1) return undefined;
    if (temperature === 0) return 1;
    return topK > 0 && topK <= nativeMost ? topK : undefined;
  }

  /** The next id, of the largest logits in their order: at least {@link largest} of them. */
  chooseOf({ indices, values }: Largest): number {
    const { temperature, topK } = this.#options;
    if (temperature === 0) return indices[0]!;
    const count = Math.min(topK, indices.length);
    return this.#draw(indices.subarray(0, count), values.subarray(0, count));
  }

  /** The next id, of all logits, which it may change. */
  choose(logits: Float32Array, ids: readonly number[]): number {
    const { temperature, topK, repetitionPenalty } = this.#options;
    this.#process?.(logits, ids);
    if (repetitionPenalty !== 1)
      for (const id of new Set(ids)) {
        const logit = logits[id]!;
        logits[id] = logit < 0 ? logit * repetitionPenalty : logit / repetitionPenalty;
      }
    if (temperature === 0) return argmax(logits);
    const { indices, values } = sortedLargest(
      logits,
      topK || logits.length,
      logits[argmax(logits)]! - negligible * temperature,
    );
    return this.#draw(indices, values);
  }

  /** Of logits in descending order. */
  #draw(indices: Int32Array, values: Float32Array): number {
    const { temperature, topP, minP } = this.#options;
    const weights = Array.from(values, (value) => Math.exp((value - values[0]!) / temperature));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    let [kept, sum] = [0, 0];
    while (kept < weights.length && (kept === 0 || (sum < topP * total && weights[kept]! >= minP)))
      sum += weights[kept++]!;
    let left = this.#random() * sum;
    for (let i = 0; i < kept; i++) {
      left -= weights[i]!;
      if (left < 0) return indices[i]!;
    }
    return indices[kept - 1]!;
  }
}

function checkRange(what: string, name: string, value: number, least: number, most: number, whole = false): void {
  if (typeof value === "number" && value >= least && value <= most && (!whole || Number.isInteger(value))) return;
  const range = name === "topP" ? "above 0 and at most 1" : `from ${least} to ${most}`;
  throw new BnbError(`${what}: ${name} is ${value}, expected a ${whole ? "whole " : ""}number ${range}.`);
}

function argmax(values: Float32Array): number {
  let [most, at] = [-Infinity, 0];
  for (let i = 0; i < values.length; i++) if (values[i]! > most) [most, at] = [values[i]!, i];
  return at;
}

/** The largest logits that are not below a floor, in descending order: the floor leaves few to sort. */
function sortedLargest(logits: Float32Array, count: number, floor: number): Largest {
  const kept: number[] = [];
  for (let i = 0; i < logits.length; i++) if (logits[i]! >= floor) kept.push(i);
  kept.sort((a, b) => logits[b]! - logits[a]! || a - b);
  const indices = Int32Array.from(kept.slice(0, count));
  return { indices, values: Float32Array.from(indices, (i) => logits[i]!) };
}

/** The natural logarithm of the sum of exponentials: what logits are less to be logarithms of probabilities. */
export function logSumExp(logits: Float32Array): number {
  const most = logits[argmax(logits)]!;
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - most);
  return most + Math.log(sum);
}

/** The likeliest tokens, and a chosen one's logprob. */
export function logprobsOf(logits: Float32Array, id: number, count: number): { chosen: number; top: TokenLogprob[] } {
  const total = logSumExp(logits);
  const top: TokenLogprob[] = [];
  for (let i = 0; i < logits.length && count > 0; i++) {
    const logprob = logits[i]! - total;
    if (top.length === count && logprob <= top[count - 1]!.logprob) continue;
    const place = top.findIndex((other) => other.logprob < logprob);
    top.splice(place < 0 ? top.length : place, 0, { id: i, logprob });
    if (top.length > count) top.pop();
  }
  return { chosen: logits[id]! - total, top };
}

/** Numbers in [0, 1) from a seed: sfc32 of PractRand (Doty-Humphrey 2014), warmed up. */
function randomOf(seed: number): () => number {
  let [a, b, c, counter] = [0, seed | 0, Math.floor(seed / 2 ** 32) | 0, 1];
  const next = () => {
    const sum = (a + b + counter++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return (sum >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 15; i++) next();
  return next;
}
