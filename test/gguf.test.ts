// GGUF files: every block format against gguf-py, names and row order against Hugging Face's llama, refusals.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openGguf } from "../src/checkpoint/gguf.ts";
import { GgufList, readGgufHeader } from "../src/checkpoint/gguf_header.ts";
import { MappedFile } from "../src/checkpoint/mapped.ts";
import { ggufPieces } from "../src/checkpoint/pieces.ts";
import { dumps } from "../src/checkpoint/pyjson.ts";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { convertGguf } from "../src/checkpoint/transform.ts";
import { BnbError, currentDevice, type FloatDType, Tensor } from "../src/index.ts";
import { dtypes, native, size } from "../src/native.ts";
import { Signature } from "../src/signature.ts";
import {
  f32,
  type GgufMetadata,
  type GgufTensorSpec,
  ggufFile,
  llamaGgufMetadata as metadata,
  llamaGgufTensors as tensors,
  weights,
} from "./models.ts";
import { round } from "./reference.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-gguf-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let files = 0;

const types = {
  ...{ F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q5_0: 6, Q5_1: 7, Q8_0: 8, Q2_K: 10, Q3_K: 11, Q4_K: 12, Q5_K: 13, Q6_K: 14 },
  ...{ IQ2_XXS: 16, IQ2_XS: 17, IQ3_XXS: 18, IQ1_S: 19, IQ4_NL: 20, IQ3_S: 21, IQ2_S: 22, IQ4_XS: 23, IQ1_M: 29 },
  ...{ BF16: 30, TQ1_0: 34, TQ2_0: 35, MXFP4: 39, NVFP4: 40 },
};

function expand(type: number, rows: number, columns: number, data: Uint8Array, dtype: FloatDType = "float32"): Tensor {
  const pointer = native.bnb_tensor_from_gguf(
    currentDevice().pointer,
    type,
    size(rows),
    size(columns),
    data,
    size(data.length),
    dtypes[dtype],
  );
  return new Tensor(new Signature("expand").made(pointer), dtype, [rows, columns], currentDevice());
}

