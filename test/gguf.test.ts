// GGUF files: every block format against gguf-py, names and row order against Hugging Face's llama, refusals.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openGguf } from "../src/checkpoint/gguf.ts";
import { dumps } from "../src/checkpoint/pyjson.ts";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { convertGguf } from "../src/checkpoint/transform.ts";
import { BnbError, currentDevice, type FloatDType, Tensor } from "../src/index.ts";
import { dtypes, native, size } from "../src/native.ts";
import { Signature } from "../src/signature.ts";
import {
  f32,
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

const types = { F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q5_0: 6, Q5_1: 7, Q8_0: 8, Q4_K: 12, Q5_K: 13, Q6_K: 14, BF16: 30 };

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

  test("what is wrong is named", () => {
    expect(() => expand(2, 1, 32, new Uint8Array(17))).toThrow(/data has 17 bytes, expected 18 for Q4_0 \[1, 32\]/);
    expect(() => expand(2, 1, 33, new Uint8Array(18))).toThrow(/columns is 33, expected a multiple of Q4_0's 32/);
    expect(() => expand(19, 1, 32, new Uint8Array(18))).toThrow(/type is 19/);
    expect(() => expand(4, 1, 32, new Uint8Array(18))).toThrow(/type is 4/);
    expect(() => expand(2 ** 31, 1, 32, new Uint8Array(18))).toThrow(/type is 2147483648/);
    expect(() => expand(0, 2 ** 40, 2 ** 40, new Uint8Array(4))).toThrow(BnbError);
  });
});

function write(extra: Record<string, string | number> = {}, list: readonly GgufTensorSpec[] = tensors): string {
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
    using model = await openGguf(write({}, [tensors[0]!, { name, shape: [rows, 64], type: 0, data }]));
    const bytes = model.tensors[1]!.read();
    expect(new Float32Array(bytes.buffer, bytes.byteOffset, original.length)).toEqual(original);
  });

  test("qwen2 keeps its order, and its head is not tied", async () => {
    const qwen = Object.fromEntries(
      Object.entries(metadata).map(([key, value]) => [key.replace("llama.", "qwen2."), value]),
    );
    const path = join(scratch, "qwen.gguf");
    const list = [tensors[0]!, tensors[2]!, f32("blk.0.attn_q.bias", [64]), f32("output.weight", [10, 64])];
    writeFileSync(path, ggufFile({ ...qwen, "general.architecture": "qwen2" }, list));
    using model = await openGguf(path);
    expect(Buffer.compare(model.tensors[1]!.read(), tensors[2]!.data)).toBe(0);
    expect(model.tensors.map(({ name }) => name).slice(2)).toEqual([
      "model.layers.0.self_attn.q_proj.bias",
      "lm_head.weight",
    ]);
    expect(model.config).toMatchObject({ architectures: ["Qwen2ForCausalLM"], tie_word_embeddings: false });
  });

  test("converting writes a directory, quantised on request", async () => {
    const output = join(scratch, "nf4");
    const report = await convertGguf(write(), { output, quantType: "nf4" });
    expect(report.weights).toBe(7);
    expect(report.notes.join()).toMatch(/tokenizer is not carried over/);
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
    ["another architecture", /has architecture gemma; llama/, () => write({ "general.architecture": "gemma" })],
    ["one part of several", /is one of several/, () => write({ "split.count": 2 })],
    [
      "a tensor without a place",
      /blk.0.ffn_gate_exps.weight has no place/,
      () => write({}, [f32("blk.0.ffn_gate_exps.weight", [1])]),
    ],
    ["a type that is not read", /has GGML type 10; F32/, () => write({}, [{ ...tensors[0]!, type: 10 }])],
    [
      "rows that are no multiple of a block",
      /rows of 48 elements/,
      () => write({}, [{ ...tensors[0]!, shape: [10, 48], type: 2 }]),
    ],
    ["no embedding", /has no token_embd.weight/, () => write({}, [tensors[1]!])],
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
