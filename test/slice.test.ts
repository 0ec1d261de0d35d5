// The tests of parts of tensors and of tensors put together: shared memory, copies where it can't be, and every shape.
import { describe, expect, test } from "bun:test";
import { concat, linear, quantize4bit, Tensor } from "../src/index.ts";
import { floatDTypes, testDevices, wave } from "./cases.ts";
import { errorOf } from "./reference.ts";
import { settled } from "./settled.ts";

describe.each(testDevices)("on %s", (_, device) => {
  test("slices are rows, of every shape and dtype, aligned or not", () => {
    for (const dtype of [...floatDTypes, "int8", "int32"] as const)
      for (const shape of [[7], [7, 3], [5, 4, 8], [6, 2, 3, 1]]) {
        const size = shape.reduce((a, b) => a * b, 1);
        const values = Array.from({ length: size }, (_, i) => (i % 100) - 50);
        using x = Tensor.from(values, shape, { dtype, device });
        const row = size / shape[0]!;
        for (const [start, end] of [
          [0, 3],
          [1, 3],
          [2, undefined],
          [-2, -1],
          [4, 2],
          [0, 99],
          [3, 3],
        ] as const) {
          using part = x.slice(start, end);
          const want = Array.from({ length: shape[0]! }, (_, i) => i).slice(start, end);
          expect(part.shape).toEqual([want.length, ...shape.slice(1)]);
          const all = x.read() as Int32Array;
          expect([...(part.read() as Int32Array)]).toEqual(
            want.flatMap((i) => [...all.subarray(i * row, (i + 1) * row)]),
          );
        }
      }
  });

  test("the bytes that are held are counted, and the most that were", () => {
    const { bytes, peak } = settled(device);
    expect(peak).toBeGreaterThanOrEqual(bytes);
    using x = Tensor.zeros([peak - bytes + 4096], { dtype: "uint8", device });
    expect(device.counters.bytes).toBe(peak + 4096);
    expect(device.counters.peak).toBe(peak + 4096);
    x.dispose();
    expect(device.counters.bytes).toBe(bytes);
    expect(device.counters.peak).toBe(peak + 4096);
  });

  test("an aligned slice shares the memory, and outlives what it is of", () => {
    const x = Tensor.from(wave(8 * 16), [8, 16], { device });
    const before = settled(device).bytes;
    const part = x.slice(2, 4);
    const inner = part.slice(1);
    expect(device.counters.bytes).toBe(before);
    x.write(new Float32Array(8 * 16).fill(3));
    expect(part.read()).toEqual(new Float32Array(32).fill(3));
    part.write(new Float32Array(32).fill(5));
    expect(x.read()[2 * 16]).toBe(5);
    expect(x.read()[4 * 16]).toBe(3);
    x.dispose();
    part.dispose();
    expect(inner.read()).toEqual(new Float32Array(16).fill(5));
    inner.dispose();
    expect(device.counters.bytes).toBe(before - 8 * 16 * 4);
  });

  test("operations take slices as they take any tensor", () => {
    using w = Tensor.from(wave(24 * 64), [24, 64], { device });
    using x = Tensor.from(wave(6 * 64, 2), [6, 64], { device });
    for (const [from, to] of [
      [1, 3],
      [2, 6],
    ] as const) {
      using part = x.slice(from, to);
      using copy = Tensor.from((x.read() as Float32Array).slice(from * 64, to * 64), [to - from, 64], { device });
      expect(linear(part, w).read()).toEqual(linear(copy, w).read());
      expect(linear(part, w.slice(8)).read()).toEqual(linear(copy, w.slice(8).to(device)).read());
      expect(part.cast("float16").read()).toEqual(copy.cast("float16").read());
      expect(quantize4bit(part).codes.read()).toEqual(quantize4bit(copy).codes.read());
    }
  });

  test("transpose, of every dtype; a vector's shares the memory", () => {
    for (const dtype of [...floatDTypes, "int8", "uint8", "int32"] as const)
      for (const [rows, columns] of [
        [2, 3],
        [33, 65],
        [1, 7],
        [7, 1],
        [100, 4],
        [0, 3],
      ] as const) {
        const values = Array.from({ length: rows * columns }, (_, i) => i % 100);
        using x = Tensor.from(values, [rows, columns], { dtype, device });
        using y = x.transpose();
        expect(y.shape).toEqual([columns, rows]);
        const want = Array.from(
          { length: rows * columns },
          (_, i) => ((i % rows) * columns + Math.floor(i / rows)) % 100,
        );
        expect([...(y.dtype === "bfloat16" ? y.readFloat32() : (y.read() as Int32Array))]).toEqual(want);
      }
    using row = Tensor.from([[1, 2, 3]], undefined, { device });
    using column = row.transpose();
    row.write(Float32Array.of(4, 5, 6));
    expect(column.read()).toEqual(Float32Array.of(4, 5, 6));
    expect(errorOf(() => Tensor.zeros([2, 2, 2], { device }).transpose()).message).toContain("expected two dimensions");
  });

  test("concat is the inverse, whatever the parts", () => {
    for (const dtype of [...floatDTypes, "uint8"] as const) {
      using x = Tensor.from(
        Array.from({ length: 9 * 2 * 5 }, (_, i) => i),
        [9, 2, 5],
        { dtype, device },
      );
      using all = concat([x.slice(0, 1), x.slice(1, 4), x.slice(4, 4), x.slice(4)]);
      expect(all.shape).toEqual([9, 2, 5]);
      expect(all.read()).toEqual(x.read());
    }
    using vectors = concat([Tensor.from([1, 2], undefined, { device }), Tensor.from([3], undefined, { device })]);
    expect(vectors.read()).toEqual(Float32Array.of(1, 2, 3));
    using a = Tensor.zeros([1, 2], { device });
    for (const [parts, sentence] of [
      [[], "expected Tensors in an array"],
      [[a, Tensor.zeros([1, 3], { device })], "tensors[1] is Tensor(float32 [1, 3]"],
      [[a, a.cast("float16")], "expected float32"],
    ] as const)
      expect(errorOf(() => concat(parts as readonly Tensor[])).message).toContain(sentence);
  });
});
