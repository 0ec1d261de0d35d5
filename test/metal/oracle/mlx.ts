// Holds the translator to Apple's compiler: MLX's quantised products through our translator against float64, and
// against what Apple's compiler made of the very same source, bit for bit.
//
// Run by `bun run test:oracle`, never by `bun test`: it downloads.
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { compile, type MetalLibrary, type RunOptions, type View } from "../simulator.ts";
import { loadAir } from "./air.ts";
import { wheel } from "./download.ts";
import { MetalLib } from "./metallib.ts";

const folder = wheel("mlx-metal", "0.32.4", "macosx_14_0_arm64");
const apple = new MetalLib(join(folder, "mlx/lib/mlx.metallib"));

const types = { float: "float", float16_t: "half" } as const;
type Type = keyof typeof types;

const kernels = "mlx/backend/metal/kernels";
const instance = (host: string, kernel: string) =>
  `template [[host_name("${host}")]] [[kernel]] decltype(${kernel}) ${kernel};\n`;
const vector = (type: Type) => `affine_qmv_fast_${type}_gs_64_b_4_batch_0_pr_0_hgs_0_r_4`;
const matrix = (type: Type) => `affine_qmm_t_${type}_gs_64_b_4_alN_true_batch_0`;

const source = `#include <metal_stdlib>
#include "${kernels}/utils.h"
#include "${kernels}/steel/gemm/gemm.h"
#include "${kernels}/quantized_utils.h"
#include "${kernels}/quantized.h"
${(Object.keys(types) as Type[])
  .map(
    (type) =>
      instance(vector(type), `affine_qmv_fast<${types[type]}, 64, 4, false, false, false, 4>`) +
      instance(matrix(type), `affine_qmm_t<${types[type]}, 64, 4, true, false>`),
  )
  .join("")}`;

const options = {
  name: "mlx.metal",
  dialect: "any",
  includes: [join(import.meta.dir, "shadow"), join(folder, "mlx/include")],
} as const;

/** Weights w[n, k] = scale * code + bias in groups of 64, and x[m, k]. */
function problem(type: Type, m: number, n: number, k: number) {
  const array = (count: number, value: (i: number) => number): View =>
    type === "float"
      ? Float32Array.from({ length: count }, (_, i) => value(i))
      : Float16Array.from({ length: count }, (_, i) => value(i));
  let state = 12345;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const words = Uint32Array.from({ length: (n * k) / 8 }, () => Math.floor(random() * 2 ** 32));
  const scales = array((n * k) / 64, () => 0.01 + random() * 0.1);
  const biases = array((n * k) / 64, () => random() - 0.5);
  const x = array(m * k, () => random() * 2 - 1);
  const values = (view: View) => view as Float32Array;
  const expected = new Float64Array(m * n);
  for (let row = 0; row < n; row++) {
    for (let column = 0; column < k; column++) {
      const at = row * k + column;
      const code = (words[at >> 3]! >>> (4 * (at & 7))) & 15;
      const weight = values(scales)[at >> 6]! * code + values(biases)[at >> 6]!;
      for (let i = 0; i < m; i++) expected[i * n + row]! += weight * values(x)[i * k + column]!;
    }
  }
  return { words, scales, biases, x, y: array(m * n, () => Number.NaN), expected };
}

/** The root of the mean square of what is wrong, beside that of what is right. */
function relativeError(actual: ArrayLike<number>, expected: Float64Array): number {
  let wrong = 0;
  let right = 0;
  for (let i = 0; i < expected.length; i++) {
    wrong += (actual[i]! - expected[i]!) ** 2;
    right += expected[i]! ** 2;
  }
  return Math.sqrt(wrong / right);
}

const int = (value: number) => new Int32Array([value]);
/** Shapes and strides of batches, which these kernels take and do not read. */
const unread = (from: number, count: number) =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [from + i, new BigInt64Array(1)]));

function runVector(library: MetalLibrary, type: Type, n: number, k: number, extra: Partial<RunOptions> = {}) {
  const p = problem(type, 1, n, k);
  const buffers = { 0: p.words, 1: p.scales, 2: p.biases, 3: p.x, 4: p.y };
  const args = { 5: int(k), 6: int(n), 7: int(0), ...unread(8, 7) };
  library.run(vector(type), { buffers, args, grid: [1, n / 8, 1], group: [32, 2, 1], ...extra });
  return p;
}

function runMatrix(
  library: MetalLibrary,
  type: Type,
  m: number,
  n: number,
  k: number,
  extra: Partial<RunOptions> = {},
) {
  const p = problem(type, m, n, k);
  const buffers = { 0: p.words, 1: p.scales, 2: p.biases, 3: p.x, 4: p.y };
  const args = { 5: int(k), 6: int(n), 7: int(m), 8: int(0), ...unread(9, 7) };
  library.run(matrix(type), { buffers, args, grid: [n / 32, Math.ceil(m / 32), 1], group: [32, 2, 2], ...extra });
  return p;
}

describe.each(Object.keys(types) as Type[])("MLX's affine 4-bit products of %s", (type) => {
  const translated = compile(source, options);
  const checked = compile(source, { ...options, mode: "check" });
  const tolerance = type === "float" ? 2e-6 : 1e-3;

  test("vector: close to float64, clean when checked, and Apple's bits", () => {
    const ours = runVector(translated, type, 64, 1024);
    expect(relativeError(ours.y as Float32Array, ours.expected)).toBeLessThan(tolerance);
    runVector(checked, type, 64, 1024, { fresh: [4], seed: 5 });
    const theirs = runVector(loadAir(vector(type), apple.kernel(vector(type))), type, 64, 1024);
    expect(new Uint8Array(theirs.y.buffer)).toEqual(new Uint8Array(ours.y.buffer));
  });

  test.each([32, 45])("matrix of %d rows: close to float64, clean when checked, and Apple's bits", (m) => {
    const ours = runMatrix(translated, type, m, 64, 256);
    expect(relativeError(ours.y as Float32Array, ours.expected)).toBeLessThan(tolerance);
    runMatrix(checked, type, m, 64, 256, { fresh: [4], seed: 5 });
    const theirs = runMatrix(loadAir(matrix(type), apple.kernel(matrix(type))), type, m, 64, 256);
    expect(new Uint8Array(theirs.y.buffer)).toEqual(new Uint8Array(ours.y.buffer));
  });
});
