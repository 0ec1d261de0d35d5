// The test of LLM.int8()'s kernels by themselves, on the simulator: ragged sizes and the largest sums, against
// answers worked out in float64 (or in fp32 where bytes must match), fast and with every access checked.
import { describe, expect, test } from "bun:test";
import type { FloatDType } from "../../src/index.ts";
import { floatDTypes, normal } from "../cases.ts";
import { int8Code, int8Output, int8Rows, matmul, round } from "../reference.ts";
import { Store } from "./arguments.ts";
import { launch, type Run, runs } from "./launch.ts";
import type { View } from "./simulator.ts";

const bitsOf = (value: number) => new Uint32Array(Float32Array.of(value).buffer)[0]!;

/** Numbers rounded to a dtype, and the memory that holds them. */
function store(values: Float32Array, dtype: FloatDType): { numbers: Float32Array; memory: View } {
  const numbers = Float32Array.from(values, (value) => round(value, dtype));
  if (dtype === "float32") return { numbers, memory: numbers };
  if (dtype === "float16") return { numbers, memory: Float16Array.from(numbers) };
  return { numbers, memory: Uint16Array.from(new Uint32Array(numbers.buffer), (bits) => bits >>> 16) };
}

/** A normal matrix in which every eleventh column has outliers. */
function withOutliers(rows: number, columns: number, seed: number): Float32Array {
  return normal(rows * columns, seed).map((x, i) => ((i % columns) % 11 === 3 && i % 2 === 0 ? 9 * x : x));
}

const listOf = (columns: number, outliers: readonly number[]) =>
  Int32Array.from({ length: columns }, (_, i) => outliers[i] ?? -1);

const shapes = [
  [1, 1],
  [3, 37],
  [2, 256],
  [9, 300],
  [33, 70],
  [2, 4104], // a second turn of 8 columns a thread
  [1, 8192], // as many as its threads can keep
] as const;

describe.each(runs)("int8_quantize, $mode, seed $seed", (run) => {
  const cases = floatDTypes.flatMap((dtype) => [0, 2.5].map((threshold) => ({ dtype, threshold })));
  test.each(cases)("$dtype, threshold $threshold", ({ dtype, threshold }) => {
    for (const [rows, columns] of shapes) {
      const { numbers, memory } = store(withOutliers(rows, columns, rows), dtype);
      const want = int8Rows(numbers, columns, threshold);
      const args = [rows, columns, bitsOf(threshold)];
      const [x, limited] = [Store[dtype], +(threshold > 0)];
      const shared = { ...run, family: "int8_quantize", args, group: 256 };

      const list = new Int32Array(columns);
      if (threshold) {
        const flags = new Int32Array(columns);
        const grid = [Math.ceil(columns / 32), 1, 1] as const;
        launch({ ...shared, kernel: "int8_flags", constants: [x, 1], buffers: [memory, flags], grid });
        launch({ ...shared, kernel: "int8_list", constants: [x, 1], buffers: [flags, list], grid: [1, 1, 1] });
        expect(list).toEqual(listOf(columns, want.outliers));
      }

      const stats = new Float32Array(rows);
      const codes = new Int8Array(rows * columns);
      const constants = [x, limited, 0, 1, 1, limited, +(columns % 8 === 0)];
      const buffers = [memory, list, stats, codes];
      for (const kept of columns % 8 === 0 ? [0, Math.ceil(columns / 2048)] : [0]) {
        stats.fill(-1);
        codes.fill(99);
        launch({ ...shared, kernel: "int8_rows", constants: [...constants, kept], buffers, grid: [rows, 1, 1] }, 2);
        expect(stats).toEqual(want.stats);
        expect(codes).toEqual(want.codes);
      }

      const back = new Float32Array(rows * columns);
      launch({
        ...shared,
        kernel: "int8_dequantize",
        constants: [Store.float32, 0, 0, 0, 0, 0, +(columns % 8 === 0), 0],
        buffers: [codes, stats, back],
        grid: [rows, 1, 1],
      });
      const factor = Math.fround(7.874015718698502e-3);
      const of = (i: number) => Math.fround(want.codes[i]! * want.stats[Math.floor(i / columns)]!);
      expect(back).toEqual(Float32Array.from(codes, (_, i) => of(i) * factor));
    }
  });

  test.each(cases)("by column, $dtype, threshold $threshold", ({ dtype, threshold }) => {
    for (const [rows, columns] of shapes) {
      const { numbers, memory } = store(withOutliers(rows, columns, rows), dtype);
      const isOutlier = (value: number) => threshold > 0 && Math.abs(value) >= threshold;
      const want = new Float32Array(columns);
      for (const [i, value] of numbers.entries())
        if (!isOutlier(value)) want[i % columns] = Math.max(want[i % columns]!, Math.abs(value));

      const shared = { ...run, family: "int8_quantize", args: [rows, columns, bitsOf(threshold)], group: 256 };
      const stats = new Float32Array(columns);
      const codes = new Int8Array(rows * columns);
      const constants = [Store[dtype], +(threshold > 0), 1, 0, 1, 0, +(columns % 8 === 0), 0];
      const grid = [Math.ceil(columns / 32), 1, 1] as const;
      launch({ ...shared, kernel: "int8_column_stats", constants, buffers: [memory, stats], grid });
      expect(stats).toEqual(want);
      const buffers = [memory, new Int32Array(columns), stats, codes];
      launch({ ...shared, kernel: "int8_rows", constants, buffers, grid: [rows, 1, 1] });
      expect(codes).toEqual(
        Int8Array.from(numbers, (value, i) => (isOutlier(value) ? 0 : int8Code(value, want[i % columns]!))),
      );
    }
  });
});

