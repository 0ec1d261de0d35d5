// Tests that docs/format.md is enough to write a reader: one that was written from that page alone, and shares
// no code with the library, reads files of bitsandbytes' own, and the library's, to the last bit.
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  Codebook,
  checkpoint,
  createLinearMap,
  dequantize4bit,
  dequantizeBlockwise,
  Int8Weight,
  QuantizedTensor,
  quantize4bit,
  quantizeAffine,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { weights } from "./models.ts";

type Part = { dtype: string; shape: number[]; bytes: Uint8Array };
type File = Map<string, Part>;

function readFile(path: string): File {
  const bytes = readFileSync(path);
  const header = Number(bytes.readBigUInt64LE(0));
  const entries = Object.entries(JSON.parse(bytes.toString("utf8", 8, 8 + header))) as [string, Entry][];
  type Entry = { dtype: string; shape: number[]; data_offsets: [number, number] };
  const parts = entries.filter(([name]) => name !== "__metadata__");
  return new Map(
    parts.map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [start, end],
        },
      ]) => {
        return [name, { dtype, shape, bytes: bytes.subarray(8 + header + start, 8 + header + end) }];
      },
    ),
  );
}

/** Of any float dtype. */
function floats({ dtype, bytes }: Part): Float32Array {
  const { buffer } = Uint8Array.from(bytes);
  if (dtype === "F16") return Float32Array.from(new Float16Array(buffer));
  if (dtype === "BF16") return new Float32Array(Uint32Array.from(new Uint16Array(buffer), (half) => half << 16).buffer);
  return new Float32Array(buffer);
}

/** Rounds to bfloat16, to nearest and ties to even, and gives the bits. */
function bfloat16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0]!;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

const rounded = {
  float32: (values: number[]) => Float32Array.from(values),
  float16: (values: number[]) => Float16Array.from(values),
  bfloat16: (values: number[]) => Uint16Array.from(values, bfloat16),
};

/** The elements of the blockwise weight `name`, in its dtype. */
function readBlockwise(file: File, name: string) {
  const key = [...file.keys()].find((key) => key.startsWith(`${name}.quant_state.`))!;
  const state = JSON.parse(Buffer.from(file.get(key)!.bytes).toString());
  const part = (suffix: string) => file.get(`${name}.${suffix}`)!;
  const code = floats(part("quant_map"));
  const codes = file.get(name)!.bytes;
  const codeAt = (of: Uint8Array, bits: number, i: number) => {
    const bit = (at: number) => (of[at >> 3]! >> (7 - (at & 7))) & 1;
    return Array.from({ length: bits }, (_, j) => bit(i * bits + j)).reduce((sum, next) => 2 * sum + next, 0);
  };
  const scale = state.nested_blocksize ? nestedScale() : plain("absmax");
  const offset = state.offsets_dtype === "uint8" ? nested("offsets", "offsets_absmax") : plain("offsets");

  function plain(suffix: string) {
    const values = file.has(`${name}.${suffix}`) ? floats(part(suffix)) : undefined;
    return values && ((b: number) => values[b]!);
  }

  function nested(suffix: string, outer: string) {
    const [nestedCode, absmax] = [floats(part("nested_quant_map")), floats(part(outer))];
    const of = part(suffix).bytes;
    const group = (b: number) => absmax[Math.floor(b / state.nested_blocksize)]!;
    return (b: number) => Math.fround(nestedCode[codeAt(of, state.nested_bits ?? 8, b)]! * group(b));
  }

  function nestedScale() {
    const product = nested("absmax", "nested_absmax");
    const offsets = state.nested_offsets && floats(part("nested_offsets"));
    const offset = (b: number) => offsets?.[Math.floor(b / state.nested_blocksize)] ?? Math.fround(state.nested_offset);
    return (b: number) => Math.fround(product(b) + offset(b));
  }

  const n = state.shape.reduce((product: number, extent: number) => product * extent, 1);
  const elements = Array.from({ length: n }, (_, i) => {
    const b = Math.floor(i / state.blocksize);
    const scaled = Math.fround(code[codeAt(codes, state.bits ?? 4, i)]! * scale!(b));
    return offset ? Math.fround(scaled + offset(b)) : scaled;
  });
  return rounded[state.dtype as keyof typeof rounded](elements);
}