describe("blocks", () => {
  test.each(Object.entries(types))("%s expands to gguf-py's values, every bit", (name, type) => {
    using golden = openSafetensors(join(import.meta.dir, "golden/gguf.safetensors"));
    const { values, shape } = golden.tensor(`${name}.values`);
    const [rows, columns] = shape as [number, number];
    using tensor = expand(type, rows, columns, golden.tensor(`${name}.data`).bytes);
    const bits = (floats: Float32Array) => new Uint32Array(floats.buffer, floats.byteOffset, floats.length);
    expect(bits(tensor.read() as Float32Array)).toEqual(bits(values as Float32Array));
  });

  test.each(["float16", "bfloat16"] as const)("into %s they are rounded once", (dtype) => {
    using golden = openSafetensors(join(import.meta.dir, "golden/gguf.safetensors"));
    const expected = (golden.tensor("Q6_K.values").values as Float32Array).map((value) => round(value, dtype));
    using tensor = expand(14, 2, 768, golden.tensor("Q6_K.data").bytes, dtype);
    expect(tensor.readFloat32()).toEqual(expected);
  });

  // gguf-py has no Q8_K, in which llama.cpp keeps activations: a float and 256 signed bytes, then sums.
  test("Q8_K is its float times its bytes", () => {
    const block = new Uint8Array(292).map((_, i) => i * 7);
    new DataView(block.buffer).setFloat32(0, 0.37, true);
    using tensor = expand(15, 1, 256, block);
    const expected = Float32Array.from(new Int8Array(block.buffer, 4, 256), (code) => Math.fround(0.37) * code);
    expect(tensor.read() as Float32Array).toEqual(expected);
  });

  test("what is wrong is named", () => {
    expect(() => expand(2, 1, 32, new Uint8Array(17))).toThrow(/data has 17 bytes, expected 18 for Q4_0 \[1, 32\]/);
    expect(() => expand(2, 1, 33, new Uint8Array(18))).toThrow(/columns is 33, expected a multiple of Q4_0's 32/);
    expect(() => expand(31, 1, 32, new Uint8Array(18))).toThrow(/type is 31/);
    expect(() => expand(4, 1, 32, new Uint8Array(18))).toThrow(/type is 4/);
    expect(() => expand(2 ** 31, 1, 32, new Uint8Array(18))).toThrow(/type is 2147483648/);
    expect(() => expand(0, 2 ** 40, 2 ** 40, new Uint8Array(4))).toThrow(BnbError);
  });
});

/** The llama's tensors, with one in the place of that of its name, or behind them. */
function withTensor(spec: GgufTensorSpec): GgufTensorSpec[] {
  const rest = tensors.filter(({ name }) => name !== spec.name);
  return [...rest, spec];
}

function write(extra: GgufMetadata = {}, list: readonly GgufTensorSpec[] = tensors): string {
  const path = join(scratch, `${files++}.gguf`);
  writeFileSync(path, ggufFile({ ...metadata, ...extra }, list));
  return path;
}

/** A header that says how many tensors follow, and ends. */
function bare(tensorCount: bigint, version = 3): string {
  const bytes = Buffer.from("GGUF".padEnd(24, "\0"));
  bytes.writeUInt32LE(version, 4);
  bytes.writeBigUInt64LE(tensorCount, 8);
  const path = join(scratch, `${files++}.gguf`);
  writeFileSync(path, bytes);
  return path;
}

test("metadata of every type are read, least byte first, alone and in lists", () => {
  const u32 = (value: number) => [...new Uint8Array(Uint32Array.of(value).buffer)];
  const u64 = (value: number) => [...u32(value), ...u32(0)];
  const said = (text: string) => [...u64(text.length), ...Buffer.from(text)];
  const bytesOf = (values: NodeJS.TypedArray) => [
    ...new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
  ];
  const kinds: [type: number, of: NodeJS.TypedArray, values: (number | boolean)[]][] = [
    [0, Uint8Array.of(200, 1), [200, 1]],
    [1, Int8Array.of(-100, 1), [-100, 1]],
    [2, Uint16Array.of(65000, 2), [65000, 2]],
    [3, Int16Array.of(-32000, 2), [-32000, 2]],
    [4, Uint32Array.of(4e9, 3), [4e9, 3]],
    [5, Int32Array.of(-2e9, 3), [-2e9, 3]],
    [6, Float32Array.of(-1.25, 3e38), [-1.25, Math.fround(3e38)]],
    [7, Uint8Array.of(1, 0), [true, false]],
    [10, BigUint64Array.of(2n ** 40n + 1n, 4n), [2 ** 40 + 1, 4]],
    [11, BigInt64Array.of(-(2n ** 40n) - 1n, 4n), [-(2 ** 40) - 1, 4]],
    [12, Float64Array.of(Math.PI, -1e300), [Math.PI, -1e300]],
  ];
  const entries = kinds.flatMap(([type, of, values]) => [
    { key: `one.${type}`, bytes: [...u32(type), ...bytesOf(of.subarray(0, 1))], want: values[0]! },
    { key: `two.${type}`, bytes: [...u32(9), ...u32(type), ...u64(2), ...bytesOf(of)], want: values },
  ]);
  const path = join(scratch, `${files++}.gguf`);
  const body = entries.flatMap(({ key, bytes }) => [...said(key), ...bytes]);
  const count = u64(entries.length + 1);
  const head = [
    ...Buffer.from("GGUF"),
    ...u32(3),
    ...u64(0),
    ...count,
    ...body,
    ...said("text"),
    ...u32(8),
    ...said("so"),
  ];
  writeFileSync(path, Uint8Array.from(head));
  const file = new MappedFile(path);
  const { metadata } = readGgufHeader(file);
  const shown = (value: unknown) => (value instanceof GgufList ? [...value.read()] : value);
  for (const { key, want } of entries) expect([key, shown(metadata.get(key))]).toEqual([key, want]);
  expect(metadata.get("text")).toBe("so");
  file.close();
});

test("a tensor is expanded to what it is, however many rows at a time", async () => {
  // Q8_0's halves and codes.
  const data = new Uint8Array(12 * 2 * 34).map((_, i) => [i % 7, 0x2c][i % 34] ?? (i * 37) % 251);
  using model = await openGguf(
    write({}, withTensor({ name: "output.weight", shape: [12, 64], type: types.Q8_0, data })),
  );
  const tensor = model.tensors.find(({ name }) => name === "lm_head.weight")!;
  using whole = expand(types.Q8_0, 12, 64, data);
  for (const rows of [1, 3, 5, 12, 99]) {
    const parts = [...ggufPieces(tensor, "float32").runs(rows * 64)].map((part) => [...part.readFloat32()]);
    expect(parts.length).toBe(Math.ceil(12 / rows));
    expect(parts.flat()).toEqual([...whole.readFloat32()]);
  }
});

describe("files", () => {
  test("a llama gets Hugging Face's names, shapes and config", async () => {
    using model = await openGguf(write());
    expect(Object.fromEntries(model.tensors.map(({ name, shape }) => [name, shape]))).toEqual({
      "model.embed_tokens.weight": [10, 64],
      "model.layers.0.input_layernorm.weight": [64],
      "model.layers.0.self_attn.q_proj.weight": [64, 64],
      "model.layers.0.self_attn.k_proj.weight": [32, 64],
      "model.layers.0.self_attn.v_proj.weight": [32, 64],
      "model.layers.0.self_attn.o_proj.weight": [64, 64],
      "model.layers.0.post_attention_layernorm.weight": [64],
      "model.layers.0.mlp.gate_proj.weight": [96, 64],
      "model.layers.0.mlp.up_proj.weight": [96, 64],
      "model.layers.0.mlp.down_proj.weight": [64, 96],
      "model.norm.weight": [64],
    });
    const { rms_norm_eps, rope_theta, ...rest } = model.config;
    expect([rms_norm_eps, rope_theta].map((float) => (float as { value: number }).value)).toEqual([1e-5, 500000]);
    expect(rest).toMatchObject({ model_type: "llama", tie_word_embeddings: true, vocab_size: 10, bos_token_id: 1 });
  });

  /** llama.cpp's converter: `w.reshape(heads, 2, half, columns).swapaxes(1, 2)`. */
  function permute(values: Float32Array, rows: number, heads: number): Float32Array {
    const columns = values.length / rows;
    const half = rows / heads / 2;
    const permuted = new Float32Array(values.length);
    let to = 0;
    for (let head = 0; head < heads; head++)
      for (let pair = 0; pair < half; pair++)
        for (let which = 0; which < 2; which++, to++) {
          const from = (head * 2 + which) * half + pair;
          permuted.set(values.subarray(from * columns, (from + 1) * columns), to * columns);
        }
    return permuted;
  }

  test.each([
    ["q", 64, 4],
    ["k", 32, 2],
  ])("the rows of llama's %s go back into Hugging Face's order", async (which, rows, heads) => {
    const original = weights(rows * 64);
    const data = new Uint8Array(permute(original, rows, heads).buffer);
    const name = `blk.0.attn_${which}.weight`;
    using model = await openGguf(write({}, withTensor({ name, shape: [rows, 64], type: 0, data })));
    const bytes = model.tensors.at(-1)!.read();
    expect(new Float32Array(bytes.buffer, bytes.byteOffset, original.length)).toEqual(original);
  });

  test("a norm's eps that a file leaves out is 1e-6", async () => {
    const { "llama.attention.layer_norm_rms_epsilon": _, ...rest } = metadata;
    const path = join(scratch, `${files++}.gguf`);
    writeFileSync(path, ggufFile(rest, tensors));
    using model = await openGguf(path);
    expect((model.config.rms_norm_eps as { value: number }).value).toBe(1e-6);
  });

  test("qwen2 keeps its order, and its head is not tied", async () => {
    const qwen = Object.fromEntries(
      Object.entries(metadata).map(([key, value]) => [key.replace("llama.", "qwen2."), value]),
    );
    const path = join(scratch, "qwen.gguf");
    const list = [...tensors, f32("blk.0.attn_q.bias", [64]), f32("output.weight", [10, 64])];
    writeFileSync(path, ggufFile({ ...qwen, "general.architecture": "qwen2" }, list));
    using model = await openGguf(path);
    expect(Buffer.compare(model.tensors[2]!.read(), tensors[2]!.data)).toBe(0);
    expect(model.tensors.map(({ name }) => name).slice(-2)).toEqual([
      "model.layers.0.self_attn.q_proj.bias",
      "lm_head.weight",
    ]);
    expect(model.config).toMatchObject({ architectures: ["Qwen2ForCausalLM"], tie_word_embeddings: false });
  });

  test("converting writes a directory, quantised on request", async () => {
    const output = join(scratch, "nf4");
    const report = await convertGguf(write(), { output, quantType: "nf4" });
    expect(report.weights).toBe(7);
    expect(report.notes.join()).toMatch(/has no tokenizer: copy tokenizer.json/);
    using file = openSafetensors(join(output, "model.safetensors"));
    expect(file.tensor("model.layers.0.mlp.up_proj.weight").shape).toEqual([96 * 32, 1]);
    expect(file.tensor("model.embed_tokens.weight").dtype).toBe("BF16");
    const config = JSON.parse(readFileSync(join(output, "config.json"), "utf8"));
    expect(config).toMatchObject({
      dtype: "bfloat16",
      rms_norm_eps: 1e-5,
      quantization_config: { bnb_4bit_quant_type: "nf4" },
    });
  });

  /** llama.cpp's `rope_freqs` of Llama 3.1 for heads of 64: its converter's own steps, in its own order. */
  function llama3Factors(factor: number): Float32Array {
    return Float32Array.from({ length: 32 }, (_, i) => {
      const wavelength = 2 * Math.PI * 500000 ** ((2 * i) / 64);
      if (wavelength < 8192 / 4) return 1;
      if (wavelength > 8192 / 1) return factor;
      const smooth = (8192 / wavelength - 1) / (4 - 1);
      return 1 / ((1 - smooth) / factor + smooth);
    });
  }
  const factorTensor = (values: Float32Array) => {
    return { name: "rope_freqs.weight", shape: [values.length], type: 0, data: new Uint8Array(values.buffer) };
  };

  test.each([8, 32])("Llama 3's rotary factors become rope_scaling again (%p)", async (factor) => {
    using model = await openGguf(write({}, [...tensors, factorTensor(llama3Factors(factor))]));
    expect(model.tensors.length).toBe(tensors.length);
    expect(model.notes).toEqual([]);
    expect(dumps(model.config.rope_scaling!)).toBe(
      `{"rope_type": "llama3", "factor": ${factor}.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ` +
        '"original_max_position_embeddings": 8192}',
    );
  });

  test("rotary factors of another kind are dropped, and said to be", async () => {
    const factors = llama3Factors(8).with(20, 7);
    using model = await openGguf(write({}, [...tensors, factorTensor(factors)]));
    expect(model.config.rope_scaling).toBeUndefined();
    expect(model.notes.join()).toMatch(/copy `rope_scaling`/);
  });

  const refused: [string, RegExp, () => string][] = [
    ["another architecture", /has architecture mamba; llama/, () => write({ "general.architecture": "mamba" })],
    [
      "a tensor without a place",
      /blk.0.ffn_gate_exps.weight has no place/,
      () => write({}, [...tensors, f32("blk.0.ffn_gate_exps.weight", [1])]),
    ],
    [
      "a type that holds no weights",
      /has GGML's type I32; F32, F16/,
      () => write({}, withTensor({ ...tensors[1]!, type: 26 })),
    ],
    [
      "a type of the future",
      /has GGML's type number 99, which is newer/,
      () => write({}, withTensor({ ...tensors[1]!, type: 99 })),
    ],
    [
      "rows that are no multiple of a block",
      /rows of 48 elements/,
      () => write({}, withTensor({ ...tensors[0]!, shape: [10, 48], type: 2 })),
    ],
    ["no embedding", /has no token_embd.weight/, () => write({}, tensors.slice(1))],
    [
      "a layer without one of its weights",
      /has no blk.0.ffn_down.weight, which a model of its architecture needs/,
      () =>
        write(
          {},
          tensors.filter(({ name }) => name !== "blk.0.ffn_down.weight"),
        ),
    ],
    [
      "a layer beyond the last",
      /says 1 layers, and it has blk.1.ffn_up/,
      () => write({}, [...tensors, f32("blk.1.ffn_up.weight", [96, 64])]),
    ],
    ["more layers than tensors", /says 4000000000 layers/, () => write({ "llama.block_count": 4e9 })],
    ["an adapter", /is an adapter \(LoRA\), not a model/, () => write({ "general.type": "adapter" })],
    ["an alignment that is none", /alignment is 33, expected a power of two/, () => write({ "general.alignment": 33 })],
    [
      "an epsilon that is none",
      /epsilon is NaN, expected a finite/,
      () => write({ "llama.attention.layer_norm_rms_epsilon": Number.NaN }),
    ],
    [
      "a token that is text",
      /bos_token_id is x, expected a number/,
      () => write({ "tokenizer.ggml.bos_token_id": "x" }),
    ],
    [
      "scaling of a kind that is none",
      /scaling.type is odd with the factor/,
      () => write({ "llama.rope.scaling.type": "odd" }),
    ],
    ["heads that do not divide", /64 rows do not fit 5 heads/, () => write({ "llama.attention.head_count": 5 })],
    ["metadata that is text", /block_count is x, expected a count/, () => write({ "llama.block_count": "x" })],
    ["a tensor twice", /has the tensor "output_norm.weight" twice/, () => write({}, [...tensors, tensors.at(-1)!])],
    ["more tensors than bytes", /9999999 items do not fit the file's 24 bytes/, () => bare(9_999_999n)],
    ["big-endian numbers", /is big-endian; GGUF of version 2 and 3/, () => bare(0n, 3 << 24)],
    ["another version", /has version 1; GGUF/, () => bare(0n, 1)],
  ];
  test.each(refused.map((row) => [row[0], row] as const))("%s is refused", async (_, [, message, make]) => {
    const path = make();
    const opening = openGguf(path).then((model) => model.tensors.map((tensor) => tensor.read()));
    await expect(opening).rejects.toThrow(message);
    await opening.catch((error) => expect(error).toBeInstanceOf(BnbError));
  });

  test("text that is not UTF-8 is refused, in keys, values and names", async () => {
    const path = write({ "general.name": "a model" });
    const whole = readFileSync(path);
    for (const text of ["general.name", "a model", "token_embd.weight"]) {
      const bytes = Buffer.from(whole);
      bytes[bytes.indexOf(text)] = 0xff;
      writeFileSync(path, bytes);
      await expect(openGguf(path)).rejects.toThrow(/the text that ends at byte \d+ is not UTF-8/);
    }
  });

  test("truncated anywhere, a file is refused and named", async () => {
    const path = write();
    const whole = readFileSync(path);
    for (const length of [0, 3, 8, 30, 200, 500, whole.length - 1]) {
      writeFileSync(path, whole.subarray(0, length));
      const opening = openGguf(path);
      await expect(opening).rejects.toThrow(path);
      await opening.catch((error) => expect(error).toBeInstanceOf(BnbError));
    }
  });
});
