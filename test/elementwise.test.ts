// The tests of what is done element by element: the bytes that fp32 arithmetic gives, and powers of e within 2 ulp.
import { describe, expect, test } from "bun:test";
import { add, exp, mul, scale, sigmoid, softmax, Tensor } from "../src/index.ts";
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

  test.each(floatDTypes)("a in %s: a · b, rounded once, with b of every dtype", (dtype) => {
    for (const length of [1, 7, 8, 1000, 70_001]) {
      using a = Tensor.from(wave(length, 3, 5), [length], { device }).cast(dtype);
      for (const other of floatDTypes) {
        using b = Tensor.from(wave(length, 7), [length], { device }).cast(other);
        const [left, right] = [a.readFloat32(), b.readFloat32()];
        using y = mul(a, b);
        expect(y.dtype).toBe(dtype);
        expect(y.readFloat32()).toEqual(left.map((value, i) => round(Math.fround(value * right[i]!), dtype)));
      }
    }
  });

  /** Half the distance of neighbours of a dtype, for a number of this size. */
  const halfStep = (value: number, dtype: (typeof floatDTypes)[number]) => {
    const [bits, least] = { float32: [24, -149], float16: [11, -24], bfloat16: [8, -133] }[dtype] as [number, number];
    return 2 ** Math.max(Math.floor(Math.log2(Math.abs(value))) + 1 - bits, least) / 2;
  };

  test.each(floatDTypes)("e to the x in %s, within 2 ulp of fp32 and rounded once", (dtype) => {
    const values = Float32Array.from({ length: 4099 }, (_, i) => ((i - 2049) / 2049) * (dtype === "float16" ? 9 : 80));
    using x = Tensor.from(values, undefined, { device }).cast(dtype);
    const given = x.readFloat32();
    for (const [i, y] of exp(x).readFloat32().entries()) {
      const want = Math.exp(given[i]!);
      const ulp = 2 * halfStep(want, "float32");
      expect(Math.abs(y - want)).toBeLessThanOrEqual(2 * ulp + (dtype === "float32" ? 0 : halfStep(want, dtype)));
    }
    using odd = Tensor.from([Number.NaN, Infinity, -Infinity, 0, -0, 200, -200], undefined, { device }).cast(dtype);
    expect([...exp(odd).readFloat32()]).toEqual([Number.NaN, Infinity, 0, 1, 1, Infinity, 0]);
  });

  test.each(floatDTypes)("the sigmoid in %s, within 4 ulp of fp32 and rounded once", (dtype) => {
    const values = Float32Array.from({ length: 4099 }, (_, i) => ((i - 2049) / 2049) * (dtype === "float16" ? 9 : 80));
    using x = Tensor.from(values, undefined, { device }).cast(dtype);
    const given = x.readFloat32();
    for (const [i, y] of sigmoid(x).readFloat32().entries()) {
      const want = 1 / (1 + Math.exp(-given[i]!));
      const ulp = 2 * halfStep(want, "float32");
      expect(Math.abs(y - want)).toBeLessThanOrEqual(4 * ulp + (dtype === "float32" ? 0 : halfStep(want, dtype)));
    }
    using odd = Tensor.from([Number.NaN, Infinity, -Infinity, 0, -0, 200, -200], undefined, { device }).cast(dtype);
    expect([...sigmoid(odd).readFloat32()]).toEqual([Number.NaN, 1, 0, 0.5, 0.5, 1, 0]);
  });

  test.each(floatDTypes)("softmax of rows in %s", (dtype) => {
    for (const [rows, columns] of [
      [1, 1],
      [3, 7],
      [2, 33],
      [5, 1000],
      [1, 70_001],
    ] as const) {
      using x = Tensor.from(wave(rows * columns, 3, 20), [rows, 1, columns], { device }).cast(dtype);
      using y = softmax(x);
      expect([y.shape, y.dtype]).toEqual([[rows, 1, columns], dtype]);
      const [given, got] = [x.readFloat32(), y.readFloat32()];
      for (let row = 0; row < rows; row++) {
        const values = given.subarray(row * columns, (row + 1) * columns);
        const top = values.reduce((a, b) => Math.max(a, b));
        const sum = values.reduce((total, value) => total + Math.exp(value - top), 0);
        for (const [c, value] of values.entries()) {
          const want = Math.exp(value - top) / sum;
          // What is taken off is rounded too, and counts for as much as it is large.
          const allowed =
            (2e-6 + 2 ** -24 * (top - value)) * want + (dtype === "float32" ? 1e-38 : 1.01 * halfStep(want, dtype));
          expect(Math.abs(got[row * columns + c]! - want)).toBeLessThanOrEqual(allowed);
        }
      }
    }
    const odd = Tensor.from(
      [
        [1, Number.NaN, 3],
        [-Infinity, 0, 0],
        [1e4, 0, -1e4],
      ],
      undefined,
      { device },
    ).cast(dtype);
    expect([...softmax(odd).readFloat32()]).toEqual([Number.NaN, Number.NaN, Number.NaN, 0, 0.5, 0.5, 1, 0, 0]);
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
    expect(errorOf(() => mul(a, b)).message).toBe("mul: a is [2, 3] and b is [3, 2]: the shapes must match.");
    expect(errorOf(() => exp(integers as never)).message).toBe(
      "exp: x is int32, expected float32, float16 or bfloat16.",
    );
    expect(errorOf(() => softmax(integers as never)).message).toContain("softmax: x is int32");
    expect(errorOf(() => scale(a, Number.POSITIVE_INFINITY)).message).toContain("factor is Infinity");
  });
});
