// The answers that the library is held to, worked out here in float64, or in fp32 where bytes must match.
import { BnbError, type BnbErrorCode, type FloatDType } from "../src/index.ts";

const word = new Uint32Array(1);
const float = new Float32Array(word.buffer);

/** Rounds to nearest even in a dtype. */
export function round(value: number, dtype: FloatDType): number {
  if (dtype === "float16") return Math.f16round(value);
  float[0] = value;
  if (dtype === "float32") return float[0];
  word[0] = (word[0]! + 0x7fff + ((word[0]! >>> 16) & 1)) & 0xffff0000;
  return float[0];
}

/**
 * Numbers as one kind of array, whatever they come in: a loop that has met many kinds runs ten times as long, and the
 * whole suite shares these.
 */
const floats = (numbers: ArrayLike<number>) => (numbers instanceof Float64Array ? numbers : new Float64Array(numbers));

/** A quantised tensor, worked out element by element. */
export interface ReferenceQuantized {
  codes: Uint8Array; // one a byte, not packed
  absmax: Float32Array<ArrayBuffer>;
}

/**
 * The code of an x in [-1, 1], by definition: among values in ascending order, one moves up while x is beyond the
 * midpoint; at the midpoint itself a 4-bit code stays, an 8-bit code takes the even index.
 */
export function coder(values: Float32Array): (x: number) => number {
  const order = Uint8Array.from([...values.keys()].sort((a, b) => values[a]! - values[b]! || a - b));
  const steps = values.length - 1;
  const middles = new Float64Array(steps);
  const evenIsAbove = new Uint8Array(steps);
  for (let at = 0; at < steps; at++) {
    const [low, high] = [values[order[at]!]!, values[order[at + 1]!]!];
    middles[at] = Math.fround(Math.fround(low + high) / 2);
    evenIsAbove[at] = Number(values.length === 256 && low < high && at % 2 === 1);
  }
  return (x) => {
    let [stop, end] = [0, steps];
    while (stop < end) {
      const middle = (stop + end) >> 1;
      if (x > middles[middle]!) stop = middle + 1;
      else end = middle;
    }
    while (stop < steps && x === middles[stop] && evenIsAbove[stop]) stop++;
    return order[stop]!;
  };
}

/** Blockwise quantisation as csrc/bnb.h defines it, with fp32 steps where they can be seen in the bytes. */
export function quantize(given: ArrayLike<number>, values: Float32Array, blocksize: number): ReferenceQuantized {
  const x = floats(given);
  const codes = new Uint8Array(x.length);
  const absmax = new Float32Array(Math.ceil(x.length / blocksize));
  const codeOf = coder(values);
  for (let block = 0; block < absmax.length; block++) {
    const end = Math.min(x.length, (block + 1) * blocksize);
    let most = 0;
    for (let i = block * blocksize; i < end; i++) most = Math.max(most, Math.abs(x[i]!));
    absmax[block] = most;
    const inverse = most > Math.fround(1e-38) ? Math.fround(1 / most) : Math.fround(1e38);
    for (let i = block * blocksize; i < end; i++) {
      const scaled = Math.max(-1, Math.min(1, Math.fround(x[i]! * inverse)));
      codes[i] = codeOf(scaled);
    }
  }
  return { codes, absmax };
}

/**
 * The mean of scales as metal/nested_rule.h defines it: of whole units, 2^-55 of the power of two above the largest,
 * rounded to a float32 once, to even.
 */
export function meanOfScales(scales: Float32Array): number {
  const bits = [...new Uint32Array(scales.slice().buffer)];
  const exponent = (word: number) => Math.max(word >>> 23, 1);
  const largest = exponent(Math.max(...bits));
  let sum = 0n;
  for (const word of bits) {
    const significand = BigInt((word & 0x7fffff) + (word >>> 23 ? 0x800000 : 0));
    sum += (significand << 31n) >> BigInt(largest - exponent(word));
  }
  // The mean is sum / count × 2^(largest - 181); a float32 counts in steps of a power of two, 2^-149 at least.
  const count = BigInt(bits.length);
  for (let step = -149; ; step++) {
    const shift = BigInt(step + 181 - largest);
    const [over, under] = shift < 0n ? [sum << -shift, count] : [sum, count << shift];
    const steps = over / under;
    if (steps >= 1n << 24n) continue;
    const rest = 2n * (over % under) - under;
    const up = rest > 0n || (rest === 0n && steps % 2n === 1n);
    return Number(steps + (up ? 1n : 0n)) * 2 ** step;
  }
}

