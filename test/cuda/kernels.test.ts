// The kernels of cuda/ for every GPU by themselves on the simulator, against float64: every format, ragged sizes,
// checked accesses.
import { describe, expect, test } from "bun:test";
import { normal, wave } from "../cases.ts";
import { kernelCodes, Store, scaleArguments } from "../metal/arguments.ts";
import { launch } from "../metal/launch.ts";
import { relativeError, transpose } from "../reference.ts";
import {
  bounds,
  type Case,
  checked,
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

describe.skipIf(!simulates)("a few rows by 4-bit codes", () => {
  function check(
    kernel: string,
    tall: number,
    { m, n, k, block = 64, nested = false, bias = false, dtype = "bfloat16", run = fast }: Case,
  ) {
    const w = weight(n, k, block, nested);
    const x = halves(wave(m * k, 3), dtype);
    const y = new Uint16Array(m * n).fill(0xffff);
    const offsets = normal(n, 5);
    const of128 = block === 32 ? 4 : block === 64 ? 2 : 1;
    const buffers = [x.bits, w.codes, w.absmax, w.outer, kernelCodes(nf4), kernelCodes(linear8), offsets, y];
    launch({
      ...{ family: "matmul_few", kernel, args: [m, n, k, k, ...w.layout], buffers, large: true, ...run },
      constants: [Store[dtype], Store[dtype], Number(nested), of128, Number(bias), Number(k % 256 === 0)],
      ...{ behind: w.behind, grid: [Math.ceil(n / (16 * tall)), 1, 1], group: 256 },
    });
    const want = product(x.values, w.values, bias ? offsets : undefined, m, n, k);
    expect(relativeError(floatsOf(y, dtype), want)).toBeLessThan(bounds[dtype]);
  }

  test.each<Case>([
    { m: 1, n: 40, k: 512 },
    { m: 4, n: 33, k: 512, dtype: "float16", bias: true },
    { m: 3, n: 40, k: 2560, nested: true },
    { m: 2, n: 17, k: 512, block: 32, dtype: "float16" },
    { m: 2, n: 17, k: 768, block: 32, nested: true, bias: true },
    { m: 7, n: 40, k: 1024, block: 128 },
    { m: 8, n: 21, k: 1024, block: 256, nested: true },
    { m: 8, n: 21, k: 4096, block: 4096, dtype: "float16" },
    { m: 3, n: 20, k: 320, bias: true },
    { m: 2, n: 20, k: 96, block: 32 },
    { m: 8, n: 18, k: 128, block: 128 },
    { m: 4, n: 18, k: 64, dtype: "float16" },
  ])("x [$m, $k] · w [$n, $k]ᵀ, blocks of $block, nested $nested, $dtype", (one) => {
    check("matmul_few_1_1_8", 1, one);
    check("matmul_few_1_2_8_choose", 2, one);
    const most = one.block === 32 ? 2 : (one.block ?? 64) === 64 ? 4 : 8;
    check("matmul_few_2_2_8", 2, { ...one, m: one.m + most });
    check("matmul_few_4_2_8", 2, { ...one, m: 4 * most });
  });

  test.each<Case>([
    { m: 3, n: 20, k: 384, nested: true },
    { m: 1, n: 40, k: 2304 },
  ])("nothing is read or written out of place, or without order: k $k", (one) => {
    check("matmul_few_1_2_8_choose", 2, { ...one, run: checked });
    check("matmul_few_2_2_8", 2, { ...one, run: checked });
  });
});

describe.skipIf(!simulates)("many rows by 4-bit codes", () => {
  const kernels = [
    { kernel: "matmul_many_2_4_1_4_4", rows: 32, columns: 128, threads: 128, stages: 4 },
    { kernel: "matmul_many_4_4_2_4_3", rows: 128, columns: 128, threads: 256, stages: 3 },
  ];

  function check({ kernel, rows, columns, threads, stages }: (typeof kernels)[number], one: Case, splits = 1): void {
    const { m, n, k, block = 64, nested = false, bias = false, dtype = "bfloat16", run = fast } = one;
    const w = weight(n, k, block, nested);
    const x = halves(wave(m * k, 3), dtype);
    const split = splits > 1 ? Math.ceil(k / splits / 64) * 64 : Math.ceil(k / 64) * 64;
    const y = splits > 1 ? new Float32Array(splits * m * n).fill(Number.NaN) : new Uint16Array(m * n).fill(0xffff);
    const offsets = normal(n, 5);
    launch({
      ...{ family: "matmul_many", kernel, args: [m, n, k, split, ...w.layout], large: true, ...run },
      buffers: [x.bits, w.codes, w.absmax, w.outer, kernelCodes(nf4), kernelCodes(linear8), offsets, y],
      constants: [Store[dtype], splits > 1 ? Store.float32 : Store[dtype], Number(nested), 0, Number(bias)],
      ...{ behind: w.behind, grid: [Math.ceil(n / columns), Math.ceil(m / rows), splits], group: threads },
      shared: 32768 + 1024 + stages * rows * 144,
    });
    const got = y instanceof Float32Array ? summed(y, splits) : floatsOf(y, dtype);
    const want = product(x.values, w.values, bias ? offsets : undefined, m, n, k);
    expect(relativeError(got, want)).toBeLessThan(bounds[dtype]);
  }

  test.each<Case>([
    { m: 40, n: 136, k: 256 },
    { m: 33, n: 130, k: 192, nested: true, dtype: "float16", bias: true },
    { m: 130, n: 41, k: 96, block: 32, bias: true },
    { m: 17, n: 41, k: 512, block: 256, nested: true },
    { m: 70, n: 24, k: 320, block: 64, dtype: "float16" },
  ])("x [$m, $k] · w [$n, $k]ᵀ", (one) => {
    for (const kernel of kernels) check(kernel, one);
  });

  test("a sum is split into parts", () => {
    check(kernels[0]!, { m: 20, n: 40, k: 704 }, 3);
    check(kernels[1]!, { m: 20, n: 40, k: 512, nested: true, dtype: "float16" }, 2);
  });

  test("nothing is read or written out of place, or without order", () => {
    check(kernels[0]!, { m: 33, n: 41, k: 160, block: 32, nested: true, bias: true, run: checked });
  });
});

describe.skipIf(!simulates)("a row by codes of a byte", () => {
  test.each<Case>([
    { m: 1, n: 41, k: 64 },
    { m: 1, n: 130, k: 1552, block: 16, bias: true, dtype: "float16" },
    { m: 1, n: 70, k: 1024, block: 4096, run: checked, bias: true },
  ])("w [$n, $k], blocks of $block", ({ n, k, block = 64, bias = false, dtype, run = fast }) => {
    const codes = Uint8Array.from({ length: n * k }, (_, i) => (i * 2654435761) >>> 13);
    const scales = Float32Array.from({ length: Math.ceil((n * k) / block) }, (_, i) => 0.3 + 0.2 * Math.sin(i));
    const w = Float64Array.from(codes, (code, i) => linear8[code]! * scales[Math.floor(i / block)]!);
    const x = dtype ? halves(wave(k, 3), dtype) : { bits: wave(k, 3), values: wave(k, 3) };
    const offsets = normal(n, 5);
    const y = dtype ? new Uint16Array(n).fill(0xffff) : new Float32Array(n).fill(Number.NaN);
    const unused = new Float32Array(1);
    const table = kernelCodes(linear8);
    launch({
      ...{ family: "matmul_bytes", kernel: "matmul_bytes", large: true, grid: [2, 1, 1], group: 512, ...run },
      args: [1, n, k, k, ...scaleArguments(block)],
      buffers: [x.bits, codes, scales, unused, table, table, offsets, y],
      constants: [dtype ? Store[dtype] : Store.float32, 0, 0, 0, Number(bias)],
    });
    const got = y instanceof Float32Array ? y : floatsOf(y, dtype!);
    const want = product(x.values, w, bias ? offsets : undefined, 1, n, k);
    expect(relativeError(got, want)).toBeLessThan(dtype ? bounds.float16 : 2e-6);
  });
});

describe.skipIf(!simulates)("products of dense matrices", () => {
  const kernels = [
    { kernel: "matmul_dense_half_64", side: 64, shared: 4 * 128 * 128 },
    { kernel: "matmul_dense_half_128", side: 128, shared: 3 * 256 * 128 },
  ];

  /** How the factors are stored: as they are multiplied, or the other way. */
  interface Stored {
    a?: boolean;
    b?: boolean;
  }

  function check(
    { kernel, side, shared }: (typeof kernels)[number],
    { m, n, k, dtype = "bfloat16", bias = false, run = fast }: Case,
    { a: turnA = false, b: turnB = false }: Stored = {},
    splits = 1,
  ): void {
    const a = halves(wave(m * k, 3), dtype);
    const b = halves(normal(n * k, 4), dtype);
    const offsets = normal(n, 5);
    const split = splits > 1 ? Math.ceil(k / splits / 64) * 128 : 2 * k;
    const y = splits > 1 ? new Float32Array(splits * m * n).fill(Number.NaN) : new Uint16Array(m * n).fill(0xffff);
    const [unused, turned] = [
      new Float32Array(1),
      (x: Float32Array, rows: number) => Float32Array.from(transpose(x, rows, k)),
    ];
    launch({
      ...{ family: "matmul_dense", kernel, args: [m, n, 2 * k, split], large: true, shared, group: 128, ...run },
      buffers: [
        turnA ? halves(turned(a.values, m), dtype).bits : a.bits,
        turnB ? halves(turned(b.values, n), dtype).bits : b.bits,
        ...[unused, unused, offsets, y],
      ],
      constants: [Store[dtype], Store[splits > 1 ? "float32" : dtype], 0, Number(turnA), Number(bias), Number(turnB)],
      grid: [Math.ceil(m / side) * Math.ceil(n / side), 1, splits],
    });
    const want = product(a.values, Float64Array.from(b.values), bias ? offsets : undefined, m, n, k);
    const got = y instanceof Float32Array ? summed(y, splits) : floatsOf(y, dtype);
    expect(relativeError(got, want)).toBeLessThan(splits > 1 ? 2e-6 : bounds[dtype]);
  }

  test.each<Case>([
    { m: 70, n: 136, k: 192 },
    { m: 130, n: 41, k: 72, dtype: "float16", bias: true },
    { m: 1, n: 7, k: 8 },
  ])("half precision: a [$m, $k] · b [$n, $k]ᵀ", (one) => {
    for (const kernel of kernels) check(kernel, one);
  });

  /** Only a factor that is stored as it is multiplied needs a depth of eighths. */
  test.each<Case & Stored>([
    { m: 70, n: 136, k: 200, a: false, b: true },
    { m: 9, n: 24, k: 8, a: false, b: true, dtype: "float16", bias: true },
    { m: 1, n: 200, k: 72, a: false, b: true },
    { m: 72, n: 41, k: 136, a: true, b: false },
    ...[1, 7, 63, 65, 130].map((k) => ({ m: 136, n: 72, k, a: true, b: true })),
    { m: 8, n: 264, k: 193, a: true, b: true, dtype: "float16", bias: true },
  ])("half precision: a [$m, $k] · b [$n, $k]ᵀ, stored the other way $a and $b", (one) => {
    for (const kernel of kernels) check(kernel, one, one);
  });

  test("a sum is split into parts, however factors are stored", () => {
    check(kernels[0]!, { m: 20, n: 40, k: 520 }, {}, 3);
    check(kernels[0]!, { m: 20, n: 40, k: 520 }, { b: true }, 3);
    check(kernels[1]!, { m: 40, n: 136, k: 333 }, { a: true, b: true }, 2);
  });

  test("int8, as it is and scaled", () => {
    const [m, n, k] = [67, 43, 208];
    const a = Int8Array.from({ length: m * k }, (_, i) => (i * 40503) >> 5);
    const b = Int8Array.from({ length: n * k }, (_, i) => (i * 30011) >> 4);
    const exact = product(Float32Array.from(a), Float64Array.from(b), undefined, m, n, k);
    const [rowStats, columnStats] = [normal(m, 1), normal(n, 2)];
    const scaled = exact.map((v, i) => (v * rowStats[Math.floor(i / n)]! * columnStats[i % n]!) / 127 ** 2);
    const unused = new Float32Array(1);
    for (const { kernel, side, shared } of kernels) {
      const whole = new Int32Array(m * n);
      const half = new Uint16Array(m * n);
      const common = {
        ...{ family: "matmul_dense", kernel: kernel.replace("half", "int8"), args: [m, n, k, k], large: true, shared },
        ...{ grid: [Math.ceil(m / side) * Math.ceil(n / side), 1, 1] as const, group: 128, ...fast },
      };
      launch({
        ...common,
        buffers: [a, b, rowStats, columnStats, unused, whole],
        constants: [0, Store.int32, 0, 0, 0, 0],
      });
      expect(whole).toEqual(Int32Array.from(exact));
      launch({
        ...common,
        buffers: [a, b, rowStats, columnStats, unused, half],
        constants: [0, Store.float16, 1, 0, 0, 0],
      });
      expect(relativeError(floatsOf(half, "float16"), scaled)).toBeLessThan(bounds.float16);
    }
  });

  test("nothing is read or written out of place, or without order", () => {
    check(kernels[0]!, { m: 66, n: 9, k: 40, run: checked });
    check(kernels[0]!, { m: 66, n: 72, k: 40, run: checked }, { b: true });
    check(kernels[0]!, { m: 72, n: 8, k: 67, run: checked }, { a: true, b: true });
    check(kernels[1]!, { m: 8, n: 136, k: 65, run: checked, dtype: "float16" }, { a: true, b: true });
  });
});
