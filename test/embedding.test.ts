// The tests of rows by their indices: the bytes of the whole table dequantised, and sums for the gradient.
import { describe, expect, test } from "bun:test";
import {
  concat,
  Device,
  dequantize4bit,
  dequantizeBlockwise,
  embedding,
  embeddingBackward,
  type FloatDType,
  Int8Weight,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  scale,
  Tensor,
} from "../src/index.ts";
import { native } from "../src/native.ts";
import { Recording } from "../src/recording.ts";
import { codebooks4, codebooksOfOtherBits, floatDTypes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, round } from "./reference.ts";
import { launchesRun } from "./simulated.ts";

/** Tables: rows that are whole blocks, that straddle them, that are longer than a piece, and of one element. */
const tables: [rows: number, d: number][] = [
  [10, 64],
  [7, 96],
  [5, 77],
  [3, 1300],
  [4, 1],
];

describe.each(testDevices)("on %s", (_, device) => {
  const indicesFor = (rows: number) => Int32Array.of(rows - 1, 0, 2, 2, 1, rows - 1, 0);

  /** The rows that the indices name, out of the whole table. */
  function rowsOf<T extends { subarray(from: number, to: number): T }>(table: T, indices: Int32Array, d: number) {
    return [...indices].flatMap((row) => [...(table.subarray(row * d, (row + 1) * d) as unknown as number[])]);
  }

  describe.each(tables)("a table [%d, %d]", (rows, d) => {
    const values = indicesFor(rows);

    test.each(floatDTypes)("gives the bytes that dequantising all of it gives, as %s", (dtype) => {
      using w = Tensor.from(normal(rows * d, d), [rows, d], { device });
      using indices = Tensor.from(values, [7], { device });
      const check = (table: Tensor<FloatDType> | QuantizedTensor, whole: Tensor<FloatDType>) => {
        using y = embedding(indices, table, { dtype });
        expect(y.dtype).toBe(dtype);
        expect(y.shape).toEqual([7, d]);
        expect([...(y.read() as Uint16Array)]).toEqual(rowsOf(whole.read() as Uint16Array, values, d));
      };
      for (const code of Object.values(codebooks4))
        for (const options of [{ blocksize: 32 }, { blocksize: 64 }, { blocksize: 64, compressStatistics: true }]) {
          const q = quantize4bit(w, { quantType: code, ...options });
          check(q, dequantize4bit(q, { dtype }));
        }
      for (const options of [{ blocksize: 64 }, { blocksize: 256, nested: true }]) {
        const q = quantizeBlockwise(w, options);
        check(q, dequantizeBlockwise(q, { dtype }));
      }
      for (const code of Object.values(codebooksOfOtherBits)) {
        const q = quantizeBlockwise(w, { code, blocksize: 32, nested: code.bits === 5 });
        check(q, dequantizeBlockwise(q, { dtype }));
      }
      const { blockwise } = Int8Weight.quantize(w); // a row is a block
      check(blockwise, dequantizeBlockwise(blockwise, { dtype }));
      for (const of of floatDTypes) check(w.cast(of), w.cast(of).cast(dtype));
    });

    test.each(floatDTypes)("the gradient is the sum of its indices' rows, in their order, as %s", (dtype) => {
      using indices = Tensor.from(values, [7], { device });
      for (const of of floatDTypes) {
        using dy = Tensor.from(wave(7 * d, 3), [7, d], { device }).cast(of);
        const gradient = dy.readFloat32();
        for (const paddingIdx of [undefined, 2]) {
          const want = new Float32Array(rows * d);
          for (const [i, row] of values.entries())
            for (let c = 0; c < d; c++) if (row !== paddingIdx) want[row * d + c]! += gradient[i * d + c]!;
          using dw = embeddingBackward(dy, indices, rows, { dtype, paddingIdx });
          expect(dw.shape).toEqual([rows, d]);
          expect(dw.readFloat32()).toEqual(want.map((value) => round(value, dtype)));
        }
      }
    });
  });

  test("the dtype is the table's own by default, and indices keep their shape", () => {
    using w = Tensor.from(normal(6 * 64), [6, 64], { device }).cast("bfloat16");
    using indices = Tensor.from(Int32Array.of(5, 0, 3, 1), [2, 2], { device });
    using y = embedding(indices, quantize4bit(w));
    expect(y.dtype).toBe("bfloat16");
    expect(y.shape).toEqual([2, 2, 64]);
    using dw = embeddingBackward(y, indices, 6);
    expect(dw.dtype).toBe("bfloat16");
  });

  test("an index is followed only where there is a row", () => {
    using w = Tensor.from(wave(4 * 8), [4, 8], { device });
    const at = (...values: number[]) => Tensor.from(Int32Array.from(values), [1, values.length], { device });
    expect(errorOf(() => embedding(at(3, 0, 4), w)).message).toBe(
      "embedding: indices[0, 2] is 4, expected 0 to 3, a row of w.",
    );
    expect(errorOf(() => embedding(at(-1), quantize4bit(w))).message).toContain("indices[0, 0] is -1");
    using dy = Tensor.from(wave(8), [1, 1, 8], { device });
    expect(errorOf(() => embeddingBackward(dy, at(4), 4)).message).toContain("indices[0, 0] is 4");
    expect(errorOf(() => embeddingBackward(dy, at(1), 4, { paddingIdx: 4 })).message).toContain("paddingIdx is 4");
    expect(errorOf(() => embeddingBackward(dy, at(1, 1), 4)).message).toContain("dy needs a row for each index");
    expect(errorOf(() => embeddingBackward(dy, at(1), 0.5)).message).toContain("rows is 0.5");
  });

  describe("the gradient of many indices is their rows' sums in order, to the bit", () => {
    function expectSums(
      indices: Int32Array<ArrayBuffer>,
      rows: number,
      d: number,
      dtype: FloatDType,
      padding?: number,
    ) {
      using dy = Tensor.from(normal(indices.length * d, rows), [indices.length, d], { device }).cast(dtype);
      using at = Tensor.from(indices, [indices.length], { device });
      const gradient = dy.readFloat32();
      const want = new Float32Array(rows * d);
      for (const [i, row] of indices.entries())
        for (let c = 0; c < d; c++) if (row !== padding) want[row * d + c]! += gradient[i * d + c]!;
      using dw = embeddingBackward(dy, at, rows, { paddingIdx: padding });
      expect(Buffer.compare(new Uint8Array(dw.readFloat32().buffer), new Uint8Array(rounded(want, dtype).buffer))).toBe(
        0,
      );
    }
    const rounded = (values: Float32Array, dtype: FloatDType) => values.map((value) => round(value, dtype));
    const spread = (count: number, rows: number) =>
      Int32Array.from({ length: count }, (_, i) => Math.floor(rows * Math.abs(Math.sin(i * i + count)) ** 3));

    test.each([1, 31, 32, 33, 255, 257, 2048, 2049, 4099])("%d of them", (count) => {
      for (const [i, rows] of [1, 2, 255, 256, 5000].entries()) {
        const dtype = floatDTypes[i % 3]!;
        expectSums(spread(count, rows), rows, 3, dtype);
        expectSums(spread(count, rows), rows, 8, dtype, rows >> 1);
      }
    });

    test.each(floatDTypes)("70,000 of a table of 131,072 rows, of %s", (dtype) => {
      expectSums(spread(70_000, 131_072), 131_072, 2, dtype, 0);
    });

    test("all of one row, and each of its own", () => {
      expectSums(new Int32Array(4099).fill(77), 300, 5, "float32");
      expectSums(new Int32Array(4099).fill(77), 300, 5, "float32", 77);
      expectSums(
        Int32Array.from({ length: 4099 }, (_, i) => 4098 - i),
        4099,
        5,
        "float32",
      );
    });
  });

  test.skipIf(!launchesRun)("a GPU is not waited for to write indices, or to check them", () => {
    const values = Int32Array.of(3, 0, 1, 3);
    using w = Tensor.from(wave(4 * 64), [4, 64], { device });
    using q = quantize4bit(w);
    using first = Tensor.from(Int32Array.of(9, 9, 9, 9), [2, 2], { device });
    using elsewhere = Tensor.from(values, [4], { device: Device.open("cpu") });
    first.write(values);
    embedding(first, q).dispose(); // from now on the codebook is there
    device.wait();
    const before = launchesRun!();
    using _pending = scale(w, 2);
    using second = Tensor.from(values, [4], { device });
    using zeros = Tensor.zeros([5], { dtype: "int32", device });
    using halves = Tensor.zeros([2, 4], { dtype: "int32", device });
    using half = halves.slice(1, 2);
    half.write(values);
    const copies = [elsewhere.to(device), concat([second, zeros]), first.reshape([4]), first.slice(0, 1)];
    const given = [first, second, zeros, halves, half, ...copies];
    // And no more than Metal takes in a batch.
    const rows: Tensor<FloatDType>[] = given.map((indices) => embedding(indices, w));
    rows.push(embedding(second, q), embeddingBackward(rows[1]!, second, 4), embeddingBackward(rows[3]!, halves, 4));
    expect(launchesRun!()).toBe(before);
    expect([...rows[0]!.readFloat32()]).toEqual(rowsOf(w.read(), values, 64));
    expect(launchesRun!()).toBeGreaterThan(before + rows.length);
    for (const tensor of [...copies, ...rows]) tensor.dispose();
  });

  describe("an index that was put there after others were checked", () => {
    const w = Tensor.from(wave(4 * 8), [4, 8], { device });
    const dyFor = (indices: Tensor) => Tensor.zeros([...indices.shape, 8], { device });
    const start = () => {
      const indices = Tensor.from(Int32Array.of(1, 2, 3, 0), [1, 4], { device });
      embedding(indices, w).dispose();
      return indices;
    };
    const refused = (indices: Tensor<"int32">, sentence: string) => {
      using dy = dyFor(indices);
      for (const use of [() => embedding(indices, w), () => embeddingBackward(dy, indices, 4)])
        expect(errorOf(use).message).toContain(`${sentence}, expected 0 to 3`);
    };

    test("by a write, and another makes it good", () => {
      using indices = start();
      indices.write(Int32Array.of(1, 2, -5, 0));
      refused(indices, "indices[0, 2] is -5");
      indices.write(Int32Array.of(1, 2, 0x7fffffff, 0));
      refused(indices, "indices[0, 2] is 2147483647");
      indices.write(Int32Array.of(1, 1, 1, 1));
      embedding(indices, w).dispose();
    });

    test("by a write to a slice, or seen through one", () => {
      using indices = Tensor.from(Int32Array.of(0, 1, 2, 3, 3, 2, 1, 0), [2, 4], { device });
      embedding(indices, w).dispose();
      using low = indices.slice(0, 1);
      using high = indices.slice(1, 2);
      high.write(Int32Array.of(0, 4, 0, 0));
      refused(indices, "indices[1, 1] is 4");
      refused(high, "indices[0, 1] is 4");
      embedding(low, w).dispose();
      indices.write(Int32Array.of(9, 1, 2, 3, 3, 2, 1, 0));
      refused(low, "indices[0, 0] is 9");
      embedding(high, w).dispose();
      high.write(Int32Array.of(0, 0, 0, 0)); // which says nothing of the other half
      refused(indices, "indices[0, 0] is 9");
      low.write(Int32Array.of(0, 0, 0, 0));
      embedding(indices, w).dispose();
    });

    test("by a copy", () => {
      using indices = start();
      using bad = Tensor.from(Int32Array.of(4, 0, 0, 0), [1, 4], { device });
      using both = concat([indices, bad]);
      refused(both, "indices[1, 0] is 4");
      using moved = bad.to(Device.open("cpu"));
      using back = moved.to(device);
      refused(back, "indices[0, 0] is 4");
    });

    test("by whoever has the memory", () => {
      using indices = start();
      using other = start();
      try {
        indices.view((elements) => {
          elements[3] = 7;
        });
      } catch (error) {
        expect((error as Error).message).toContain("does not share its memory");
        return;
      }
      refused(indices, "indices[0, 3] is 7");
      other.view((elements) => {
        other.write(Int32Array.of(0, 0, 0, 0));
        elements[1] = -1;
        refused(other, "indices[0, 1] is -1");
      });
    });

    test("by a kernel, when a recording runs again", () => {
      using x = Tensor.from(Float32Array.of(0, 0, -1, -1, -1, -1, -1, -1), [1, 8], { device });
      let chosen: Tensor<"int32"> | undefined;
      using recording = Recording.of(() => {
        chosen = new Tensor(native.bnb_topk(x.pointer, 2n)!, "int32", [1, 4], device); // 0, 1, and zeros' bits
      }, device);
      using indices = chosen!;
      using y = embedding(indices, w);
      expect([...y.readFloat32()]).toEqual(rowsOf(w.read(), Int32Array.of(0, 1, 0, 0), 8));
      indices.write(Int32Array.of(3, 3, 3, 3));
      embedding(indices, w).dispose();
      x.write(Float32Array.of(-1, -1, -1, -1, -1, 0, -1, 0));
      recording.run();
      refused(indices, "indices[0, 0] is 5");
    });
  });

  test("indices and tables of other kinds are refused, with a sentence", () => {
    using w = Tensor.from(wave(4 * 8), [4, 8], { device });
    using cube = Tensor.from(wave(4 * 8), [4, 2, 4], { device });
    using indices = Tensor.from(Int32Array.of(1), [1], { device });
    const table = Tensor.from(new Int32Array(8), [4, 2], { device }) as unknown as Tensor<"float32">;
    expect(errorOf(() => embedding(w as unknown as Tensor<"int32">, w)).message).toContain("indices is float32");
    expect(errorOf(() => embedding(indices, cube)).message).toContain("w is [4, 2, 4], expected two dimensions");
    expect(errorOf(() => embedding(indices, table)).message).toContain("w is int32");
  });
});
