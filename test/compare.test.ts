// compare: root mean squares and the largest difference against float64, places that are not finite, refusals.
import { describe, expect, test } from "bun:test";
import { compare } from "../src/compare.ts";
import { BnbError, type FloatDType, Tensor } from "../src/index.ts";
import { weights } from "./models.ts";

const rms = (values: readonly number[]) =>
  Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

describe.each(["float32", "float16", "bfloat16"] as FloatDType[])("%s", (dtype) => {
  // One element, less than a run, a run, over a piece, several pieces.
  test.each([1, 100, 256, 16_385, 70_001])("%p elements", (count) => {
    using a = Tensor.from(weights(count), [count], { dtype });
    using b = Tensor.from(weights(count, 0.01), [count]);
    const [x, y] = [[...a.readFloat32()], [...b.readFloat32()]];
    const errors = x.map((value, i) => Math.fround(value - y[i]!));
    const result = compare(a, b);
    expect(result.rms).toBeCloseTo(rms(x), 6);
    expect(result.rmsError / rms(errors)).toBeCloseTo(1, 5);
    expect(result.maxError).toBe(Math.max(...errors.map(Math.abs)));
    expect(result.nonFinite).toBe(0);
  });
});

test("places that are not finite are counted and left out", () => {
  using a = Tensor.from([1, Number.NaN, 3, Number.NEGATIVE_INFINITY, 0]);
  using b = Tensor.from([2, 2, 3, 4, Number.POSITIVE_INFINITY]);
  expect(compare(a, b)).toEqual({
    rms: Math.fround(Math.sqrt(5)),
    rmsError: Math.fround(Math.sqrt(0.5)),
    maxError: 1,
    nonFinite: 3,
  });
  using none = Tensor.from([Number.NaN]);
  expect(compare(none, none)).toEqual({ rms: 0, rmsError: 0, maxError: 0, nonFinite: 1 });
});

test("tensors that cannot be compared are refused", () => {
  using a = Tensor.from([1, 2, 3, 4], [2, 2]);
  using b = Tensor.from([1, 2, 3, 4], [4, 1]);
  using c = Tensor.from(Int8Array.of(1, 2, 3, 4), [2, 2]);
  expect(() => compare(a, b)).toThrow(/a is \[2, 2\] and b is \[4, 1\]/);
  expect(() => compare(a, c)).toThrow(BnbError);
});
