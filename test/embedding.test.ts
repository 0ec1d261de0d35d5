// The tests of rows by their indices: the bytes of the whole table dequantised, and sums for the gradient.
import { describe, expect, test } from "bun:test";
import {
  dequantize4bit,
  dequantizeBlockwise,
  embedding,
  embeddingBackward,
  type FloatDType,
  Int8Weight,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { codebooks4, codebooksOfOtherBits, floatDTypes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, round } from "./reference.ts";

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
