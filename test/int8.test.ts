// The tests of LLM.int8(): upstream's bytes, the definition, exact sums and outliers.
import { describe, expect, test } from "bun:test";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import {
  dequantizeBlockwise,
  type FloatDType,
  Int8Weight,
  int8DoubleQuant,
  int8LinearMatmul,
  int8MixedScaledMm,
  int8MmDequant,
  int8ScaledMm,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  matmul8bit,
  matmul8bitFp,
  Tensor,
} from "../src/index.ts";
import { native } from "../src/native.ts";
import { Signature } from "../src/signature.ts";
import { floatDTypes, matmulShapes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, int8Code, int8Output, int8Rows, matmul, relativeError, round } from "./reference.ts";

const golden = openSafetensors(`${import.meta.dir}/golden/ops_cpu.safetensors`);
const valuesOf = <T>(name: string) => golden.tensor(name).values as T;

/** Numbers of a normal distribution with a few columns of large ones, as the activations of a language model have. */
function activations(rows: number, columns: number, seed: number): Float32Array {
  const x = normal(rows * columns, seed);
  for (let c = seed % 3; c < columns; c += 37) for (let r = 0; r < rows; r += 2) x[r * columns + c]! *= 20;
  return x;
}

const listed = (cols: Tensor<"int32">) => [...cols.read()].filter((column) => column >= 0);

/** Exact sums, in float64: every product of 100,000 bytes fits. */
function sumsOf(a: Int8Array, b: Int8Array, m: number, n: number, k: number): Int32Array {
  return Int32Array.from(matmul(a, b, undefined, m, n, k));
}

/** For what is said without a public function between. */
const inC = new Signature("C");

