// The tests of RMS normalisation, against float64.
import { describe, expect, test } from "bun:test";
import { type FloatDType, rmsNorm, Tensor } from "../src/index.ts";
import { floatDTypes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, relativeError, round } from "./reference.ts";

const tolerance: Record<FloatDType, number> = { float32: 1e-6, float16: 4e-4, bfloat16: 3e-3 };
const shapes: [rows: number, columns: number, d: number][] = [
  [1, 1, 1],
  [1, 576, 576],
  [5, 77, 77],
  [3, 96, 32],
  [2, 21, 7],
  [33, 256, 256],
  [1, 4100, 4100],
];

function reference(x: Float32Array, weight: Float32Array, eps: number, offset: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += weight.length) {
    const run = x.subarray(at, at + weight.length);
    const inverse = 1 / Math.sqrt(run.reduce((sum, v) => sum + v * v, 0) / run.length + eps);
    for (const [i, v] of run.entries()) y[at + i] = v * inverse * (weight[i]! + offset);
  }
  return y;
}

describe.each(testDevices)("on %s", (_, device) => {
  test.each(shapes)("x [%d, %d] in runs of %d", (rows, columns, d) => {
    for (const dtype of floatDTypes)
      for (const other of floatDTypes) {
        using x = Tensor.from(normal(rows * columns, 3, 2), [rows, columns], { device }).cast(dtype);
        using weight = Tensor.from(wave(d, 5), [d], { device }).cast(other);
        const want = reference(x.readFloat32(), weight.readFloat32(), 1e-3, 1);
        using y = rmsNorm(x, weight, { eps: 1e-3, offset: 1 });
        expect([y.dtype, y.shape]).toEqual([dtype, [rows, columns]]);
        expect(relativeError(y.readFloat32(), want)).toBeLessThan(tolerance[dtype]);
      }
  });

  test.each(shapes)("x [%d, %d] in runs of %d with a residual, which x takes up", (rows, columns, d) => {
    for (const dtype of floatDTypes)
      for (const other of floatDTypes) {
        using x = Tensor.from(normal(rows * columns, 3), [rows, columns], { device }).cast(dtype);
        using residual = Tensor.from(normal(rows * columns, 4), [rows, columns], { device }).cast(other);
        using weight = Tensor.from(wave(d, 5), [d], { device });
        const added = residual.readFloat32();
        const sum = x.readFloat32().map((v, i) => round(v + 0.25 * added[i]!, dtype));
        using y = rmsNorm(x, weight, { residual, scale: 0.25 });
        expect(relativeError(x.readFloat32(), Float64Array.from(sum))).toBeLessThan(tolerance[dtype]);
        const want = reference(x.readFloat32(), weight.readFloat32(), 1e-6, 0);
        expect(relativeError(y.readFloat32(), want)).toBeLessThan(tolerance[dtype]);
      }
  });

  test("what does not fit is refused, with a sentence", () => {
    using x = Tensor.from(wave(12), [3, 4], { device });
    using four = Tensor.from(wave(4), [4], { device });
    using three = Tensor.from(wave(3), [3], { device });
    using square = Tensor.from(wave(4), [2, 2], { device });
    expect(errorOf(() => rmsNorm(x, three)).message).toContain("weight is [1, 3] and x is [3, 4]");
    expect(errorOf(() => rmsNorm(x, square)).message).toContain("weight is [2, 2], expected one dimension");
    expect(errorOf(() => rmsNorm(x, four, { eps: -1 })).message).toContain("eps is -1");
    expect(errorOf(() => rmsNorm(x, four, { offset: Number.NaN })).message).toContain("offset is NaN");
    expect(errorOf(() => rmsNorm(x, four, { residual: four })).message).toContain("residual is [1, 4]");
    expect(errorOf(() => rmsNorm(x, four, { residual: x })).message).toContain("shares its memory with x");
    using integers = Tensor.from(new Int32Array(12), [3, 4], { device });
    expect(errorOf(() => rmsNorm(integers as unknown as Tensor<"float32">, four)).message).toContain("x is int32");
  });
});