/** The elements of the int8 weight `<prefix>.weight`, as float32. */
function readInt8(file: File, prefix: string): Float32Array {
  const { bytes, shape } = file.get(`${prefix}.weight`)!;
  const codes = new Int8Array(Uint8Array.from(bytes).buffer);
  const scales = floats(file.get(`${prefix}.SCB`)!);
  const constant = Math.fround(7.874015718698502e-3);
  return Float32Array.from(codes, (code, i) =>
    Math.fround(Math.fround(code * scales[Math.floor(i / shape[1]!)]!) * constant),
  );
}

const bytesOf = (view: ArrayBufferView) => Buffer.from(view.buffer, view.byteOffset, view.byteLength);

test.each(["nf4_double", "nf4_nodouble", "fp4_nodouble", "nf4_double_bf16storage"])(
  "bitsandbytes' own %s reads as bitsandbytes dequantises it",
  (name) => {
    const golden = (file: string) => readFile(join(import.meta.dir, `golden/${file}.safetensors`));
    const dequantised = golden(`${name}.source`).get("dequant")!.bytes;
    expect(Buffer.compare(bytesOf(readBlockwise(golden(name), "layer.weight")), dequantised)).toBe(0);
  },
);

describe("what this library writes", () => {
  const path = join(tmpdir(), `bnb-format-${process.pid}.safetensors`);
  afterAll(() => rmSync(path));

  test.each(["float32", "float16", "bfloat16"] as const)("ragged 4-bit weights of %s", async (dtype) => {
    using w = Tensor.from(weights(33 * 7), [33, 7], { dtype }); // an odd number of elements, and a short last block
    for (const compressStatistics of [false, true]) {
      using q = quantize4bit(w, { blocksize: 32, compressStatistics });
      await checkpoint.writeSafetensors(path, checkpoint.toStateDict("w", q));
      using back = dequantize4bit(q);
      expect(Buffer.compare(bytesOf(readBlockwise(readFile(path), "w")), bytesOf(back.read()))).toBe(0);
    }
  });

  test.each([2, 3, 5, 6, 7, 8])("weights of %i bits", async (bits) => {
    using w = Tensor.from(weights(33 * 7), [33, 7]);
    using code = createLinearMap(true, bits);
    for (const nested of [false, true]) {
      using q = quantizeBlockwise(w, { code, blocksize: 32, nested });
      await checkpoint.writeSafetensors(path, checkpoint.toStateDict("w", q));
      using back = dequantizeBlockwise(q);
      expect(Buffer.compare(bytesOf(readBlockwise(readFile(path), "w")), bytesOf(back.read()))).toBe(0);
    }
  });

  const other = {
    "MLX's: an offset a block, in bfloat16": () =>
      quantizeAffine(Tensor.from(weights(8 * 64), [8, 64], { dtype: "bfloat16" })),
    "GGUF's Q4_K: 6-bit codes of scales and offsets by halves": () => nestedOffsets(undefined),
    "the same with an offset for each group": () => nestedOffsets(Tensor.from(weights(3))),
  };

  function nestedOffsets(offsets: Tensor<"float32"> | undefined) {
    const bytes = (count: number) =>
      Tensor.from(Uint8Array.from({ length: count }, (_, i) => i * 37)) as Tensor<"uint8">;
    const halves = (from: number) => Tensor.from(weights(from + 3).subarray(from), [3], { dtype: "float16" });
    const code = Codebook.from(Float32Array.from({ length: 64 }, (_, i) => i));
    return QuantizedTensor.fromParts({
      ...{ codes: bytes(336), absmax: bytes(16), offsets: bytes(16), code: Codebook.named("af4") },
      ...{ blocksize: 32, shape: [21, 32] },
      nested: { absmax: halves(0), code, blocksize: 8, offset: 0.5, offsets, offsetsAbsmax: halves(3) },
    });
  }

  test.each(Object.entries(other))("%s", async (_, make) => {
    using q = make();
    await checkpoint.writeSafetensors(path, checkpoint.toStateDict("w", q));
    using back = dequantizeBlockwise(q, { dtype: q.dtype });
    expect(Buffer.compare(bytesOf(readBlockwise(readFile(path), "w")), bytesOf(back.read()))).toBe(0);
  });

  test("int8 weights", async () => {
    using w = Int8Weight.quantize(Tensor.from(weights(33 * 7), [33, 7]));
    await checkpoint.writeSafetensors(path, checkpoint.toStateDict("layer.weight", w));
    using back = w.dequantize({ dtype: "float32" });
    expect(readInt8(readFile(path), "layer")).toEqual(back.read());
  });
});
