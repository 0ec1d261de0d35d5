// The tests of the products' gradients, against float64 and against the slope of the product itself.
import { describe, expect, test } from "bun:test";
import {
  dequantize4bit,
  dequantizeBlockwise,
  type FloatDType,
  Int8Weight,
  linear,
  linearBackward,
  linearBackwardBias,
  linearBackwardWeight,
  matmul4bit,
  matmul4bitBackward,
  matmulBlockwiseBackward,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { codebooks4, codebooksOfOtherBits, floatDTypes, matmulShapes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, matmul, relativeError, transpose } from "./reference.ts";

/** fp32 sums, then the rounding of the result. */
const tolerance: Record<FloatDType, number> = { float32: 2e-6, float16: 4e-4, bfloat16: 3e-3 };

/** Beside the products' own shapes: more rows than a block of them, more columns than a panel, ragged in both; a sum
 * long enough for a GPU to split it; sides that are multiples of 8, which tensor cores take. */
const shapes = [
  ...matmulShapes,
  { m: 200, n: 70, k: 300 },
  { m: 6, n: 1100, k: 16 },
  { m: 193, n: 3, k: 8 },
  { m: 9, n: 136, k: 72 },
  { m: 72, n: 40, k: 136 },
  { m: 10, n: 1096, k: 24 },
];

describe.each(testDevices)("on %s", (_, device) => {
  const weightOf = (q: QuantizedTensor): Float32Array => {
    using w = q.bits === 4 ? dequantize4bit(q, { dtype: "float32" }) : dequantizeBlockwise(q, { dtype: "float32" });
    return w.read();
  };

  describe.each(shapes)("dy [$m, $n] · w [$n, $k]", ({ m, n, k }) => {
    function check(q: QuantizedTensor, dtype: FloatDType): void {
      using dy = Tensor.from(wave(m * n, m + 2), [m, n], { device }).cast(dtype);
      using dx = q.bits === 4 ? matmul4bitBackward(dy, q) : matmulBlockwiseBackward(dy, q);
      expect(dx.shape).toEqual([m, k]);
      expect(dx.dtype).toBe(dtype);
      const want = matmul(dy.readFloat32(), transpose(weightOf(q), n, k), undefined, m, k, n);
      expect(relativeError(dx.readFloat32(), want)).toBeLessThan(tolerance[dtype]);
    }

    test.each(floatDTypes)("quantised weights, %s: every codebook, block, width and nesting", (dtype) => {
      using w = Tensor.from(normal(n * k, n + 1), [n, k], { device });
      for (const code of Object.values(codebooks4))
        for (const blocksize of [32, 64, 4096]) check(quantize4bit(w, { quantType: code, blocksize }), dtype);
      check(quantize4bit(w, { compressStatistics: true }), dtype);
      for (const blocksize of [64, 256, ...(device.kind === "cpu" ? [1, 100] : [])])
        check(quantizeBlockwise(w, { blocksize }), dtype);
      check(quantizeBlockwise(w, { blocksize: 64, nested: true }), dtype);
      for (const [i, code] of Object.values(codebooksOfOtherBits).entries())
        check(quantizeBlockwise(w, { code, blocksize: i % 2 ? 32 : 128, nested: i === 2 }), dtype);
      check(Int8Weight.quantize(w).blockwise, dtype); // a row is a block
    });

    test.each(floatDTypes)("dense weights of every dtype, dy %s: both gradients", (dtype) => {
      using dy = Tensor.from(wave(m * n, 3), [m, n], { device }).cast(dtype);
      for (const other of floatDTypes) {
        using w = Tensor.from(normal(n * k, 7), [n, k], { device }).cast(other);
        using dx = linearBackward(dy, w);
        const wantX = matmul(dy.readFloat32(), transpose(w.readFloat32(), n, k), undefined, m, k, n);
        expect(relativeError(dx.readFloat32(), wantX)).toBeLessThan(tolerance[dtype]);

        using x = Tensor.from(normal(m * k, 9), [m, k], { device }).cast(other);
        const wantW = matmul(transpose(dy.readFloat32(), m, n), transpose(x.readFloat32(), m, k), undefined, n, k, m);
        for (const to of floatDTypes) {
          using dw = linearBackwardWeight(dy, x, { dtype: to });
          expect(dw.shape).toEqual([n, k]);
          expect(dw.dtype).toBe(to);
          expect(relativeError(dw.readFloat32(), wantW)).toBeLessThan(tolerance[to]);
        }
      }
    });
  });

  test("a result large enough for a GPU's large tiles", () => {
    const [m, n, k] = [513, 9, 961];
    using q = quantize4bit(Tensor.from(normal(n * k), [n, k], { device }));
    using dy = Tensor.from(wave(m * n), [m, n], { device });
    const wantX = matmul(dy.read(), transpose(weightOf(q), n, k), undefined, m, k, n);
    expect(relativeError(matmul4bitBackward(dy, q).read(), wantX)).toBeLessThan(tolerance.float32);

    using x = Tensor.from(normal(n * k), [n, k], { device });
    using turned = dy.reshape([n, m]); // another matrix of the same numbers
    const wantW = matmul(transpose(dy.read(), n, m), transpose(x.read(), n, k), undefined, m, k, n);
    expect(relativeError(linearBackwardWeight(turned, x).read(), wantW)).toBeLessThan(tolerance.float32);
  });

  test("the bias's gradient is the sum of the rows", () => {
    using dy = Tensor.from(wave(2 * 50 * 33), [2, 50, 33], { device });
    const values = dy.read();
    const sums = Float64Array.from({ length: 33 }, (_, n) =>
      values.reduce((sum, value, i) => (i % 33 === n ? sum + value : sum), 0),
    );
    using bias = linearBackwardBias(dy);
    expect(bias.shape).toEqual([33]);
    expect(relativeError(bias.read(), sums)).toBeLessThan(tolerance.float32);
    expect(linearBackwardBias(dy, { dtype: "bfloat16" }).dtype).toBe("bfloat16");
  });

  test("the slope of the product is the gradient", () => {
    const [m, n, k] = [3, 40, 70];
    const [values, gradient] = [wave(m * k, 2), wave(m * n, 5)];
    using q = quantize4bit(Tensor.from(normal(n * k), [n, k], { device }));
    const loss = (x: Float32Array) => {
      using y = matmul4bit(Tensor.from(x, [m, k], { device }), q);
      return y.read().reduce((sum, value, i) => sum + value * gradient[i]!, 0);
    };
    using dx = matmul4bitBackward(Tensor.from(gradient, [m, n], { device }), q);
    const slopes = dx.read();
    for (const i of [0, 1, 69, 70, 209]) {
      const [up, down] = [values.slice(), values.slice()];
      up[i]! += 0.5; // the product is linear in x, so any step does
      down[i]! -= 0.5;
      expect(loss(up) - loss(down)).toBeCloseTo(slopes[i]!, 4);
    }
  });

  test("leading dimensions are rows", () => {
    using q = quantize4bit(Tensor.from(normal(10 * 64), [10, 64], { device }));
    using dy = Tensor.from(wave(2 * 3 * 10), [2, 3, 10], { device });
    using x = Tensor.from(wave(2 * 3 * 64), [2, 3, 64], { device });
    using dx = matmul4bitBackward(dy, q);
    expect(dx.shape).toEqual([2, 3, 64]);
    expect(dx.read()).toEqual(matmul4bitBackward(dy.reshape([6, 10]), q).read());
    expect(linearBackwardWeight(dy, x).read()).toEqual(
      linearBackwardWeight(dy.reshape([6, 10]), x.reshape([6, 64])).read(),
    );
    expect(matmul4bitBackward(Tensor.from(wave(10), [10], { device }), q).shape).toEqual([64]);
  });

  test("a column of w that is all zeros, and a dy of zeros, give zeros", () => {
    using w = Tensor.from(
      normal(9 * 64).map((value, i) => (i % 64 === 5 ? 0 : value)),
      [9, 64],
      { device },
    );
    using dx = linearBackward(Tensor.from(wave(4 * 9), [4, 9], { device }), w);
    for (let row = 0; row < 4; row++) expect(dx.read()[row * 64 + 5]).toBe(0);
    using none = linearBackward(Tensor.zeros([4, 9], { device }), w);
    expect(none.read()).toEqual(new Float32Array(4 * 64));
  });

  test("what does not fit is refused, with a sentence", () => {
    using w = Tensor.from(wave(8 * 64), [8, 64], { device });
    using dy = Tensor.from(wave(2 * 7), [2, 7], { device });
    using q = quantize4bit(w);
    using bytes = Tensor.from(new Int8Array(8), [1, 8], { device });
    expect(errorOf(() => linearBackward(dy, w)).message).toBe(
      "linearBackward: dy is [2, 7] and w is [8, 64]: dy's last dimension must be w's first.",
    );
    expect(errorOf(() => matmul4bitBackward(dy, q)).message).toContain("dy is [2, 7] and w is [8, 64]");
    using wide = quantizeBlockwise(w);
    expect(errorOf(() => matmul4bitBackward(dy, wide)).message).toContain("8-bit codes: use matmulBlockwiseBackward");
    expect(errorOf(() => linearBackwardWeight(dy, w)).message).toContain("all dimensions but the last must match");
    using twoByThree = Tensor.from(wave(24), [2, 3, 4], { device });
    using threeByTwo = Tensor.from(wave(30), [3, 2, 5], { device }); // as many rows, in another shape
    expect(errorOf(() => linearBackwardWeight(twoByThree, threeByTwo)).message).toContain(
      "[2, 3, 4] and x is [3, 2, 5]",
    );
    expect(errorOf(() => linearBackward(bytes as unknown as Tensor<"float32">, w)).message).toContain("dy is int8");
    expect(errorOf(() => linearBackwardWeight(dy, linear(dy, dy), { dtype: "int8" as FloatDType })).message).toContain(
      'dtype is "int8"',
    );
    using cube = quantize4bit(Tensor.from(wave(2 * 4 * 64), [2, 4, 64], { device }));
    expect(errorOf(() => matmul4bitBackward(dy, cube)).message).toContain("expected two dimensions");
  });
});
