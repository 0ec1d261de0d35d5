// Owns the tests of sums of tensors: the bytes that fp32 arithmetic gives.
import { describe, expect, test } from "bun:test";
import { add, scale, Tensor } from "../src/index.ts";
import { floatDTypes, testDevices, wave } from "./cases.ts";
import { errorOf, round } from "./reference.ts";

describe.each(testDevices)("on %s", (_, device) => {
  test.each(floatDTypes)("a in %s: a + scale · b, rounded after each step, with b of every dtype", (dtype) => {
    for (const length of [1, 7, 8, 1000, 70_001]) {
      using a = Tensor.from(wave(length, 3, 5), [length], { device }).cast(dtype);
      for (const other of floatDTypes) {
        using b = Tensor.from(wave(length, 7), [length], { device }).cast(other);
        const [left, right] = [a.readFloat32(), b.readFloat32()];
        for (const factor of [1, -0.3]) {
          const product = right.map((value) => Math.fround(factor) * value); // a Float32Array rounds
          using y = add(a, b, { scale: factor });
          expect(y.dtype).toBe(dtype);
          expect(y.readFloat32()).toEqual(product.map((value, i) => round(Math.fround(left[i]! + value), dtype)));
          using scaled = scale(b, factor);
          expect(scaled.readFloat32()).toEqual(product.map((value) => round(value, other)));
        }
      }
    }
  });

  test("keeps the shape, and a sum with itself is twice", () => {
    using a = Tensor.from(wave(24), [2, 3, 4], { device });
    using twice = add(a, a);
    expect(twice.shape).toEqual([2, 3, 4]);
    expect(twice.read()).toEqual(scale(a, 2).read());
  });

  test("what does not fit is refused, with a sentence", () => {
    using a = Tensor.from(wave(6), [2, 3], { device });
    using b = Tensor.from(wave(6), [3, 2], { device });
    using integers = Tensor.from(new Int32Array(6), [2, 3], { device });
    expect(errorOf(() => add(a, b)).message).toBe("add: a is [2, 3] and b is [3, 2]: the shapes must match.");
    expect(errorOf(() => add(a, integers)).message).toContain("b is int32, expected float32");
    expect(errorOf(() => add(a, a, { scale: Number.NaN })).message).toContain("scale is NaN, expected a finite number");
    expect(errorOf(() => scale(a, Number.POSITIVE_INFINITY)).message).toContain("factor is Infinity");
  });
});