/** Where a product is worked out: the kernel for a few rows, or tiles. */
function product(
  run: Run,
  m: number,
  n: number,
  k: number,
  buffers: readonly View[],
  constants: readonly number[],
): void {
  const shared = { ...run, family: "int8_matmul", args: [m, n, k], buffers };
  const of = [...constants, +(k % 16 === 0)];
  const vectors = m === 1 ? 1 : m === 2 ? 2 : 4;
  const side = m > 40 ? 64 : 32;
  if (m <= 8)
    launch({
      ...shared,
      kernel: `int8_vector_${vectors}`,
      constants: of,
      grid: [Math.ceil(n / 16), Math.ceil(m / vectors), 1],
      group: 128,
    });
  else
    launch({
      ...shared,
      kernel: `int8_tile_${side}`,
      constants: of,
      grid: [Math.ceil(n / side), Math.ceil(m / side), 1],
      group: 128,
    });
}

const products = [
  { m: 1, n: 17, k: 64 },
  { m: 1, n: 3, k: 1 },
  { m: 2, n: 5, k: 1100 },
  { m: 3, n: 33, k: 48 },
  { m: 7, n: 18, k: 100 },
  { m: 9, n: 33, k: 64 },
  { m: 33, n: 31, k: 77 },
  { m: 12, n: 20, k: 1072 },
  { m: 65, n: 70, k: 80 },
  { m: 41, n: 66, k: 35 },
];

describe.each(runs)("int8_matmul, $mode, seed $seed", (run) => {
  const codes = (length: number, seed: number) => Int8Array.from(normal(length, seed, 60), (x) => Math.round(x));

  test.each(products)("sums of a [$m, $k] · b [$n, $k]ᵀ", ({ m, n, k }) => {
    for (const [a, b] of [
      [codes(m * k, 3), codes(n * k, 5)],
      [new Int8Array(m * k).fill(-128), new Int8Array(n * k).fill(-128)],
      [new Int8Array(m * k).fill(-128), new Int8Array(n * k).fill(127)],
    ] as const) {
      const y = new Int32Array(m * n);
      const unused = new Float32Array(1);
      product(run, m, n, k, [a, b, unused, unused, a, new Int32Array(1), unused, y], [Store.int32, 0, 0, 0]);
      expect(y).toEqual(Int32Array.from(matmul(a, b, undefined, m, n, k)));
    }
  });

  test.each(products)("what those of [$m, $k] and [$n, $k] stand for, with outliers and without", ({ m, n, k }) => {
    for (const [i, dtype] of floatDTypes.entries())
      for (const threshold of [0, 2.5]) {
        const x = store(withOutliers(m, k, m), dtype);
        const a = int8Rows(x.numbers, k, threshold);
        const b = int8Rows(normal(n * k, n), k, 0);
        const bias = (m + i) % 2 ? normal(n, 7) : undefined;
        const y = store(new Float32Array(m * n), dtype);
        product(
          run,
          ...([m, n, k] as const),
          [a.codes, b.codes, a.stats, b.stats, x.memory, listOf(k, a.outliers), bias ?? new Float32Array(1), y.memory],
          [Store[dtype], +(a.outliers.length > 0), Store[dtype], +!!bias],
        );
        const got =
          dtype === "bfloat16"
            ? new Float32Array(Uint32Array.from(y.memory as Uint16Array, (bits) => bits << 16).buffer)
            : Float32Array.from(y.memory as Float32Array);

        const sums = matmul(a.codes, b.codes, undefined, m, n, k);
        const outputs = Float32Array.from(sums, (sum, at) =>
          int8Output(
            sum,
            a.stats[Math.floor(at / n)]!,
            b.stats[at % n]!,
            a.outliers.length ? undefined : bias?.[at % n],
          ),
        );
        if (!a.outliers.length) {
          expect(got).toEqual(outputs.map((value) => round(value, dtype)));
          continue;
        }
        const only = x.numbers.map((value, at) => (a.outliers.includes(at % k) ? value : 0));
        const dense = Float32Array.from(b.codes, (code, at) => (code * b.stats[Math.floor(at / k)]!) / 127);
        const added = matmul(only, dense, bias, m, n, k);
        const size = matmul(only.map(Math.abs), dense.map(Math.abs), bias?.map(Math.abs), m, n, k);
        const rounding = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
        for (const [at, value] of got.entries()) {
          const want = outputs[at]! + added[at]!;
          const within = 1e-6 * (size[at]! + Math.abs(outputs[at]!)) + rounding * Math.abs(want) + 1e-7;
          expect(Math.abs(value - want)).toBeLessThan(within);
        }
      }
  });

  test("sums that are there already", () => {
    for (const [m, n] of [
      [1, 1],
      [3, 300],
      [20, 7],
    ] as const) {
      const sums = Int32Array.from(normal(m * n, n, 1e6), Math.round);
      const [rows, columns, bias] = [normal(m, 2).map(Math.abs), normal(n, 3).map(Math.abs), normal(n, 4)];
      const y = new Float32Array(m * n);
      launch({
        ...run,
        family: "int8_matmul",
        kernel: "int8_mm_dequant",
        constants: [Store.float32, 0, 0, 1],
        args: [m, n, 1],
        buffers: [sums, rows, columns, bias, y],
        grid: [m, 1, 1],
        group: 256,
      });
      expect(y).toEqual(
        Float32Array.from(sums, (sum, i) => int8Output(sum, rows[Math.floor(i / n)]!, columns[i % n]!, bias[i % n])),
      );
    }
  });
});
