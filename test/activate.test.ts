// The tests of activations and gates, against float64.
import { describe, expect, test } from "bun:test";
import { type Activation, activate, type FloatDType, Tensor } from "../src/index.ts";
import { floatDTypes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, relativeError } from "./reference.ts";

const tolerance: Record<FloatDType, number> = { float32: 1e-6, float16: 4e-4, bfloat16: 3e-3 };
const shapes: [rows: number, columns: number][] = [
  [2, 6],
  [3, 34],
  [5, 154],
  [1, 3072],
];

/** The error function by its series, or by a continued fraction of what is left to 1. */
function erf(x: number): number {
  const a = Math.abs(x);
  if (a < 3) {
    let [sum, term] = [a, a];
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= -(a * a) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / ((a + fraction) * Math.sqrt(Math.PI)));
}

const functions: Record<Activation, (x: number) => number> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  geluTanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  tanh: Math.tanh,
};

const kinds = Object.keys(functions) as Activation[];

describe.each(testDevices)("on %s", (_, device) => {
  describe.each(kinds)("%s", (kind) => {
    test.each(shapes)("x [%d, %d], plain, in halves, and with another tensor", (rows, columns) => {
      for (const dtype of floatDTypes) {
        using x = Tensor.from(normal(rows * columns, 2, 3), [rows, columns], { device }).cast(dtype);
        using up = Tensor.from(wave(rows * columns, 3), [rows, columns], { device }).cast(dtype);
        const [values, ups] = [x.readFloat32(), up.readFloat32()];
        const plain = Float64Array.from(values, functions[kind]);
        using y = activate(x, kind);
        expect([y.dtype, y.shape]).toEqual([dtype, [rows, columns]]);
        expect(relativeError(y.readFloat32(), plain)).toBeLessThan(tolerance[dtype]);

        using gated = activate(x, kind, { up });
        const product = plain.map((v, i) => v * ups[i]!);
        expect(relativeError(gated.readFloat32(), product)).toBeLessThan(tolerance[dtype]);

        using halves = activate(x, kind, { gated: true });
        const half = columns / 2;
        const want = Float64Array.from({ length: rows * half }, (_, i) => {
          const at = Math.floor(i / half) * columns + (i % half);
          return plain[at]! * values[at + half]!;
        });
        expect(halves.shape).toEqual([rows, half]);
        expect(relativeError(halves.readFloat32(), want)).toBeLessThan(tolerance[dtype]);
      }
    });

    test("element by element within a few of the last bit, far out too", () => {
      const values = Float32Array.from({ length: 4001 }, (_, i) => (i - 2000) / 20);
      using x = Tensor.from(values, undefined, { device });
      const y = activate(x, kind).read();
      for (const [i, v] of values.entries()) {
        const want = functions[kind](v);
        // Where one is taken from what is nearly one, as in the tail on the left, the last bit is of what stands for
        // one.
        const scale = kind === "silu" || kind === "tanh" ? Math.abs(want) : Math.max(Math.abs(want), Math.abs(v) / 4);
        expect(Math.abs(y[i]! - want)).toBeLessThanOrEqual(1e-6 * scale + 1e-35);
      }
    });
  });

  test("what is no number, and what has no end", () => {
    using x = Tensor.from([Number.NaN, Infinity, -Infinity, 1e30], undefined, { device });
    expect([...activate(x, "silu").read()].map(String)).toEqual(["NaN", "Infinity", "NaN", String(Math.fround(1e30))]);
  });

  test("what does not fit is refused, with a sentence", () => {
    using x = Tensor.from(wave(9), [3, 3], { device });
    using up = Tensor.from(wave(6), [3, 2], { device });
    using half = Tensor.from(wave(9), [3, 3], { device }).cast("float16");
    expect(errorOf(() => activate(x, "silu", { up })).message).toContain(
      "up is float32 [3, 2] and x is float32 [3, 3]",
    );
    expect(errorOf(() => activate(x, "silu", { up: half })).message).toContain("up is float16 [3, 3]");
    expect(errorOf(() => activate(x, "silu", { gated: true })).message).toContain("x has 3 columns, expected an even");
    expect(errorOf(() => activate(x, "relu" as "silu")).message).toContain('activation is "relu"');
  });
});
