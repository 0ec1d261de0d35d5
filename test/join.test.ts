// Owns the tests of weights put one under the other.
import { describe, expect, test } from "bun:test";
import {
  Codebook,
  dequantizeBlockwise,
  joinRows,
  matmul4bit,
  QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { floatDTypes, normal, testDevices } from "./cases.ts";
import { errorOf } from "./reference.ts";

/** As MLX and GGUF have them. */
function withOffsets(w: Tensor, dtype: "float16" | "bfloat16"): QuantizedTensor {
  const q = quantize4bit(w);
  const absmax = (q.absmax as Tensor<"float32">).cast(dtype);
  const offsets = Tensor.from(normal(absmax.size, w.shape[0]), undefined, { device: w.device }).cast(dtype);
  return QuantizedTensor.fromParts({
    ...{ codes: q.codes, absmax, offsets, code: Codebook.named("nf4") },
    ...{ blocksize: 64, shape: w.shape },
  });
}

describe.each(testDevices)("on %s", (_, device) => {
  const weight = (rows: number, columns: number, seed: number) =>
    Tensor.from(normal(rows * columns, seed), [rows, columns], { device });

  test.each(floatDTypes)("dense rows in %s", (dtype) => {
    const parts = [weight(3, 5, 1), weight(1, 5, 2), weight(4, 5, 3)].map((part) => part.cast(dtype));
    using whole = joinRows(parts);
    expect(whole.shape).toEqual([8, 5]);
    expect([...whole.read()]).toEqual(parts.flatMap((part) => [...part.read()]));
  });

  const formats: [string, (w: Tensor) => QuantizedTensor][] = [
    ["nf4", (w) => quantize4bit(w, { blocksize: 32 })],
    ["fp4, nested", (w) => quantize4bit(w, { quantType: "fp4", compressStatistics: true })],
    ["8 bits", (w) => quantizeBlockwise(w, { blocksize: 64 })],
    ["int8", (w) => quantizeBlockwise(w, { code: Codebook.named("int8"), blocksize: 64 })],
    ["scales of float16 and an offset a block", (w) => withOffsets(w, "float16")],
    ["scales of bfloat16 and an offset a block", (w) => withOffsets(w, "bfloat16")],
    ["3 bits", (w) => quantizeBlockwise(w, { code: Codebook.named("nf3") })],
  ];

  test.each(formats)("%s: what the parts stand for, to the bit", (_, quantize) => {
    const parts = [weight(6, 64, 1), weight(2, 64, 2), weight(5, 64, 3)].map(quantize);
    using whole = joinRows(parts);
    expect(whole.shape).toEqual([13, 64]);
    expect(whole.nested).toBe(false);
    const want = parts.flatMap((part) => [...dequantizeBlockwise(part).readFloat32()]);
    expect([...dequantizeBlockwise(whole).readFloat32()]).toEqual(want);
  });

  test("one product gives what several do", () => {
    const parts = [weight(40, 192, 1), weight(8, 192, 2)].map((w) => quantize4bit(w));
    using whole = joinRows(parts);
    using x = weight(1, 192, 4);
    const want = parts.flatMap((part) => [...matmul4bit(x, part).read()]);
    expect([...matmul4bit(x, whole).read()]).toEqual(want);
  });

  test("what does not fit is refused, with a sentence", () => {
    const dense = weight(2, 64, 1);
    const nf4 = quantize4bit(dense);
    expect(errorOf(() => joinRows([dense, weight(2, 32, 1)])).message).toContain("as many columns");
    expect(errorOf(() => joinRows([dense, dense.cast("float16")])).message).toContain("float16 [2, 64]");
    expect(errorOf(() => joinRows<Tensor | QuantizedTensor>([dense, nf4])).message).toContain("not of one kind");
    expect(errorOf(() => joinRows([nf4, quantize4bit(dense, { quantType: "fp4" })])).message).toContain(
      "another codebook",
    );
    expect(errorOf(() => joinRows([nf4, quantize4bit(dense, { blocksize: 32 })])).message).toContain("blocks of 32");
    const ragged = quantize4bit(weight(1, 96, 1));
    expect(errorOf(() => joinRows([ragged, ragged])).message).toContain("no whole blocks of 64");
    expect(errorOf(() => joinRows([])).message).toContain("weights is [], expected an array");
  });
});
