// Hopper's own kernels of cuda/ by themselves on the simulator, against float64: layouts, ragged sizes, and threads in
// any order.
import { ptr } from "bun:ffi";
import { describe, expect, test } from "bun:test";
import { normal, wave } from "../cases.ts";
import { kernelCodes, Store } from "../metal/arguments.ts";
import { launch, type Run } from "../metal/launch.ts";
import { relativeError, transpose } from "../reference.ts";
import {
  bounds,
  type Case,
  fast,
  floatsOf,
  halves,
  linear8,
  nf4,
  product,
  simulates,
  summed,
  weight,
} from "./products.ts";

/** A matrix as a kernel finds it described: see nv_tensor in test/metal/runtime/hopper.h. */
function described(matrix: Uint16Array | Uint8Array, columns: number, rows: number): Uint32Array {
  const size = matrix.BYTES_PER_ELEMENT;
  const words = new Uint32Array(32);
  new BigUint64Array(words.buffer).set([ptr(matrix), columns, rows, columns * size].map(BigInt));
  words.set(size === 2 ? [2, 64, 64, 7] : [1, 32, 128, 1], 8);
  return words;
}

interface Codes extends Case {
  splits?: number;
  /** Pairs of threadgroups, each of which takes one tile after the other. */
  pairs?: number;
}

describe.skipIf(!simulates)("Hopper's products with 4-bit codes", () => {
  const tiles = { 64: [8, 16], 128: [8, 8], 256: [4, 8] } as const; // stages, and simdgroups that multiply

  function check(rows: keyof typeof tiles, one: Codes): void {
    const { m, n, k, block = 64, nested = false, bias = false, dtype = "bfloat16", splits = 1, run = fast } = one;
    const w = weight(n, k, block, nested);
    const x = halves(wave(m * k, 3), dtype);
    const [steps, [stages, simdgroups]] = [Math.ceil(k / 64), tiles[rows]];
    const y = splits > 1 ? new Float32Array(splits * m * n).fill(Number.NaN) : new Uint16Array(m * n).fill(0xffff);
    const offsets = normal(n, 5);
    launch({
      ...{ family: "matmul_hopper", kernel: `matmul_hopper_${dtype === "float16" ? "f16" : "bf16"}_${rows}`, ...run },
      args: [
        ...[...described(x.bits, k, m), ...described(w.codes, k / 2, n)],
        ...[m, n, k, Math.ceil(steps / splits), ...w.layout, splits, ...Array(5).fill(0)],
      ],
      ...{ group: 32 * (4 + simdgroups), large: true },
      shared: stages * (rows * 128 + simdgroups * 512) + 32768 + simdgroups * 2048 + 1024 + 256,
      buffers: [x.bits, w.codes, w.absmax, w.outer, kernelCodes(nf4), kernelCodes(linear8), offsets, y],
      constants: [0, splits > 1 ? Store.float32 : Store[dtype], Number(nested), Number(block === 32), Number(bias)],
      ...{ behind: w.behind, grid: [2 * (one.pairs ?? 1), 1, 1] },
    });
    const want = product(x.values, w.values, bias ? offsets : undefined, m, n, k);
    const got = y instanceof Float32Array ? summed(y, splits) : floatsOf(y, dtype);
    expect(relativeError(got, want)).toBeLessThan(bounds[dtype]);
  }

  test.each<Codes>([
    { m: 70, n: 136, k: 256 },
    { m: 30, n: 129, k: 192, nested: true, bias: true, dtype: "float16" },
    { m: 65, n: 24, k: 96, block: 32, bias: true },
    { m: 3, n: 8, k: 512, block: 256, nested: true },
    { m: 260, n: 264, k: 128, pairs: 2, dtype: "float16" },
    { m: 66, n: 304, k: 32, block: 32, nested: true },
  ])("x [$m, $k] · w [$n, $k]ᵀ, blocks of $block", (one) => {
    for (const rows of [64, 128, 256] as const) check(rows, one);
  });

  test("a ring that is longer than its stages, in parts", () => {
    check(64, { m: 9, n: 40, k: 1856, splits: 2 });
    check(128, { m: 12, n: 40, k: 1280, splits: 2, nested: true, block: 128 });
    check(256, { m: 20, n: 24, k: 960, splits: 3, block: 32 });
  });

  test("nothing is read before it has come, in any order of threads", () => {
    for (const seed of [1, 2]) {
      const run: Run = { mode: "check", seed };
      check(64, { m: 70, n: 24, k: 896, bias: true, run });
      check(256, { m: 24, n: 136, k: 384, nested: true, block: 32, run });
    }
  });
});

