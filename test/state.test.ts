// bitsandbytes' state dicts: read from and written to upstream's own files, and refused when damaged.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { inspectCheckpoint } from "../src/checkpoint/inspect.ts";
import { packState, parseState } from "../src/checkpoint/packed_state.ts";
import { storedPieces } from "../src/checkpoint/pieces.ts";
import { openSafetensors, type SafetensorsTensor } from "../src/checkpoint/safetensors.ts";
import {
  findQuantized,
  type Stored4bit,
  type StoredBlockwise,
  type StoredInt8,
  specsBlockwise,
} from "../src/checkpoint/state.ts";
import { fromStateDict, loadWeight, toStateDict } from "../src/checkpoint/statedict.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import type { FloatDType } from "../src/dtype.ts";
import {
  BnbError,
  Codebook,
  dequantize4bit,
  dequantizeBlockwise,
  QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { codebooksOfOtherBits, normal, unsorted16 } from "./cases.ts";
import { errorOf } from "./reference.ts";

const golden = (name: string) => openSafetensors(join(import.meta.dir, `golden/${name}.safetensors`));
const files = ["nf4_double", "nf4_nodouble", "fp4_nodouble", "nf4_double_bf16storage"];
const name = "layer.weight";
const scratch = mkdtempSync(join(tmpdir(), "bnb-state-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const dtypes = { F16: "float16", BF16: "bfloat16" } as const;

const bytesOf = (data: ArrayBufferView) => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

test("each block size of bitsandbytes has its layout, and another has ours", async () => {
  for (const blocksize of [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]) {
    using w = Tensor.from(normal(64 * 128, blocksize), [64, 128]);
    using q = quantize4bit(w, { blocksize });
    const written = toStateDict(name, q);
    const kind = blocksize === 16 ? "bunsandbytes__blockwise" : "bitsandbytes__nf4";
    expect(written.map((part) => part.name)).toContain(`${name}.quant_state.${kind}`);
    const path = join(scratch, `${blocksize}.safetensors`);
    await writeSafetensors(path, written);
    using model = openCheckpoint(path);
    using again = loadWeight(model, name) as QuantizedTensor;
    expect([again.blocksize, again.quantType]).toEqual([blocksize, "nf4"]);
    expect(again.codes.read()).toEqual(q.codes.read());
  }
});

describe.each(files)("%s", (file) => {
  test("its weight goes to a tensor and back, every byte", () => {
    using checkpoint = golden(file);
    const stored = findQuantized(checkpoint.tensors).get(name) as Stored4bit;
    using q = fromStateDict(stored);
    const quantStorage = file.endsWith("storage") ? "bfloat16" : "uint8";
    const written = toStateDict(name, q, { quantStorage });
    expect(written.map((part) => part.name).sort()).toEqual(stored.parts.map((part) => part.name).sort());
    for (const part of written) {
      const upstream = checkpoint.tensor(part.name);
      expect([part.dtype, part.shape]).toEqual([upstream.dtype, upstream.shape]);
      expect(Buffer.compare(bytesOf(part.bytes as ArrayBufferView), upstream.bytes)).toBe(0);
    }
  });

  test("it dequantises to upstream's weight, every bit", () => {
    using checkpoint = golden(file);
    using source = golden(`${file}.source`);
    using q = fromStateDict(findQuantized(checkpoint.tensors).get(name) as Stored4bit);
    using weight = dequantize4bit(q);
    const { dtype, shape, bytes } = source.tensor("dequant");
    expect([weight.dtype, weight.shape]).toEqual([dtypes[dtype as "F16"], shape]);
    expect(Buffer.compare(bytesOf(weight.read()), bytes)).toBe(0);
  });

  test("its source quantises to upstream's tensors, every byte", () => {
    using checkpoint = golden(file);
    using source = golden(`${file}.source`);
    const { dtype, shape, values } = source.tensor("weight");
    using weight = Tensor.from(values as Uint16Array, shape, { dtype: dtypes[dtype as "BF16"] });
    const [quantType] = file.split("_") as ["nf4"];
    using q = quantize4bit(weight, { quantType, compressStatistics: file.includes("_double") });
    for (const part of toStateDict(name, q, { quantStorage: file.endsWith("storage") ? "bfloat16" : "uint8" })) {
      expect(Buffer.compare(bytesOf(part.bytes as ArrayBufferView), checkpoint.tensor(part.name).bytes)).toBe(0);
    }
  });
});

test("int8: codes, scales and the layout's byte belong together", () => {
  using checkpoint = golden("int8");
  const stored = findQuantized(checkpoint.tensors).get(name)!;
  expect(stored.format).toBe("int8");
  expect(stored.parts.map((part) => part.name)).toEqual([name, "layer.SCB", "layer.weight_format"]);
  // A private view of the file, so this changes what is read next, not the file.
  checkpoint.tensor("layer.weight_format").bytes[0] = 1;
  expect(() => findQuantized(checkpoint.tensors)).toThrow(/layer.weight_format is 1, expected 0 \(rows\)/);
});

test("int8: a weight goes to the device and back, every byte", () => {
  using checkpoint = golden("int8");
  using w = fromStateDict(findQuantized(checkpoint.tensors).get(name) as StoredInt8);
  expect([w.shape, w.CB.dtype, w.SCB.shape]).toEqual([[64, 128], "int8", [64]]);
  const written = toStateDict(name, w);
  expect(written.map((part) => part.name)).toEqual([name, "layer.SCB", "layer.weight_format"]);
  for (const part of written) {
    const upstream = checkpoint.tensor(part.name);
    expect([part.dtype, part.shape]).toEqual([upstream.dtype, upstream.shape]);
    expect(Buffer.compare(bytesOf(part.bytes as ArrayBufferView), upstream.bytes)).toBe(0);
  }
  expect(toStateDict("weight", w).map((part) => part.name)).toEqual(["weight", "SCB", "weight_format"]);
  expect(() => toStateDict("layer", w)).toThrow(/layer does not end in .weight/);
});

describe("the packed JSON", () => {
  const state = { quantType: "nf4", blocksize: 64, dtype: "bfloat16", shape: [64, 128] } as const;
  const key = `${name}.quant_state.bitsandbytes__nf4`;
  const text = (json: object | string) =>
    new TextEncoder().encode(typeof json === "string" ? json : JSON.stringify(json));
  const plain = { quant_type: "nf4", blocksize: 64, dtype: "bfloat16", shape: [64, 128] };
  const nested = { ...plain, nested_blocksize: 256, nested_dtype: "float32", nested_offset: 0.05 };

  test("keys, separators and floats are Python's", () => {
    expect(
      new TextDecoder().decode(packState({ ...state, nested: { blocksize: 256, offset: 9.999999747378752e-6 } })),
    ).toBe(
      '{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 128], "nested_blocksize": 256, ' +
        '"nested_dtype": "float32", "nested_offset": 9.999999747378752e-06}',
    );
  });

  const cases: [string, RegExp, object | string, string?][] = [
    ["a type of another's", /type "af4" is unknown/, plain, `${name}.quant_state.bitsandbytes__af4`],
    ["no JSON", /is not JSON/, "{"],
    ["no object", /is not a JSON object/, "null"],
    ["a type that the key denies", /quant_type is "fp4", expected "nf4"/, { ...plain, quant_type: "fp4" }],
    ["a blocksize that is none", /blocksize is 63/, { ...plain, blocksize: 63 }],
    ["a dtype that is none", /dtype is "toString"/, { ...plain, dtype: "toString" }],
    ["a shape of zeros", /shape is \[0,128\]/, { ...plain, shape: [0, 128] }],
    ["no shape", /shape is undefined/, { ...plain, shape: undefined }],
    ["half of the nested fields", /nested_offset is undefined/, { ...nested, nested_offset: undefined }],
    [
      "an offset that is NaN",
      /nested_offset is null, expected a finite number/,
      JSON.stringify(nested).replace("0.05", "NaN"),
    ],
    ["scales in another dtype", /nested_dtype is "float16"/, { ...nested, nested_dtype: "float16" }],
    ...[
      ["scales of no dtype", /absmax_dtype is "int8", expected float32 or/, { absmax_dtype: "int8" }],
      ["offsets of no dtype", /offsets_dtype is "uint8", expected float32 or/, { offsets_dtype: "uint8" }],
      ["nested scales of a dtype", /absmax_dtype is "float16", expected none/, { ...nested, absmax_dtype: "float16" }],
      ["nested codes of no width", /nested_bits is 9, expected 2 to 8/, { ...nested, nested_bits: 9 }],
      ["offsets that are neither", /nested_offsets is 1, expected true or/, { ...nested, nested_offsets: 1 }],
      ["nested scales of no dtype", /nested_dtype is "uint8"/, { ...nested, nested_dtype: "uint8" }],
    ].map(([what, message, json]): (typeof cases)[number] => [
      what as string,
      message as RegExp,
      { ...plain, ...(json as object), quant_type: "blockwise", bits: 4 },
      "w.quant_state.bunsandbytes__blockwise",
    ]),
  ];
  test.each(cases.map((row) => [row[0], row] as const))("%s is refused", (_, [, message, json, otherKey]) => {
    expect(() => parseState(otherKey ?? key, text(json))).toThrow(BnbError);
    expect(() => parseState(otherKey ?? key, text(json))).toThrow(message);
    expect(() => parseState(otherKey ?? key, text(json))).toThrow(otherKey ?? key);
  });
});

describe("tensors that do not belong together", () => {
  type Tensors = Map<string, SafetensorsTensor>;
  const damage: [string, RegExp, (tensors: Tensors, other: Tensors) => void][] = [
    ["no codes", /layer.weight is missing/, (tensors) => tensors.delete(name)],
    ["no scales", /layer.weight.absmax is missing/, (tensors) => tensors.delete(`${name}.absmax`)],
    ["no codebook", /layer.weight.quant_map is missing/, (tensors) => tensors.delete(`${name}.quant_map`)],
    ["no nested scales", /nested_absmax is missing/, (tensors) => tensors.delete(`${name}.nested_absmax`)],
    [
      "no state",
      /layer.weight.nested_absmax has no layer.weight.quant_state/,
      (tensors) => tensors.delete(`${name}.quant_state.bitsandbytes__nf4`),
    ],
    [
      "scales that are not quantised though the state says so",
      /absmax is F32 \[128\], expected U8 \[128\]/,
      (tensors, other) => tensors.set(`${name}.absmax`, other.get(`${name}.absmax`)!),
    ],
    [
      "codes of another size",
      /layer.weight is F32 \[16\], expected the 4096 bytes of \[64, 128\]/,
      (tensors) => tensors.set(name, tensors.get(`${name}.quant_map`)!),
    ],
    [
      "two states",
      /has another quantisation state too/,
      (tensors) => {
        const state = tensors.get(`${name}.quant_state.bitsandbytes__nf4`)!;
        tensors.set(`${name}.quant_state.bitsandbytes__fp4`, state);
      },
    ],
  ];
  test.each(damage.map((row) => [row[0], row] as const))("%s", (_, [, message, apply]) => {
    using checkpoint = golden("nf4_double");
    using other = golden("nf4_nodouble");
    const tensors = new Map(checkpoint.tensors);
    apply(tensors, new Map(other.tensors));
    expect(() => findQuantized(tensors)).toThrow(BnbError);
    expect(() => findQuantized(tensors)).toThrow(message);
  });
});

test("a storage dtype that does not divide the codes is refused", () => {
  const options = { quantType: "nf4", blocksize: 64, nestedBlocksize: 0 } as const;
  expect(() => specsBlockwise("w", [5], { ...options, storage: "bfloat16" })).toThrow(/packs into 3 bytes/);
  expect(specsBlockwise("w", [5], { ...options, storage: "uint8" })[0]).toEqual({
    name: "w",
    dtype: "U8",
    shape: [3, 1],
  });
});

describe("what bitsandbytes has no format for has a state of this library's", () => {
  const key = "w.quant_state.bunsandbytes__blockwise";
  const formats: [string, (w: Tensor) => QuantizedTensor][] = [
    ["AF4", (w) => quantize4bit(w, { quantType: "af4" })],
    ["4 bits of the user's own", (w) => quantizeBlockwise(w, { code: unsorted16, nested: true })],
    ["8 bits", (w) => quantizeBlockwise(w, { blocksize: 100 })],
    ...Object.entries(codebooksOfOtherBits).map(([name, code], i): [string, (w: Tensor) => QuantizedTensor] => [
      name,
      (w) => quantizeBlockwise(w, { code, nested: i % 2 === 0 }),
    ]),
  ];

  test.each(formats)("%s: to a file and back, every bit", async (_, quantize) => {
    using weight = Tensor.from(normal(3 * 77), [3, 77]).cast("bfloat16");
    using q = quantize(weight);
    const path = join(scratch, "w.safetensors");
    await writeSafetensors(path, toStateDict("w", q));
    using checkpoint = openCheckpoint(path);
    const stored = checkpoint.quantized.get("w")!;
    expect([stored.format, checkpoint.tensors.has(key)]).toEqual(["blockwise", true]);
    using back = loadWeight(checkpoint, "w") as QuantizedTensor;
    expect(`${back}`).toBe(`${q}`);
    expect(back.code).toEqual(q.code);
    expect(back.dtype).toBe("bfloat16");
    expect(back.codes.read()).toEqual(q.codes.read());
    expect(dequantizeBlockwise(back).read()).toEqual(dequantizeBlockwise(q).read());
    const [report] = await inspectCheckpoint(path);
    expect(report!.format).toStartWith(`${q.bits}-bit`);
  });

  /** As GGUF, MLX and GPTQ have them. */
  const stored: [string, (w: Tensor) => Parameters<typeof QuantizedTensor.fromParts>[0]][] = [
    ["NF4 with scales in float16", (w) => ({ ...partsOf(w), absmax: floats(64, 1, "float16") })],
    [
      "NF4 with an offset a block",
      (w) => ({ ...partsOf(w), absmax: floats(64, 1, "bfloat16"), offsets: floats(64, 2, "bfloat16") }),
    ],
    [
      "6-bit codes by halves, offsets too",
      (w) => ({
        ...{ ...partsOf(w), absmax: bytes(48), offsets: bytes(48) },
        nested: {
          ...{ absmax: floats(8, 1, "float16"), code: Codebook.named("nf6"), blocksize: 8, offset: -0 },
          offsetsAbsmax: floats(8, 2, "float16"),
        },
      }),
    ],
    [
      "3-bit codes by groups with offsets of their own, and plain offsets of blocks",
      (w) => ({
        ...{ ...partsOf(w), absmax: bytes(24), offsets: floats(64, 5, "float32") },
        nested: {
          ...{ absmax: floats(13, 1, "bfloat16"), code: Codebook.named("nf3"), blocksize: 5, offset: 0 },
          offsets: floats(13, 3, "float32") as Tensor<"float32">,
        },
      }),
    ],
  ];
  const floats = (count: number, seed: number, dtype: FloatDType) => Tensor.from(normal(count, seed)).cast(dtype);
  const bytes = (count: number) => Tensor.from(Uint8Array.from({ length: count }, (_, i) => i * 37)) as Tensor<"uint8">;
  const partsOf = (w: Tensor) => {
    const { codes, shape, blocksize, dtype } = quantize4bit(w, { blocksize: 64 });
    return { codes, shape, blocksize, dtype, code: Codebook.named("nf4") };
  };

  test.each(stored)("%s: to a file and back, every bit", async (_, parts) => {
    using weight = Tensor.from(normal(64 * 64), [64, 64]).cast("float16");
    using q = QuantizedTensor.fromParts(parts(weight));
    const path = join(scratch, "stored.safetensors");
    await writeSafetensors(path, toStateDict("w", q));
    using checkpoint = openCheckpoint(path);
    expect(checkpoint.tensors.has(key)).toBe(true);
    using back = loadWeight(checkpoint, "w") as QuantizedTensor;
    expect(back.byteLength).toBe(q.byteLength);
    expect(back.offsets?.read()).toEqual(q.offsets?.read() as Uint8Array);
    expect(Object.is(back.offset, q.offset)).toBe(true);
    using want = dequantizeBlockwise(q);
    using got = dequantizeBlockwise(back);
    expect(got.read()).toEqual(want.read());
    const pieces = storedPieces(checkpoint.quantized.get("w") as StoredBlockwise, "float32");
    const inPieces: number[] = [];
    for (const piece of pieces.runs(pieces.unit)) inPieces.push(...(piece.read() as Float32Array));
    expect(inPieces).toEqual([...dequantizeBlockwise(q, { dtype: "float32" }).read()]);
    // A part that the state names is missed, not passed over.
    const tensors = new Map(checkpoint.tensors);
    for (const part of ["offsets", "offsets_absmax", "nested_offsets"]) {
      if (!tensors.has(`w.${part}`)) continue;
      const rest = new Map(tensors);
      rest.delete(`w.${part}`);
      expect(() => findQuantized(rest)).toThrow(new RegExp(`w.${part} is missing`));
    }
  });

  test("it says what a reader needs, and is refused where it is damaged", () => {
    const state = { quantType: "blockwise", bits: 3, blocksize: 64, dtype: "float32", shape: [3, 77] } as const;
    const text = '{"quant_type": "blockwise", "bits": 3, "blocksize": 64, "dtype": "float32", "shape": [3, 77]}';
    expect(new TextDecoder().decode(packState(state))).toBe(text);
    expect(parseState(key, packState(state))).toEqual(state);
    const refused = (from: string, to: string) => () =>
      parseState(key, new TextEncoder().encode(text.replace(from, to)));
    expect(refused('"bits": 3', '"bits": 9')).toThrow(/bits is 9, expected 2 to 8/);
    expect(refused('"bits": 3, ', "")).toThrow(/bits is undefined, expected 2 to 8/);
    expect(refused("64", "100")).toThrow(/blocksize is 100/);
    expect(refused("blockwise", "nf4")).toThrow(/quant_type is "nf4", expected "blockwise"/);
  });

  test("codes or a codebook of another width do not belong to it", async () => {
    using q = quantizeBlockwise(Tensor.from(normal(64), [64]), { code: Codebook.named("nf3") });
    const path = join(scratch, "damaged.safetensors");
    const damaged = async (name: string, dtype: "U8" | "F32", length: number) => {
      const bytes = new Uint8Array(dtype === "U8" ? length : 4 * length);
      const changed = { name, dtype, shape: [length], bytes };
      await writeSafetensors(
        path,
        toStateDict("w", q).map((part) => (part.name === name ? changed : part)),
      );
      using file = openSafetensors(path);
      return errorOf(() => findQuantized(file.tensors)).message;
    };
    expect(await damaged("w", "U8", 32)).toContain("w is U8 [32], expected the 24 bytes of [64]");
    expect(await damaged("w.quant_map", "F32", 16)).toContain("quant_map is F32 [16], expected F32 [8]");
  });
});
