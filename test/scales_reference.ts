// The answers that scales of least squared error are held to: the search of metal/scales_rule.h with its fp32
// steps, and the best that any scale can do, in float64.
import { coder } from "./reference.ts";

const f = Math.fround;
const lanesCount = 32;
const tried = 32;
const refined = 3;

interface Trial {
  scale: number;
  error: number;
  refined: number;
  refinedError: number;
}

/** Halves are added until one lane is left. */
function sumLanes(lanes: Float32Array): number {
  for (let half = lanesCount / 2; half >= 1; half /= 2)
    for (let lane = 0; lane < half; lane++) lanes[lane]! += lanes[lane + half]!;
  return lanes[0]!;
}

function tryScale(
  x: Float32Array,
  weights: Float32Array,
  values: Float32Array,
  codeOf: (x: number) => number,
  scale: number,
): Trial {
  const [errors, products, squares] = [0, 1, 2].map(() => new Float32Array(lanesCount)) as [
    Float32Array,
    Float32Array,
    Float32Array,
  ];
  const inverse = f(1 / scale);
  for (let i = 0; i < x.length; i++) {
    const [weight, lane] = [weights[i]!, i % lanesCount];
    const value = values[codeOf(Math.max(-1, Math.min(1, f(x[i]! * inverse))))]!;
    const error = f(x[i]! - f(value * scale));
    errors[lane]! += f(f(weight * error) * error);
    products[lane]! += f(f(weight * error) * value);
    squares[lane]! += f(f(weight * value) * value);
  }
  const [error, product, square] = [sumLanes(errors), sumLanes(products), sumLanes(squares)];
  const change = square > 0 ? f(product / square) : 0;
  return { scale, error, refined: f(scale + change), refinedError: f(error - f(product * change)) };
}

/** The scales to try: the first over the largest magnitude, and each over the one before. */
export function rangeOf(values: Float32Array): { first: number; ratio: number } {
  const bits = Math.log2(values.length);
  const first = f([0.2, 0.25, 0.3, 0.6, 0.8, 0.9, 0.95][bits - 2]!);
  return { first, ratio: f(f(f(bits < 5 ? 1.6 : 2) / first) ** (1 / (tried - 1))) };
}

/** The scale of one block, whose largest weighed magnitude is an ordinary number. */
function scaleOf(x: Float32Array, weights: Float32Array, values: Float32Array): number {
  const codeOf = coder(values);
  const absmax = x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const magnitude = x.reduce((most, value, i) => (weights[i]! > 0 ? Math.max(most, Math.abs(value)) : most), 0);
  if (!(magnitude > f(1e-38))) return absmax;
  const unit = 2 ** -Math.floor(Math.log2(magnitude));
  const scaled = x.map((value, i) => (weights[i]! > 0 ? value * unit : 0));
  const attempt = (scale: number) => tryScale(scaled, weights, values, codeOf, scale);

  const { first, ratio } = rangeOf(values);
  const best = attempt(absmax * unit);
  best.error = f(best.error * f(0.9999));
  if (best.refined <= 0) best.refined = best.scale;
  let next = f(magnitude * unit * first);
  for (let i = 0; i < tried + refined; i++) {
    const trial = attempt(i < tried ? next : best.refined);
    next = f(next * ratio);
    if (trial.error < best.error) [best.scale, best.error] = [trial.scale, trial.error];
    if (trial.refinedError < best.refinedError && trial.refined > 0)
      [best.refined, best.refinedError] = [trial.refined, trial.refinedError];
  }
  return best.scale === absmax * unit ? absmax : best.scale / unit;
}

/**
 * The scales that the library finds, bit for bit. @param importance of the columns, where they do not weigh the
 * same
 */
export function leastSquaresScales(
  x: Float32Array,
  values: Float32Array,
  blocksize: number,
  importance?: ArrayLike<number>,
): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: Math.ceil(x.length / blocksize) }, (_, block) => {
    const part = x.subarray(block * blocksize, (block + 1) * blocksize);
    return scaleOf(part, weightsOf(part.length, block * blocksize, importance), values);
  });
}

/** The weights of a block's elements. A power of two makes no difference, so the library's is left out. */
function weightsOf(length: number, begin: number, importance?: ArrayLike<number>): Float32Array {
  return Float32Array.from({ length }, (_, i) => (importance ? importance[(begin + i) % importance.length]! : 1));
}

/**
 * The smallest error that any positive scale gives a block: codes change at finitely many scales only, and between two
 * of them least squares have one answer.
 */
export function leastError(x: ArrayLike<number>, weights: ArrayLike<number>, values: Float32Array): number {
  const sorted = Float64Array.from(values).sort();
  const middles = [...sorted.subarray(1)].map((value, i) => (value + sorted[i]!) / 2);
  const breaks = Array.from(x).flatMap((value) => middles.map((middle) => value / middle));
  const scales = breaks.filter((scale) => scale > 0 && Number.isFinite(scale)).sort((a, b) => a - b);
  const total = Array.from(x).reduce((sum, value, i) => sum + weights[i]! * value ** 2, 0);
  let most = 0;
  for (let at = 0; at < scales.length; at++) {
    const scale = at + 1 < scales.length ? (scales[at]! + scales[at + 1]!) / 2 : scales[at]! * 2;
    let [product, square] = [0, 0];
    for (let i = 0; i < x.length; i++) {
      const value = sorted[middles.filter((middle) => x[i]! / scale > middle).length]!;
      product += weights[i]! * x[i]! * value;
      square += weights[i]! * value ** 2;
    }
    if (product > 0) most = Math.max(most, product ** 2 / square);
  }
  return total - most;
}
