// Owns the error that a blockwise format should have: the expectation for normally distributed weights, by integration.

const density = (x: number) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);

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
  const sorted = Float64Array.from(values).sort();
  const steps = 4000;
  const range = 7;
  const h = range / steps;

  const off = (x: number) => {
    let best = Number.POSITIVE_INFINITY;
    for (const value of sorted) best = Math.min(best, (x - value) ** 2);
    return best;
  };
  // The squared distance from the nearest value, over [-1, 1] on a grid that every m shares.
  const cells = 8192;
  const distances = Float64Array.from({ length: cells }, (_, i) => off(-1 + (2 * (i + 0.5)) / cells));

  let expected = 0;
  let inside = 0; // 2Φ(m) − 1
  for (let step = 0; step < steps; step++) {
    const m = (step + 0.5) * h;
    inside += 2 * density(m) * h;
    const weight = 2 * blocksize * density(m) * inside ** (blocksize - 1) * h;
    if (weight < 1e-12) continue;
    let sum = 0;
    for (let i = 0; i < cells; i++) sum += distances[i]! * density(m * (-1 + (2 * (i + 0.5)) / cells));
    const others = (sum * m ** 3 * 2) / cells / inside;
    const largest = (m * m * (off(1) + off(-1))) / 2;
    expected += weight * (((blocksize - 1) * others + largest) / blocksize);
  }
  return Math.sqrt(expected);
}
