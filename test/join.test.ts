// The tests of weights put one under the other.
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

const sixty4 = Codebook.from(Array.from({ length: 64 }, (_, i) => i));

/** As GGUF's Q4_K: scales and offsets as 6-bit codes by halves. */
function withNestedOffsets(w: Tensor, blocksize: number, offset = -0): QuantizedTensor {
  const { device, shape } = w;
  const q = quantize4bit(w, { blocksize: 32 });
  const blocks = w.size / 32;
  const groups = Math.ceil(blocks / blocksize);
  const codes = (seed: number) =>
    Tensor.from(
      Uint8Array.from({ length: Math.ceil((blocks * 6) / 8) }, (_, i) => i * seed),
      undefined,
      { device },
    );
  const halves = (seed: number) => Tensor.from(normal(groups, seed), undefined, { device }).cast("float16");
  return QuantizedTensor.fromParts({
    ...{ codes: q.codes, absmax: codes(37 + shape[0]!), offsets: codes(91), code: Codebook.named("nf4") },
    ...{ blocksize: 32, shape },
    nested: { absmax: halves(1), code: sixty4, blocksize, offset, offsetsAbsmax: halves(2) },
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

  test.each([
    ["alike: they stay nested", 4, [-0, -0, -0], true],
    ["in groups that end in the next part", 8, [-0, -0, -0], false],
    ["with other offsets", 4, [0.5, -0, 0.5], false],
  ] as const)("nested scales and offsets %s", (_, group, offsets, stays) => {
    const parts = [weight(6, 64, 1), weight(2, 64, 2), weight(5, 64, 3)].map((w, i) =>
      withNestedOffsets(w, group, offsets[i]),
    );
    using whole = joinRows(parts);
    expect(whole.nested).toBe(stays);
    expect([whole.absmax.dtype, whole.offsets?.dtype]).toEqual(stays ? ["uint8", "uint8"] : ["float32", "float32"]);
    const want = parts.flatMap((part) => [...dequantizeBlockwise(part).readFloat32()]);
    expect([...dequantizeBlockwise(whole).readFloat32()]).toEqual(want);
    const bytes = parts.reduce((sum, part) => sum + part.byteLength, 0);
    if (stays) expect(whole.byteLength).toBe(bytes);
    using copy = whole.to("cpu");
    expect([...dequantizeBlockwise(copy).readFloat32()]).toEqual(want);
  });

  test("offsets of other dtypes become floats, and where one has none it is refused", () => {
    const parts = [withOffsets(weight(2, 64, 1), "float16"), withOffsets(weight(3, 64, 2), "bfloat16")];
    using whole = joinRows(parts);
    expect(whole.offsets?.dtype).toBe("float32");
    const want = parts.flatMap((part) => [...dequantizeBlockwise(part).readFloat32()]);
    expect([...dequantizeBlockwise(whole).readFloat32()]).toEqual(want);
    const none = quantize4bit(weight(2, 64, 3));
    expect(errorOf(() => joinRows([parts[0]!, none])).message).toContain(
      "one of weights has offsets of blocks, and the next of weights has none",
    );
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
