// Owns the test that docs/format.md is enough to write a reader: one that was written from that page alone, and shares
// no code with the library, reads files of bitsandbytes' own, and the library's, to the last bit.
import { afterAll, describe, expect, test } from "bun:test";
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  checkpoint,
  createLinearMap,
  dequantize4bit,
  dequantizeBlockwise,
  Int8Weight,
  quantize4bit,
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

const floats = ({ bytes }: Part) => new Float32Array(Uint8Array.from(bytes).buffer);

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
  const scale = state.nested_blocksize ? nestedScale() : plainScale();

  function plainScale() {
    const absmax = floats(part("absmax"));
    return (b: number) => absmax[b]!;
  }

  function nestedScale() {
    const [nestedCode, nestedAbsmax] = [floats(part("nested_quant_map")), floats(part("nested_absmax"))];
    const offset = Math.fround(state.nested_offset);
    return (b: number) => {
      const product = Math.fround(
        nestedCode[part("absmax").bytes[b]!]! * nestedAbsmax[Math.floor(b / state.nested_blocksize)]!,
      );
      return Math.fround(product + offset);
    };
  }

  const n = state.shape.reduce((product: number, extent: number) => product * extent, 1);
  const bits = state.bits ?? 4;
  const bit = (at: number) => (codes[at >> 3]! >> (7 - (at & 7))) & 1;
  const codeAt = (i: number) =>
    Array.from({ length: bits }, (_, j) => bit(i * bits + j)).reduce((sum, next) => 2 * sum + next, 0);
  const elements = Array.from({ length: n }, (_, i) =>
    Math.fround(code[codeAt(i)]! * scale(Math.floor(i / state.blocksize))),
  );
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

  test("int8 weights", async () => {
    using w = Int8Weight.quantize(Tensor.from(weights(33 * 7), [33, 7]));
    await checkpoint.writeSafetensors(path, checkpoint.toStateDict("layer.weight", w));
    using back = w.dequantize({ dtype: "float32" });
    expect(readInt8(readFile(path), "layer")).toEqual(back.read());
  });
});
