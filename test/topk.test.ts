// The tests of top-k, of routing to experts, and of what experts give back.
import { describe, expect, test } from "bun:test";
import { route, scatterAdd, Tensor, topK } from "../src/index.ts";
import { floatDTypes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, relativeError } from "./reference.ts";

const shapes: [rows: number, columns: number, count: number][] = [
  [1, 1, 1],
  [1, 49152, 1],
  [1, 5003, 64],
  [7, 60, 8],
  [3, 1024, 1024],
  [2, 40, 40],
];

/** Indices in the order that is asked for: by value, then by place, NaN last. */
function sorted(row: Float32Array, count: number): number[] {
  const key = (i: number) => (Number.isNaN(row[i]!) ? -Infinity : row[i]!);
  return [...row.keys()].sort((a, b) => key(b) - key(a) || a - b).slice(0, count);
}

describe.each(testDevices)("on %s", (_, device) => {
  test.each(shapes)("the largest of x [%d, %d], %d of each row", (rows, columns, count) => {
    for (const dtype of floatDTypes) {
      using x = Tensor.from(normal(rows * columns, 7), [rows, columns], { device }).cast(dtype);
      const values = x.readFloat32();
      const { indices, values: largest } = topK(x, count);
      for (let row = 0; row < rows; row++) {
        const of = values.subarray(row * columns, (row + 1) * columns);
        const want = sorted(of, count);
        expect([...indices.subarray(row * count, (row + 1) * count)]).toEqual(want);
        expect([...largest.subarray(row * count, (row + 1) * count)]).toEqual(want.map((i) => of[i]!));
      }
    }
  });

  test("equal values by their place, infinities, and NaN last", () => {
    using x = Tensor.from([Number.NaN, 1, 2, 2, -Infinity, Infinity, 2, Number.NaN], [1, 8], { device });
    expect([...topK(x, 8).indices]).toEqual([5, 2, 3, 6, 1, 0, 4, 7]);
    using nothing = Tensor.from([Number.NaN, Number.NaN], [1, 2], { device });
    expect([...topK(nothing, 1).indices]).toEqual([0]);
  });

  test("equal values of a row that is gone through in parts, and parts that have fewer than are asked for", () => {
    const columns = 4 * 2048 + 9;
    const values = Float32Array.from({ length: 2 * columns }, (_, i) => (i * 7919) % 5);
    values.fill(Number.NaN, 10, 6000);
    values[columns - 1] = 9;
    using x = Tensor.from(values, [2, columns], { device });
    const { indices } = topK(x, 40);
    for (const row of [0, 1]) {
      const of = values.subarray(row * columns, (row + 1) * columns);
      expect([...indices.subarray(row * 40, (row + 1) * 40)]).toEqual(sorted(of, 40));
    }
  });

  test.each([
    [1, 4, 2],
    [9, 60, 4],
    [5, 128, 8],
    [3, 3, 3],
  ])("routes of x [%d, %d] to %d experts", (rows, columns, count) => {
    using x = Tensor.from(normal(rows * columns, 7, 2), [rows, columns], { device });
    const values = x.read();
    for (const normalised of [false, true]) {
      const { indices, values: shares } = route(x, count, { normalised });
      for (let row = 0; row < rows; row++) {
        const of = values.subarray(row * columns, (row + 1) * columns);
        const want = sorted(of, count);
        const all = (normalised ? want.map((i) => of[i]!) : [...of]).reduce((sum, v) => sum + Math.exp(v), 0);
        expect([...indices.subarray(row * count, (row + 1) * count)]).toEqual(want);
        const exact = Float64Array.from(want, (i) => Math.exp(of[i]!) / all);
        expect(relativeError(shares.subarray(row * count, (row + 1) * count), exact)).toBeLessThan(2e-6);
      }
    }
  });

  test.each([
    [4, 7, 3],
    [3, 64, 5],
    [1, 1000, 1],
  ])("rows are added to y [%d, %d], %d of them, some to the same", (m, columns, count) => {
    for (const dtype of floatDTypes) {
      using y = Tensor.from(wave(m * columns, 2), [m, columns], { device }).cast(dtype);
      using x = Tensor.from(normal(count * columns, 3), [count, columns], { device });
      const rows = Int32Array.from({ length: count }, (_, i) => (i * 2) % m);
      const weights = wave(count, 5);
      const [want, added] = [Float64Array.from(y.readFloat32()), x.read()];
      for (const [i, row] of rows.entries())
        for (let c = 0; c < columns; c++) want[row * columns + c]! += weights[i]! * added[i * columns + c]!;
      scatterAdd(y, x, Tensor.from(rows, undefined, { device }), Tensor.from(weights, undefined, { device }));
      expect(relativeError(y.readFloat32(), want)).toBeLessThan(
        { float32: 1e-6, float16: 1e-3, bfloat16: 8e-3 }[dtype],
      );
    }
  });

  test("what does not fit is refused, with a sentence", () => {
    using x = Tensor.from(wave(8), [2, 4], { device });
    using one = Tensor.from([1], undefined, { device });
    using rows = Tensor.from(Int32Array.of(0, 1), undefined, { device });
    expect(errorOf(() => topK(x, 5)).message).toContain("count is 5, expected 1 to 4");
    expect(errorOf(() => topK(x, 0)).message).toContain("count is 0");
    expect(errorOf(() => route(x, 1.5)).message).toContain("count is 1.5");
    expect(errorOf(() => scatterAdd(x, x, rows, one)).message).toContain("weights is float32 [1, 1]");
    using two = Tensor.from([1, 1], undefined, { device });
    expect(errorOf(() => scatterAdd(x, x, rows, two)).message).toContain("x shares its memory with y");
    using other = Tensor.from(wave(8), [2, 4], { device });
    expect(errorOf(() => scatterAdd(x, other, two as unknown as Tensor<"int32">, two)).message).toContain(
      "rows is float32",
    );
    if (device.kind !== "cpu") return; // a GPU leaves such a row out
    using outside = Tensor.from(Int32Array.of(0, 2), undefined, { device });
    expect(errorOf(() => scatterAdd(x, other, outside, two)).message).toContain(
      "rows[1] is 2, expected a row of y, 0 to 1",
    );
  });
});