describe.each(testDevices)("on %s", (_, device) => {
  const from = (values: Float32Array, shape: readonly number[], dtype: FloatDType = "float32") =>
    Tensor.from(values, shape, { device }).cast(dtype);

  const bytes = (length: number, seed: number) =>
    Int8Array.from(wave(length, seed, 128), (value) => Math.max(-128, Math.min(127, Math.round(value))));

  describe("upstream's bytes", () => {
    test.each([0, 6])("codes, scales and outlier columns at threshold %d", (threshold) => {
      using A = from(
        valuesOf<Float32Array>("A").map((a) => a * 100),
        [32, 128],
        "float16",
      );
      const { quantized, rowStats, outlierCols } = int8VectorwiseQuant(A, { threshold });
      const name = `i8.${threshold}.0`;
      expect(quantized.read()).toEqual(valuesOf<Int8Array>(`${name}.q`));
      expect(rowStats.read()).toEqual(valuesOf<Float32Array>(`${name}.s`));
      if (threshold === 0) expect(outlierCols).toBeUndefined();
      else expect(listed(outlierCols!)).toEqual([...valuesOf<BigInt64Array>(`${name}.cols`)].map(Number));
    });

    test("sums and what they stand for", () => {
      using x = Tensor.from(valuesOf<Float16Array>("i8.x"), [8, 128], { device });
      using w = new Int8Weight(
        Tensor.from(valuesOf<Int8Array>("i8.0.0.q"), [32, 128], { device }),
        Tensor.from(valuesOf<Float32Array>("i8.0.0.s"), [32], { device }),
      );
      const { quantized, rowStats } = int8VectorwiseQuant(x);
      using sums = int8LinearMatmul(quantized, w.CB);
      expect(sums.read()).toEqual(valuesOf<Int32Array>("i8.acc"));
      // i8.out_f32 and i8.out_f16 are upstream's CPU's, whose constant for 1 / 127² is too large by 1.8e-5.
      const [a, b] = [rowStats.read() as Float32Array, w.SCB.read() as Float32Array];
      const want = Float32Array.from(valuesOf<Int32Array>("i8.acc"), (sum, i) =>
        int8Output(sum, a[Math.floor(i / 32)]!, b[i % 32]!, undefined),
      );
      const upstream = valuesOf<Float32Array>("i8.out_f32");
      for (const [i, value] of want.entries())
        expect(Math.abs(upstream[i]! - value * (6.200124e-5 * 127 ** 2))).toBeLessThanOrEqual(2e-7 * Math.abs(value));
      const halves = Float16Array.from(want);
      for (const dtype of ["float32", "float16"] as const) {
        const rounded = dtype === "float32" ? want : halves;
        expect(int8MmDequant(sums, rowStats, w.SCB, { dtype }).read()).toEqual(rounded);
        expect(int8ScaledMm(quantized, w.CB, rowStats, w.SCB, { dtype }).read()).toEqual(rounded);
      }
      expect(int8MmDequant(sums, rowStats, w.SCB).dtype).toBe("float16");
      expect(matmul8bit(x, w).read()).toEqual(halves);
    });

    test("of a serialised layer, whose weight is rounded to float16 first", () => {
      using layer = openSafetensors(`${import.meta.dir}/golden/int8.safetensors`);
      const source = Float32Array.from(
        { length: 64 * 128 },
        (_, i) => Math.sin(0.37 * i) * 0.05 + Math.cos(0.0011 * i * i) * 0.02,
      );
      using w = Int8Weight.quantize(from(source, [64, 128]));
      expect(w.CB.read()).toEqual(layer.tensor("layer.weight").values as Int8Array);
      expect(w.SCB.read()).toEqual(layer.tensor("layer.SCB").values as Float32Array);
    });
  });

  describe("the definition", () => {
    const shapes = [[4, 64], [1, 1], [3, 1], [1, 300], [5, 33], [2, 3, 70], [129, 130], [7]];

    test.each([4104, 4103])("the largest of a row of %i counts, wherever it stands", (columns) => {
      const places = Array.from({ length: 33 }, (_, i) => Math.min(columns - 1, i * 128 + (i % 8)));
      const x = new Float32Array(places.length * columns).fill(0.5);
      for (const [row, place] of places.entries()) x[row * columns + place] = -5 - row;
      const { quantized, rowStats } = int8VectorwiseQuant(from(x, [places.length, columns]));
      expect([...rowStats.read()]).toEqual(places.map((_, row) => 5 + row));
      const codes = quantized.read();
      for (const [row, place] of places.entries()) expect(codes[row * columns + place]).toBe(-127);
    });

    test.each(floatDTypes)("codes, scales and values of every shape, %s", (dtype) => {
      for (const shape of shapes)
        for (const threshold of [0, 1.5, 6]) {
          const columns = shape.at(-1)!;
          const rows = shape.reduce((a, b) => a * b) / columns;
          using x = from(activations(rows, columns, rows), shape, dtype);
          const want = int8Rows(x.readFloat32(), columns, threshold);
          const { quantized, rowStats, outlierCols } = int8VectorwiseQuant(x, { threshold });
          expect(quantized.shape).toEqual(shape);
          expect(rowStats.shape).toEqual([rows]);
          expect(rowStats.read()).toEqual(want.stats);
          expect(quantized.read()).toEqual(want.codes);
          if (threshold) {
            const rest = Array(columns - want.outliers.length).fill(-1);
            expect([...outlierCols!.read()]).toEqual([...want.outliers, ...rest]);
          }

          for (const to of floatDTypes) {
            using back = int8VectorwiseDequant(quantized, rowStats, { dtype: to });
            const dense = Float32Array.from(want.codes, (code, i) => {
              const product = Math.fround(code * want.stats[Math.floor(i / columns)]!);
              return round(Math.fround(product * Math.fround(7.874015718698502e-3)), to);
            });
            expect(back.shape).toEqual(shape);
            expect(back.readFloat32()).toEqual(dense);
          }
        }
    });

    test.each(floatDTypes)("rows and columns at once, %s", (dtype) => {
      for (const [rows, columns] of [
        [9, 70],
        [1, 5],
        [40, 1],
        [64, 200],
      ] as const)
        for (const threshold of [0, 2]) {
          using x = from(activations(rows, columns, 4), [rows, columns], dtype);
          const values = x.readFloat32();
          const both = int8DoubleQuant(x, { threshold });
          const byRow = int8VectorwiseQuant(x, { threshold });
          expect(both.quantizedRow.read()).toEqual(byRow.quantized.read());
          expect(both.rowStats.read()).toEqual(byRow.rowStats.read());
          expect(both.outlierCols?.read()).toEqual(byRow.outlierCols?.read() as Int32Array);

          const stats = new Float32Array(columns);
          const isOutlier = (value: number) => threshold > 0 && Math.abs(value) >= threshold;
          for (const [i, value] of values.entries())
            if (!isOutlier(value)) stats[i % columns] = Math.max(stats[i % columns]!, Math.abs(value));
          expect(both.colStats.read()).toEqual(stats);
          expect(both.quantizedCol.read()).toEqual(
            Int8Array.from(values, (value, i) => (isOutlier(value) ? 0 : int8Code(value, stats[i % columns]!))),
          );
        }
    });

    test("zeros, tiny and huge rows", () => {
      const rows = [0, -0, 1e-45, 1e-40, 9e-37, 1.1e-36, 1e-30, 1, 3.4e38];
      const values = Float32Array.from(rows.flatMap((scale) => [scale, -scale / 3, 0, scale / 2]));
      using x = from(values, [rows.length, 4]);
      const { quantized, rowStats } = int8VectorwiseQuant(x);
      const want = int8Rows(values, 4, 0);
      expect(rowStats.read().map(Math.abs)).toEqual(want.stats);
      expect(quantized.read()).toEqual(want.codes);
      expect([...quantized.read().subarray(5 * 4)]).toEqual(Array(4).fill([127, -42, 0, 64]).flat());
    });

    test("a row of outliers only has no scale and no codes", () => {
      using x = from(new Float32Array([7, -8, 9, 10, 1, 2, -4, 3]), [2, 4]);
      const { quantized, rowStats, outlierCols } = int8VectorwiseQuant(x, { threshold: 6 });
      expect([...rowStats.read()]).toEqual([0, 4]);
      expect([...quantized.read()]).toEqual(Array(8).fill(0));
      expect(listed(outlierCols!)).toEqual([0, 1, 2, 3]);
    });
  });

  describe("exact sums", () => {
    test.each(matmulShapes)("a [$m, $k] · b [$n, $k]ᵀ", ({ m, n, k }) => {
      const [a, b] = [bytes(m * k, 3), bytes(n * k, 5)];
      using sums = int8LinearMatmul(Tensor.from(a, [m, k], { device }), Tensor.from(b, [n, k], { device }));
      expect(sums.shape).toEqual([m, n]);
      expect(sums.read()).toEqual(sumsOf(a, b, m, n, k));
    });

    test("as large as they get", () => {
      for (const k of [1, 1040, 1041, 100_000, 131_071])
        for (const [low, high] of [
          [-128, -128],
          [-128, 127],
          [127, 127],
          [-127, 127],
        ] as const)
          for (const m of [1, 9]) {
            using a = Tensor.from(new Int8Array(m * k).fill(low), [m, k], { device });
            using b = Tensor.from(new Int8Array(5 * k).fill(high), [5, k], { device });
            using sums = int8LinearMatmul(a, b);
            expect(sums.read()).toEqual(new Int32Array(m * 5).fill(k * low * high));
          }
    });

    test("what could leave 32 bits is refused", () => {
      using a = Tensor.zeros([1, 131_072], { device, dtype: "int8" });
      const { code, message } = errorOf(() => int8LinearMatmul(a, a));
      expect(code).toBe("unsupported");
      expect(message).toContain("A has 131072 columns, more than 131071");
    });
  });

  describe.each(matmulShapes)("x [$m, $k] · w [$n, $k]ᵀ", ({ m, n, k }) => {
    test.each(floatDTypes)("%s: the fused call is its parts, and its parts are the definition", (dtype) => {
      using w = Int8Weight.quantize(from(normal(n * k, n + 1), [n, k]));
      using x = from(activations(m, k, m), [m, k], dtype);
      for (const bias of [undefined, from(wave(n, 5), [n], dtype)]) {
        const { quantized, rowStats } = int8VectorwiseQuant(x);
        const sums = sumsOf(quantized.read(), w.CB.read(), m, n, k);
        const [rows, columns, added] = [rowStats.read(), w.SCB.read(), bias?.readFloat32()];
        const want = Float32Array.from(sums, (sum, i) =>
          round(int8Output(sum, rows[Math.floor(i / n)]!, columns[i % n]!, added?.[i % n]), dtype),
        );
        expect(matmul8bit(x, w, { bias }).readFloat32()).toEqual(want);
        expect(int8ScaledMm(quantized, w.CB, rowStats, w.SCB, { bias, dtype }).readFloat32()).toEqual(want);
        expect(int8MixedScaledMm(x, quantized, w.CB, rowStats, w.SCB, { bias }).readFloat32()).toEqual(want);
        const total = Tensor.from(sums, [m, n], { device });
        expect(int8MmDequant(total, rowStats, w.SCB, { bias, dtype }).readFloat32()).toEqual(want);
      }
    });

    test.each(floatDTypes)("%s: outlier columns are in floating point", (dtype) => {
      using w = Int8Weight.quantize(from(normal(n * k, n + 1), [n, k]));
      using x = from(activations(m, k, m), [m, k], dtype);
      using bias = from(wave(n, 5), [n]);
      for (const threshold of [1, 6]) {
        const { quantized, rowStats, outlierCols } = int8VectorwiseQuant(x, { threshold });
        using y = matmul8bit(x, w, { threshold, bias });
        using parts = int8MixedScaledMm(x, quantized, w.CB, rowStats, w.SCB, { outlierCols, bias });
        expect(y.readFloat32()).toEqual(parts.readFloat32());

        const outliers = new Set(listed(outlierCols!));
        const only = x.readFloat32().map((value, i) => (outliers.has(i % k) ? value : 0));
        const codes = sumsOf(quantized.read(), w.CB.read(), m, n, k);
        const [rows, columns, added] = [rowStats.read(), w.SCB.read(), bias.read()];
        const dense = w.dequantize({ dtype: "float32" }).read();
        const want = matmul(only, dense, added, m, n, k).map(
          (floating, i) => floating + int8Output(codes[i]!, rows[Math.floor(i / n)]!, columns[i % n]!, undefined),
        );
        const tolerance = { float32: 1e-6, float16: 4e-4, bfloat16: 3e-3 }[dtype];
        expect(relativeError(y.readFloat32(), want)).toBeLessThan(tolerance);
      }
    });
  });

  describe.each(matmulShapes)("x [$m, $k] in floating point · w [$n, $k]ᵀ in int8", ({ m, n, k }) => {
    test.each(floatDTypes)("%s", (dtype) => {
      using w = Int8Weight.quantize(from(normal(n * k, n + 1), [n, k]));
      using x = from(activations(m, k, m), [m, k], dtype);
      using bias = from(wave(n, 5), [n], dtype);
      using y = matmul8bitFp(x, w, { bias, precision: "highest" });
      const want = matmul(x.readFloat32(), w.dequantize({ dtype: "float32" }).read(), bias.readFloat32(), m, n, k);
      expect(y.dtype).toBe(dtype);
      expect(relativeError(y.readFloat32(), want)).toBeLessThan(
        { float32: 2e-6, float16: 4e-4, bfloat16: 3e-3 }[dtype],
      );
    });
  });

  test.each([1, 3, 20])("%i rows of x by rows of one scale each, as exact as is asked by default", (m) => {
    const [n, k] = [24, 1536];
    const numbers = normal(n * k, 4).map((x, i) => x * (1 + Math.floor(i / k))); // each row larger
    using w = Int8Weight.quantize(from(numbers, [n, k]));
    using x = from(normal(m * k, m), [m, k], "float16");
    using y = matmul8bitFp(x, w);
    const want = matmul(x.readFloat32(), w.dequantize({ dtype: "float32" }).read(), undefined, m, n, k);
    expect(relativeError(y.readFloat32(), want)).toBeLessThan(1e-3);
  });

  test("a row a block, of no power of two, in every dtype", () => {
    using w = Int8Weight.quantize(from(normal(5 * 336, 3), [5, 336]));
    const codes = w.CB.read();
    const stats = w.SCB.read();
    for (const dtype of floatDTypes) {
      using dense = dequantizeBlockwise(w.blockwise, { dtype });
      const factor = Math.fround(7.874015718698502e-3);
      expect(dense.readFloat32()).toEqual(
        Float32Array.from(codes, (code, i) =>
          round(Math.fround(Math.fround(code * factor) * stats[Math.floor(i / 336)]!), dtype),
        ),
      );
    }
  });

  test("the product is near the exact one, and outliers in floating point bring it nearer", () => {
    const [m, n, k] = [16, 48, 512];
    using dense = from(normal(n * k, 3), [n, k]);
    using w = Int8Weight.quantize(dense);
    using x = from(activations(m, k, 1), [m, k], "float16");
    const want = matmul(x.readFloat32(), dense.read(), undefined, m, n, k);
    const error = (threshold: number) => relativeError(matmul8bit(x, w, { threshold }).readFloat32(), want);
    expect(error(6)).toBeLessThan(0.01);
    expect(error(0)).toBeGreaterThan(2 * error(6));
    expect(error(0)).toBeLessThan(0.1);
  });

  test("leading dimensions are rows", () => {
    using w = Int8Weight.quantize(from(normal(10 * 64), [10, 64]));
    using x = from(wave(2 * 3 * 64), [2, 3, 64]);
    using y = matmul8bit(x, w, { threshold: 0.9 });
    expect(y.shape).toEqual([2, 3, 10]);
    expect(y.read()).toEqual(matmul8bit(x.reshape([-1, 64]), w, { threshold: 0.9 }).read());
    expect(matmul8bit(from(wave(64), [64]), w).shape).toEqual([10]);
  });

  test("many outliers, more than fit one pass", () => {
    const [m, n, k] = [3, 70, 1500];
    using w = Int8Weight.quantize(from(normal(n * k, 3), [n, k]));
    using x = from(normal(m * k, 5, 100), [m, k]);
    using y = matmul8bit(x, w, { threshold: 1e-3 });
    const want = matmul(x.read(), w.dequantize({ dtype: "float32" }).read(), undefined, m, n, k);
    expect(relativeError(y.read(), want)).toBeLessThan(1e-6);
  });

  test("a NaN or an infinity shows in its row, and in no other", () => {
    using w = Int8Weight.quantize(from(normal(6 * 40), [6, 40]));
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])
      for (const threshold of [0, 6]) {
        const values = wave(3 * 40, 2);
        values[40 + 17] = bad;
        const y = matmul8bit(from(values, [3, 40]), w, { threshold }).read();
        expect([...y.subarray(0, 6)].every(Number.isFinite)).toBe(true);
        expect([...y.subarray(6, 12)].some(Number.isFinite)).toBe(false);
        if (Number.isNaN(bad) || threshold === 0) expect([...y.subarray(12)].every(Number.isFinite)).toBe(true);
      }
  });

  test("a list of columns that are none ends there", () => {
    using x = from(wave(2 * 8), [2, 8]);
    const { rowStats } = int8VectorwiseQuant(x);
    const list = (values: number[]) => Tensor.from(Int32Array.from(values), [8], { device });
    const quantize = (outliers: Tensor<"int32">) =>
      new Tensor(
        inC.made(native.bnb_int8_vectorwise_quant(x.pointer, rowStats.pointer, 0, outliers.pointer, 0)),
        "int8",
        [2, 8],
        device,
      ).read();
    const rest = Array(5).fill(-1);
    expect(quantize(list([2, 5, 8, ...rest]))).toEqual(quantize(list([2, 5, -1, ...rest])));
  });

  describe("Int8Weight", () => {
    test("owns its tensors", () => {
      const w = Int8Weight.quantize(from(wave(4 * 8), [4, 8]));
      expect(w.shape).toEqual([4, 8]);
      expect(w.byteLength).toBe(4 * 8 + 4 * 4);
      expect(w.dequantize().dtype).toBe("float16");
      expect(String(w)).toBe(`Int8Weight([4, 8] on ${device})`);
      const { blockwise } = w;
      expect(w.blockwise).toBe(blockwise);
      w.dispose();
      expect([w.CB.disposed, w.SCB.disposed, blockwise.disposed]).toEqual([true, true, true]);
      expect(() => dequantizeBlockwise(w.blockwise)).toThrow("used after dispose()");
      expect(() => matmul8bit(from(wave(8), [1, 8]), w)).toThrow("Tensor used after dispose()");
    });

    test("is made of what fits only", () => {
      const codes = Tensor.zeros([4, 8], { device, dtype: "int8" });
      const scales = Tensor.zeros([3], { device });
      expect(errorOf(() => new Int8Weight(codes, scales)).message).toBe(
        "Int8Weight: SCB is float32 [3], expected float32 [4].",
      );
      expect(errorOf(() => new Int8Weight(scales as unknown as Tensor<"int8">, scales)).message).toBe(
        "Int8Weight: CB is float32 [3], expected int8 [n, k].",
      );
      expect(errorOf(() => Int8Weight.quantize(from(wave(8), [8]))).message).toContain(
        "w is [8], expected two dimensions",
      );
      const large = from(new Float32Array([1, 70_000, 2, 3]), [2, 2]);
      expect(errorOf(() => Int8Weight.quantize(large)).message).toContain("w[0, 1] is inf");
    });
  });
});
