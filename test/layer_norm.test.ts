// The tests of layer normalisation, against float64 and against the slope of a loss.
import { describe, expect, test } from "bun:test";
import { type FloatDType, layerNorm, layerNormBackward, Tensor } from "../src/index.ts";
import { floatDTypes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, layerNorm as reference, relativeError } from "./reference.ts";

const tolerance: Record<FloatDType, number> = { float32: 2e-6, float16: 4e-4, bfloat16: 3e-3 };
const shapes: [rows: number, columns: number][] = [
  [1, 1],
  [1, 384],
  [5, 77],
  [33, 256],
  [3, 1000],
  [300, 8],
];

describe.each(testDevices)("on %s", (_, device) => {
  describe.each(shapes)("x [%d, %d]", (rows, columns) => {
    test.each(floatDTypes)("%s: forward and every gradient", (dtype) => {
      const eps = 1e-3;
      using x = Tensor.from(normal(rows * columns, 3, 2), [rows, columns], { device }).cast(dtype);
      for (const other of floatDTypes) {
        using weight = Tensor.from(wave(columns, 5), [columns], { device }).cast(other);
        using bias = Tensor.from(wave(columns, 9), [columns], { device }).cast(other);
        using dy = Tensor.from(wave(rows * columns, 7), [rows, columns], { device }).cast(other);
        const [w, b] = [weight.readFloat32(), bias.readFloat32()];
        const want = reference(x.readFloat32(), dy.readFloat32(), w, b, columns, eps);

        using y = layerNorm(x, weight, bias, { eps });
        expect(y.dtype).toBe(dtype);
        expect(relativeError(y.readFloat32(), want.y)).toBeLessThan(tolerance[dtype]);

        const { dx, dWeight, dBias } = layerNormBackward(dy, x, weight, { eps });
        expect(dx.dtype).toBe(other);
        expect(relativeError(dx.readFloat32(), want.dx)).toBeLessThan(4 * tolerance[other]);
        expect(relativeError(dWeight.read(), want.dWeight)).toBeLessThan(4 * tolerance.float32);
        expect(relativeError(dBias.read(), want.dBias)).toBeLessThan(4 * tolerance.float32);
      }
    });
  });

  test("the slope of a loss is the gradient", () => {
    const [rows, columns] = [3, 20];
    const values = { x: normal(rows * columns), weight: normal(columns, 2), bias: normal(columns, 3) };
    const gradient = normal(rows * columns, 4);
    const tensors = (of: typeof values) => ({
      x: Tensor.from(of.x, [rows, columns], { device }),
      weight: Tensor.from(of.weight, [columns], { device }),
      bias: Tensor.from(of.bias, [columns], { device }),
    });
    const loss = (of: typeof values) => {
      const { x, weight, bias } = tensors(of);
      return layerNorm(x, weight, bias)
        .read()
        .reduce((sum, value, i) => sum + value * gradient[i]!, 0);
    };
    const { x, weight } = tensors(values);
    using dy = Tensor.from(gradient, [rows, columns], { device });
    const { dx, dWeight, dBias } = layerNormBackward(dy, x, weight);
    for (const [name, slopes] of [
      ["x", dx.read()] as const,
      ["weight", dWeight.read()],
      ["bias", dBias.read()],
    ] as const)
      for (const i of [0, 7, 19]) {
        const step = 1e-2;
        const moved = (by: number) => ({ ...values, [name]: values[name].map((v, at) => (at === i ? v + by : v)) });
        expect((loss(moved(step)) - loss(moved(-step))) / (2 * step)).toBeCloseTo(slopes[i]!, 2);
      }
  });

  test("a row of equal values gives the bias, and leading dimensions are rows", () => {
    using x = Tensor.from(new Float32Array(24).fill(7), [2, 3, 4], { device });
    using weight = Tensor.from([1, 2, 3, 4], [4], { device });
    using bias = Tensor.from([5, 6, 7, 8], [4], { device });
    using y = layerNorm(x, weight, bias);
    expect(y.shape).toEqual([2, 3, 4]);
    expect([...y.read().subarray(0, 4)]).toEqual([5, 6, 7, 8]);
  });

  test("eps is 1e-5 by default, forward and backward", () => {
    using x = Tensor.from(wave(48, 3, 0.003), [3, 16], { device });
    using weight = Tensor.from(wave(16, 5), [16], { device });
    const forward = (options?: { eps: number }) => layerNorm(x, weight, weight, options).read();
    const backward = (options?: { eps: number }) => layerNormBackward(x, x, weight, options).dx.read();
    for (const of of [forward, backward]) {
      expect(of()).toEqual(of({ eps: 1e-5 }));
      expect(of()).not.toEqual(of({ eps: 1e-6 }));
    }
  });

  test("what does not fit is refused, with a sentence", () => {
    using x = Tensor.from(wave(12), [3, 4], { device });
    using four = Tensor.from(wave(4), [4], { device });
    using three = Tensor.from(wave(3), [3], { device });
    expect(errorOf(() => layerNorm(x, three, four)).message).toContain("weight is [3] and x is [3, 4]");
    expect(errorOf(() => layerNorm(x, four, three)).message).toContain("bias is [3] and x is [3, 4]");
    expect(errorOf(() => layerNorm(x, four, four, { eps: -1 })).message).toContain("eps is -1");
    expect(errorOf(() => layerNormBackward(four, x, four)).message).toContain("dy is [4] and x is [3, 4]");
    using integers = Tensor.from(new Int32Array(12), [3, 4], { device });
    expect(errorOf(() => layerNorm(integers as unknown as Tensor<"float32">, four, four)).message).toContain(
      "x is int32",
    );
  });
});
