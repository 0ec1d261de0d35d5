// The error that a blockwise format should have: the expectation for normally distributed weights, by integration.

const density = (x: number) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);

/** Gauss and Legendre's eight nodes on [-1, 1] and their weights, of which each stands for two: ±node. */
const nodes = [0.1834346424956498, 0.525532409916329, 0.7966664774136267, 0.9602898564975363];
const weights = [0.362683783378362, 0.3137066458778873, 0.2223810344533745, 0.1012285362903763];

/** ∫ (x − value)² φ(x) dx from a to b. */
function moment(value: number, a: number, b: number): number {
  const [middle, half] = [(a + b) / 2, (b - a) / 2];
  const at = (x: number) => (x - value) ** 2 * density(x);
  let sum = 0;
  for (const [i, node] of nodes.entries()) sum += weights[i]! * (at(middle - half * node) + at(middle + half * node));
  return sum * half;
}

const known = new Map<string, number>();

/**
 * The expected relative error ‖w − quantised(w)‖ / ‖w‖ of weights that are independently normal.
 *
 * In a block of `blocksize` weights the largest magnitude m has the density 2·b·φ(m)·(2Φ(m) − 1)^(b−1). Given m, one
 * weight is ±m and the others are normal within [−m, m]; each of those is off by its distance from the nearest of the
 * codebook's values times m. The weight that is the largest is off by what the codebook lacks of ±1.
 *
 * @param values the codebook, in any order
 */
export function expectedError(values: Float32Array, blocksize: number): number {
  const key = `${blocksize} ${values.join()}`;
  const result =
    known.get(key) ??
    integrate(
      [...values].sort((a, b) => a - b),
      blocksize,
    );
  known.set(key, result);
  return result;
}

function integrate(sorted: readonly number[], blocksize: number): number {
  // What is nearest to a value reaches to the middle between it and the next, within [-1, 1].
  const cells = sorted
    .map((value, i): [value: number, from: number, to: number] => [
      value,
      i === 0 ? -1 : Math.max(-1, (sorted[i - 1]! + value) / 2),
      i === sorted.length - 1 ? 1 : Math.min(1, (value + sorted[i + 1]!) / 2),
    ])
    .filter(([, from, to]) => from < to);
  const off = (x: number) => Math.min(...sorted.map((value) => (x - value) ** 2));
  const ends = (off(1) + off(-1)) / 2;

  const steps = 4000;
  const h = 7 / steps;
  let expected = 0;
  let inside = 0; // 2Φ(m) − 1
  for (let step = 0; step < steps; step++) {
    const m = (step + 0.5) * h;
    inside += 2 * density(m) * h;
    const weight = 2 * blocksize * density(m) * inside ** (blocksize - 1) * h;
    if (weight < 1e-9) continue;
    let others = 0;
    for (const [value, from, to] of cells) others += moment(m * value, m * from, m * to);
    expected += (weight * (((blocksize - 1) * others) / inside + m * m * ends)) / blocksize;
  }
  return Math.sqrt(expected);
}
