// The tests of matrix products with quantised and dense weights, against float64.
import { describe, expect, test } from "bun:test";
import {
  dequantize4bit,
  dequantizeBlockwise,
  type FloatDType,
  linear,
  matmul4bit,
  matmulBlockwise,
  type Precision,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { lastError, native } from "../src/native.ts";
import { codebooks4, codebooksOfOtherBits, floatDTypes, matmulShapes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, matmul, relativeError } from "./reference.ts";

/**
 * What a product may be off by: fp32 sums, then the rounding of the result; `high` and `medium` round the inputs
 * too.
 */
const tolerance: Record<Precision, number> = { highest: 2e-6, high: 3e-4, medium: 2e-2 };
const rounding: Record<FloatDType, number> = { float32: 0, float16: 4e-4, bfloat16: 3e-3 };

describe.each(testDevices)("on %s", (_, device) => {
  /** The weight as the library says it is, in fp32: quantising has its own tests. */
  function weightOf(q: QuantizedTensor): Float32Array {
    using dense = q.bits === 4 ? dequantize4bit(q, { dtype: "float32" }) : dequantizeBlockwise(q, { dtype: "float32" });
    return dense.read();
  }

  // The plain loops know one precision, and a GPU is more exact than it is asked to be.
  const isPlain = device.description.includes("plain");
  const hasPrecisions = device.kind === "cpu" && !isPlain;
  const precisions: readonly Precision[] = isPlain ? ["highest"] : ["highest", "high", "medium"];

  function check(
    q: QuantizedTensor,
    m: number,
    dtype: FloatDType,
    asked: readonly Precision[],
    withBias: boolean,
  ): void {
    const [n, k] = q.shape as [number, number];
    using x = Tensor.from(wave(m * k, m + 2), [m, k], { device }).cast(dtype);
    using bias = withBias ? Tensor.from(wave(n, 5), [n], { device }).cast(dtype) : undefined;
    const want = matmul(x.readFloat32(), weightOf(q), bias?.readFloat32(), m, n, k);
    for (const precision of asked) {
      using y = q.bits === 4 ? matmul4bit(x, q, { bias, precision }) : matmulBlockwise(x, q, { bias, precision });
      expect(y.shape).toEqual([m, n]);
      expect(y.dtype).toBe(dtype);
      expect(relativeError(y.readFloat32(), want)).toBeLessThan(tolerance[precision] + rounding[dtype]);
    }
  }

  describe.each(matmulShapes)("x [$m, $k] · w [$n, $k]ᵀ", ({ m, n, k }) => {
    test.each(floatDTypes)("4-bit weights, %s: every codebook, block and precision", (dtype) => {
      using w = Tensor.from(normal(n * k, n + 1), [n, k], { device });
      for (const code of Object.values(codebooks4))
        for (const blocksize of [32, 64, 128, 4096]) {
          using q = quantize4bit(w, { quantType: code, blocksize });
          check(q, m, dtype, precisions, blocksize === 64);
        }
      using nested = quantize4bit(w, { compressStatistics: true });
      check(nested, m, dtype, ["highest"], true);
      check(nested, m, dtype, ["high"], false);
    });

    test.each(floatDTypes)("8-bit weights, %s", (dtype) => {
      using w = Tensor.from(normal(n * k, n + 1), [n, k], { device });
      for (const blocksize of [64, 256, 8, 100]) {
        using q = quantizeBlockwise(w, { blocksize });
        check(q, m, dtype, ["highest"], false);
        check(q, m, dtype, ["high"], true);
      }
      using nested = quantizeBlockwise(w, { blocksize: 64, nested: true });
      check(nested, m, dtype, ["highest"], true);
    });

    test.each(floatDTypes)("weights of other widths, %s", (dtype) => {
      using w = Tensor.from(normal(n * k, n + 1), [n, k], { device });
      for (const [i, code] of Object.values(codebooksOfOtherBits).entries()) {
        using q = quantizeBlockwise(w, { code, blocksize: [32, 64, 4096][i % 3]!, nested: i % 2 === 1 });
        check(q, m, dtype, ["highest"], i % 2 === 0);
      }
    });

    test.each(floatDTypes)("dense weights of every dtype, x %s", (dtype) => {
      using x = Tensor.from(wave(m * k, 3), [m, k], { device }).cast(dtype);
      using bias = Tensor.from(wave(n, 5), [n], { device });
      for (const weightDType of floatDTypes) {
        using w = Tensor.from(normal(n * k, 7), [n, k], { device }).cast(weightDType);
        for (const b of [undefined, bias]) {
          using y = linear(x, w, { bias: b, precision: "highest" });
          const want = matmul(x.readFloat32(), w.readFloat32(), b?.readFloat32(), m, n, k);
          expect(relativeError(y.readFloat32(), want)).toBeLessThan(tolerance.highest + rounding[dtype]);
        }
      }
    });
  });

  // A GPU shares a long k among threadgroups where y is small, and takes larger tiles where y is large.
  test.each([
    { m: 9, n: 20, k: 1100 },
    { m: 12, n: 33, k: 2064 },
    { m: 33, n: 8130, k: 48 },
  ])("long and wide: x [$m, $k] · w [$n, $k]ᵀ", ({ m, n, k }) => {
    using w = Tensor.from(normal(n * k, 7), [n, k], { device });
    using q = quantize4bit(w, { compressStatistics: true });
    for (const dtype of ["float32", "bfloat16"] as const) {
      check(q, m, dtype, ["highest"], true);
      check(q, m, dtype, ["highest"], false);
    }
  });

  // On a CPU each number of rows here is another kernel's; a GPU is more exact than it is asked to be.
  test.each([
    [1, "high", 1e-4],
    [6, "high", 1e-4],
    [40, "high", 2e-4],
    [1, "medium", 1.1e-2],
    [8, "medium", 1.1e-2],
    [40, "medium", 1.1e-2],
  ] as const)("%i rows, %s: the error is below what the documentation says", (m, precision, bound) => {
    const [n, k] = [64, 1088];
    using w = Tensor.from(normal(n * k, 3), [n, k], { device });
    using x = Tensor.from(normal(m * k, 4), [m, k], { device });
    for (const code of Object.values(codebooks4)) {
      using q = quantize4bit(w, { quantType: code, compressStatistics: true });
      using y = matmul4bit(x, q, { precision });
      const want = matmul(x.read(), weightOf(q), undefined, m, n, k);
      expect(relativeError(y.read(), want)).toBeLessThan(bound);
    }
  });

  // Errors of a codebook's rounding must not add up where activations have one sign, however long the rows are. What a
  // precision is documented to be off by holds for these too; a GPU is as exact in all of them.
  describe.each([14336, 28672])("rows of %i elements, activations of every kind", (k) => {
    const n = 32;
    const gelu = (v: number) => 0.5 * v * (1 + Math.tanh(0.79788 * (v + 0.044715 * v ** 3)));
    const kinds: Record<string, (v: number, i: number) => number> = {
      normal: (v) => v,
      ones: () => 1,
      "of one sign": (v) => Math.abs(v),
      negative: (v) => -Math.abs(v),
      GELU: gelu,
      ReLU: (v) => Math.max(v, 0),
      "outlier-ridden": (v, i) => (i % 97 === 5 ? 100 * v : v),
      "outlier-ridden and of one sign": (v, i) => Math.abs(i % 97 === 5 ? 100 * v : v),
      alternating: (_, i) => (i % 2 ? 1 : -1),
      "of one sign a run": (v, i) => Math.abs(v) * (Math.floor(i / 64) % 3 ? 1 : -1),
      "tiny and of one sign": (v) => 1e-20 * Math.abs(v),
      "too tiny for integers": (v) => 1e-30 * Math.abs(v),
      "too tiny for their scales": (v) => 1e-34 * v,
      "below the least of full precision": (v) => 1e-39 * Math.abs(v),
      "huge and of one sign": (v) => 1e30 * Math.abs(v),
    };
    const bounds: Record<Precision, number> = { highest: 2e-6, high: 5e-4, medium: 3e-2 };
    const heavy = (v: number) => v * Math.sqrt(Math.abs(v));

    test.each(["nf4", "fp4", "af4"] as const)("%s", (quantType) => {
      using w = Tensor.from(normal(n * k, 3).map(heavy), [n, k], { device });
      using q = quantize4bit(w, { quantType, blocksize: quantType === "nf4" ? 64 : 256 });
      const weight = weightOf(q);
      const asked = device.kind === "cpu" ? precisions : (["high"] as const);
      for (const m of isPlain ? [1] : [1, 6, 9]) {
        // each is another kernel's, but for the plain loop
        const numbers = normal(m * k, 4);
        for (const [kind, of] of Object.entries(kinds)) {
          if (device.kind !== "cpu" && (m === 6 || kind !== "of one sign")) continue; // a simulated one takes its time
          const values = numbers.map(of);
          using x = Tensor.from(values, [m, k], { device });
          const want = matmul(values, weight, undefined, m, n, k);
          for (const precision of asked) {
            using y = matmul4bit(x, q, { precision });
            const error = relativeError(y.read(), want);
            expect([kind, m, precision, error < bounds[precision] ? "within its bound" : error]).toEqual([
              ...[kind, m, precision],
              "within its bound",
            ]);
          }
        }
      }
    });
  });

  test("C checks a bias by itself: one that is too short is not read beyond its end", () => {
    using x = Tensor.from([1, 2], [1, 2], { device });
    using w = Tensor.from([1, 2, 3, 4, 5, 6], [3, 2], { device });
    using bias = Tensor.from([1, 2], [1, 2], { device });
    expect(native.bnb_matmul(x.pointer, w.pointer, bias.pointer, 0)).toBeNull();
    expect(lastError().message).toContain("bias is [1, 2], expected [1, 3]");
  });

  // Whether a row leans to one side, and so what is corrected, is no matter of its size.
  test("a product scales as its activations do, bit by bit", () => {
    const [n, k] = [16, 4096];
    using q = quantize4bit(Tensor.from(normal(n * k, 3), [n, k], { device }), { blocksize: 64 });
    for (const [m, mean] of [
      [1, 0.15],
      [9, 0.15],
      [9, 1],
    ] as const)
      for (const precision of precisions) {
        const values = Float32Array.from(normal(m * k, 4), (v) => v + mean);
        using x = Tensor.from(values, [m, k], { device });
        using small = Tensor.from(
          Float32Array.from(values, (v) => v * 2 ** -20),
          [m, k],
          { device },
        );
        using y = matmul4bit(x, q, { precision });
        using little = matmul4bit(small, q, { precision });
        expect([...little.read()].map((v) => v * 2 ** 20)).toEqual([...y.read()]);
      }
  });

  test.skipIf(!hasPrecisions)(
    "each precision has a result of its own; the default follows the activations' dtype",
    () => {
      using w = quantize4bit(Tensor.from(normal(32 * 512, 3), [32, 512], { device }));
      for (const m of [1, 12])
        for (const dtype of floatDTypes) {
          using x = Tensor.from(normal(m * 512, 4), [m, 512], { device }).cast(dtype);
          const of = (precision?: Precision) => {
            using y = matmul4bit(x, w, { precision });
            return y.readFloat32().join();
          };
          const [highest, high, medium] = [of("highest"), of("high"), of("medium")];
          // The base set has no products of bytes that would be quicker, so that the next finer serves.
          if (!device.description.includes("base")) expect(medium).not.toBe(high);
          if (dtype === "float32") expect(high).not.toBe(highest);
          expect(of()).toBe(dtype === "float32" ? highest : high);
        }
    },
  );

  test("weights of 4 bits are blockwise too", () => {
    using w = quantize4bit(Tensor.from(normal(10 * 64), [10, 64], { device }));
    using x = Tensor.from(wave(3 * 64), [3, 64], { device });
    expect(matmulBlockwise(x, w).read()).toEqual(matmul4bit(x, w).read());
  });

  test("leading dimensions are rows", () => {
    using w = quantize4bit(Tensor.from(normal(10 * 64), [10, 64], { device }));
    using x = Tensor.from(wave(2 * 3 * 64), [2, 3, 64], { device });
    using y = matmul4bit(x, w);
    using flat = matmul4bit(x.reshape([-1, 64]), w);
    expect(y.shape).toEqual([2, 3, 10]);
    expect(y.read()).toEqual(flat.read());
    using vector = matmul4bit(Tensor.from(wave(64), [64], { device }), w);
    expect(vector.shape).toEqual([10]);
  });

  test("large values do not overflow on the way: integer forms stay within their bounds", () => {
    const extremes = (length: number, scale: number) =>
      Float32Array.from({ length }, (_, i) => (i % 3 ? scale : -scale));
    for (const dtype of floatDTypes)
      for (const precision of precisions) {
        using w = Tensor.from(extremes(8 * 4096, 1).fill(1), [8, 4096], { device });
        using q = quantize4bit(w);
        for (const m of [1, 5]) {
          using x = Tensor.from(extremes(m * 4096, 8).fill(8), [m, 4096], { device }).cast(dtype);
          using y = matmul4bit(x, q, { precision });
          for (const value of y.readFloat32()) expect(Math.abs(value / 32768 - 1)).toBeLessThan(1e-2);
        }
      }
  });

  test("an activation of zeros gives the bias", () => {
    using w = quantize4bit(Tensor.from(normal(6 * 128), [6, 128], { device }));
    using bias = Tensor.from(wave(6), [6], { device });
    for (const precision of ["highest", "high", "medium"] as const) {
      using y = matmul4bit(Tensor.zeros([1, 128], { device }), w, { bias, precision });
      expect(y.read()).toEqual(bias.read());
    }
  });

  describe("is refused, with a sentence", () => {
    const w = () => quantize4bit(Tensor.from(wave(8 * 64), [8, 64], { device }));
    const x = () => Tensor.from(wave(2 * 64), [2, 64], { device });

    test("shapes that do not fit", () => {
      using narrow = Tensor.from(wave(2 * 32), [2, 32], { device });
      expect(errorOf(() => matmul4bit(narrow, w())).message).toBe(
        "matmul4bit: x is [2, 32] and w is [8, 64]: the last dimensions must match.",
      );
      expect(errorOf(() => linear(narrow, x())).message).toContain("x is [2, 32] and w is [2, 64]");
      using cube = quantize4bit(Tensor.from(wave(2 * 4 * 64), [2, 4, 64], { device }));
      expect(errorOf(() => matmul4bit(x(), cube)).message).toContain("w is [2, 4, 64], expected two dimensions");
      using bias = Tensor.from(wave(7), [7], { device });
      expect(errorOf(() => matmul4bit(x(), w(), { bias })).message).toContain("bias is [7], expected [8]");
    });

    test("dtypes and widths that do not fit", () => {
      using integers = Tensor.from(new Int8Array(64), [1, 64], { device });
      expect(errorOf(() => matmul4bit(integers as unknown as Tensor<"float32">, w())).message).toContain(
        "x is int8, expected float32",
      );
      expect(errorOf(() => linear(x(), integers)).message).toContain("w is int8, expected float32");
      using bytes = quantizeBlockwise(Tensor.from(wave(8 * 64), [8, 64], { device }), { blocksize: 64 });
      expect(errorOf(() => matmul4bit(x(), bytes)).message).toContain("8-bit codes: use matmulBlockwise");
      expect(errorOf(() => matmul4bit(x(), w(), { precision: "low" as "high" })).message).toContain(
        'precision is "low"',
      );
    });
  });
});