/**
 * Codes as they lie in memory: one string of bits, a byte's highest first, continued with codes of 0 to the last byte's
 * end.
 */
export function pack(codes: Uint8Array, values: Float32Array): Uint8Array {
  if (values.length === 256) return codes;
  const bits = Math.log2(values.length);
  const packed = new Uint8Array(Math.ceil((codes.length * bits) / 8));
  const zero = coder(values)(0);
  for (let bit = 0; bit < packed.length * 8; bit++) {
    const code = codes[Math.floor(bit / bits)] ?? zero;
    packed[bit >> 3]! |= ((code >> (bits - 1 - (bit % bits))) & 1) << (7 - (bit & 7));
  }
  return packed;
}

/** One code from memory. */
export function unpack(packed: Uint8Array, bits: number, i: number): number {
  let code = 0;
  for (let bit = i * bits; bit < (i + 1) * bits; bit++)
    code = (code << 1) | ((packed[bit >> 3]! >> (7 - (bit & 7))) & 1);
  return code;
}

/** y[m, n] = Σk x[m, k] · w[n, k] + bias[n] in float64. */
export function matmul(
  x: ArrayLike<number>,
  w: ArrayLike<number>,
  bias: ArrayLike<number> | undefined,
  m: number,
  n: number,
  k: number,
): Float64Array {
  return product(floats(x), floats(w), floats(bias ?? new Float64Array(n)), m, n, k);
}

function product(x: Float64Array, w: Float64Array, bias: Float64Array, m: number, n: number, k: number): Float64Array {
  const y = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = bias[j]!;
      for (let l = 0; l < k; l++) sum += x[i * k + l]! * w[j * k + l]!;
      y[i * n + j] = sum;
    }
  return y;
}

/** A matrix [rows, columns] turned round: with it, matmul gives the gradients too. */
export function transpose(x: ArrayLike<number>, rows: number, columns: number): Float64Array {
  const [from, out] = [floats(x), new Float64Array(rows * columns)];
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) out[j * rows + i] = from[i * columns + j]!;
  return out;
}

/** A matrix in int8, worked out element by element: LLM.int8() as csrc/bnb.h defines it, with its fp32 steps. */
export function int8Rows(x: ArrayLike<number>, columns: number, threshold: number) {
  const rows = x.length / columns;
  const isOutlier = (value: number) => threshold > 0 && Math.abs(value) >= threshold;
  const outliers = [...Array(columns).keys()].filter((c) =>
    [...Array(rows).keys()].some((r) => isOutlier(x[r * columns + c]!)),
  );
  const codes = new Int8Array(x.length);
  const stats = new Float32Array(rows);
  for (let r = 0; r < rows; r++) {
    for (let i = r * columns; i < (r + 1) * columns; i++)
      if (!isOutlier(x[i]!)) stats[r] = Math.max(stats[r]!, Math.abs(x[i]!));
    for (let i = r * columns; i < (r + 1) * columns; i++)
      if (!outliers.includes(i % columns)) codes[i] = int8Code(x[i]!, stats[r]!);
  }
  return { codes, stats, outliers };
}

/** x · (1 / stats · 127) in fp32, to the nearest integer, ties to even. */
export function int8Code(x: number, stats: number): number {
  if (stats <= Math.fround(1e-36)) return 0;
  const scaled = Math.fround(x * Math.fround(Math.fround(1 / stats) * 127));
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const nearest = rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
  return Math.max(-127, Math.min(127, nearest));
}

/** sums · rowStats · columnStats / 127² + bias in fp32, before the last rounding. */
export function int8Output(sum: number, rowStats: number, columnStats: number, bias: number | undefined): number {
  const scale = Math.fround(rowStats * columnStats);
  const value = Math.fround(Math.fround(Math.fround(sum) * scale) * Math.fround(1 / 127 ** 2));
  return bias === undefined ? value : Math.fround(value + bias);
}