interface Layout extends Codes {
  /** Whether a is stored [k, m], and b [k, n]. */
  transposed?: readonly [boolean, boolean];
}

describe.skipIf(!simulates)("Hopper's dense products, whose tiles are brought", () => {
  function check(wide: number, one: Layout): void {
    const { m, n, k, dtype = "bfloat16", bias = false, transposed = [false, false], splits = 1, run = fast } = one;
    const [x, w] = [wave(m * k, 3), normal(n * k, 4)];
    const a = halves(transposed[0] ? Float32Array.from(transpose(x, m, k)) : x, dtype);
    const b = halves(transposed[1] ? Float32Array.from(transpose(w, n, k)) : w, dtype);
    const offsets = normal(n, 5);
    const y = splits > 1 ? new Float32Array(splits * m * n).fill(Number.NaN) : new Uint16Array(m * n).fill(0xffff);
    const steps = Math.ceil(k / 64);
    launch({
      ...{ family: "dense_hopper", kernel: `dense_hopper_${dtype === "float16" ? "f16" : "bf16"}_${wide}`, ...run },
      args: [
        ...described(a.bits, transposed[0] ? m : k, transposed[0] ? k : m),
        ...described(b.bits, transposed[1] ? n : k, transposed[1] ? k : n),
        ...[m, n, steps, Math.ceil(steps / splits), splits],
        ...Array(11).fill(0),
      ],
      constants: [
        ...[0, splits > 1 ? Store.float32 : Store[dtype], 0, 0, Number(bias)],
        ...[Number(transposed[0]), Number(transposed[1]), Number(m <= 128)],
      ],
      ...{ buffers: [offsets, y], grid: [2 * (one.pairs ?? 1), 1, 1], group: 384, large: true },
      shared: 12 * 128 * 128 + 8 * 2048 + 256,
    });
    const [of, by] = [halves(x, dtype), halves(w, dtype)];
    const want = product(of.values, Float64Array.from(by.values), bias ? offsets : undefined, m, n, k);
    const got = y instanceof Float32Array ? summed(y, splits) : floatsOf(y, dtype);
    expect(relativeError(got, want)).toBeLessThan(bounds[dtype]);
  }

  test.each<Layout>([
    { m: 72, n: 136, k: 192 },
    { m: 130, n: 41, k: 72, dtype: "float16", bias: true },
    { m: 136, n: 264, k: 130, transposed: [true, true], bias: true },
    { m: 40, n: 72, k: 65, transposed: [true, true], dtype: "float16" },
    { m: 200, n: 48, k: 72, transposed: [false, true], pairs: 2 },
    { m: 264, n: 19, k: 40, transposed: [true, false], bias: true },
  ])("a [$m, $k] · b [$n, $k]ᵀ, transposed $transposed", (one) => {
    check(128, one);
    check(256, one);
  });

  test("a ring that is longer than its stages, in parts", () => {
    check(128, { m: 9, n: 40, k: 1100, transposed: [false, true], splits: 2 });
    check(256, { m: 136, n: 40, k: 704, splits: 3, dtype: "float16", pairs: 2 });
  });

  test("nothing is read before it has come, in any order of threads", () => {
    for (const seed of [1, 2]) {
      const run: Run = { mode: "check", seed };
      check(128, { m: 136, n: 24, k: 520, run });
      check(256, { m: 24, n: 24, k: 330, transposed: [true, true], bias: true, run });
    }
  });
});