/** Layer normalisation of each row and its gradients, in float64. */
export function layerNorm(
  x: ArrayLike<number>,
  dy: ArrayLike<number>,
  weight: ArrayLike<number>,
  bias: ArrayLike<number>,
  columns: number,
  eps: number,
) {
  const [y, dx] = [new Float64Array(x.length), new Float64Array(x.length)];
  const [dWeight, dBias] = [new Float64Array(columns), new Float64Array(columns)];
  for (let row = 0; row < x.length; row += columns) {
    const values = Array.from({ length: columns }, (_, c) => x[row + c]!);
    const mean = values.reduce((sum, value) => sum + value, 0) / columns;
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / columns;
    const inverse = 1 / Math.sqrt(variance + eps);
    const n = values.map((value) => (value - mean) * inverse);
    const g = n.map((_, c) => dy[row + c]! * weight[c]!);
    const sum = g.reduce((total, value) => total + value, 0);
    const product = g.reduce((total, value, c) => total + value * n[c]!, 0);
    for (let c = 0; c < columns; c++) {
      y[row + c] = n[c]! * weight[c]! + bias[c]!;
      dx[row + c] = (g[c]! - sum / columns - (n[c]! * product) / columns) * inverse;
      dWeight[c]! += dy[row + c]! * n[c]!;
      dBias[c]! += dy[row + c]!;
    }
  }
  return { y, dx, dWeight, dBias };
}

/** ‖got − want‖ / ‖want‖. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  return distance(floats(got), floats(want));
}

function distance(got: Float64Array, want: Float64Array): number {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < want.length; i++) {
    error += (got[i]! - want[i]!) ** 2;
    norm += want[i]! ** 2;
  }
  return norm === 0 ? Math.sqrt(error) : Math.sqrt(error / norm);
}

/** What a function throws, which must be a BnbError; its code and message are for the test to look at. */
export function errorOf(action: () => unknown): { code: BnbErrorCode; message: string } {
  try {
    action();
  } catch (error) {
    if (error instanceof BnbError) return { code: error.code, message: error.message };
    throw error;
  }
  throw new Error("nothing was thrown");
}

/** An optimizer's rule; what is left out is as Adam's defaults, without decay or trust ratio. */
export interface ReferenceRule {
  kind: "adam" | "ademamix" | "momentum" | "lion" | "rmsprop" | "adagrad";
  lr: number;
  betas?: readonly number[];
  alpha?: number;
  eps?: number;
  weightDecay?: number;
  maxUnorm?: number;
}

/**
 * One step as the papers define it, in float64, in place; `states` are the averages, zeros at first, `t` counts from
 * 1.
 */
export function optimizerStep(
  rule: ReferenceRule,
  p: Float64Array,
  g: ArrayLike<number>,
  states: readonly Float64Array[],
  t: number,
): void {
  const { kind, lr, betas = [0.9, 0.999], alpha = 0, eps = 1e-8, weightDecay = 0, maxUnorm = 0 } = rule;
  const [b1, b2, b3] = betas as [number, number, number];
  const [s, v, slow] = states as [Float64Array, Float64Array, Float64Array];
  const [c1, c2] = [1 - b1 ** t, Math.sqrt(1 - b2 ** t)];
  const before = Math.hypot(...p);
  const decoupled = kind === "adam" || kind === "ademamix" || kind === "lion";
  const directions = p.map((value, i) => {
    const gradient = g[i]! + (decoupled ? 0 : weightDecay * value);
    if (kind === "lion") {
      const direction = Math.sign(b1 * s[i]! + (1 - b1) * gradient);
      s[i] = b2 * s[i]! + (1 - b2) * gradient;
      return direction;
    }
    if (kind === "rmsprop" || kind === "adagrad") {
      s[i] = kind === "rmsprop" ? b1 * s[i]! + (1 - b1) * gradient ** 2 : s[i]! + gradient ** 2;
      return gradient / (Math.sqrt(s[i]!) + eps);
    }
    if (kind === "momentum") {
      s[i] = t === 1 ? gradient : b1 * s[i]! + gradient;
      return s[i]!;
    }
    s[i] = b1 * s[i]! + (1 - b1) * gradient;
    v[i] = b2 * v[i]! + (1 - b2) * gradient ** 2;
    if (kind === "adam") return s[i]! / (Math.sqrt(v[i]!) + eps * c2);
    slow[i] = b3 * slow[i]! + (1 - b3) * gradient;
    return (s[i]! / c1 + alpha * slow[i]!) / (Math.sqrt(v[i]!) / c2 + eps);
  });
  const unorm = Math.hypot(...directions) * (kind === "adam" ? c2 / c1 : 1);
  const trust = maxUnorm > 0 && unorm > maxUnorm * before ? (maxUnorm * before) / unorm : 1;
  const rate = trust * (kind === "adam" ? (lr * c2) / c1 : lr);
  for (const [i, direction] of directions.entries())
    p[i] = p[i]! * (decoupled ? 1 - lr * weightDecay : 1) - rate * direction;
}
