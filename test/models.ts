// The small models that tests read: directories as Hugging Face has them, and GGUF files, made on the spot.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type GGUFTypedMetadata, GGUFValueType, serializeGgufMetadata } from "@huggingface/gguf";
import type { SafetensorsDtype } from "../src/checkpoint/header.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";

/** Deterministic weights that look like trained ones. */
export function weights(count: number, seed = 0): Float32Array {
  return Float32Array.from(
    { length: count },
    (_, i) => Math.sin(0.37 * i + seed) * 0.05 + Math.cos(0.0011 * i * i) * 0.02,
  );
}

/** The names and shapes of a llama of one layer. */
export const llamaShapes: Record<string, number[]> = {
  "lm_head.weight": [96, 64],
  "model.embed_tokens.weight": [96, 64],
  "model.layers.0.input_layernorm.weight": [64],
  "model.layers.0.mlp.down_proj.weight": [64, 128],
  "model.layers.0.mlp.gate_proj.weight": [128, 64],
  "model.layers.0.mlp.up_proj.weight": [128, 64],
  "model.layers.0.post_attention_layernorm.weight": [64],
  "model.layers.0.self_attn.k_proj.weight": [32, 64],
  "model.layers.0.self_attn.o_proj.weight": [64, 64],
  "model.layers.0.self_attn.q_proj.weight": [64, 64],
  "model.layers.0.self_attn.v_proj.weight": [32, 64],
  "model.norm.weight": [64],
};

/** A config.json with numbers that a JSON parser would respell. */
export const llamaConfig = `{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0, "torch_dtype": "float32"}`;

/** Writes a model directory: float32 weights, config.json, a tokenizer, and things that must not come along. */
export async function llamaDirectory(directory: string, shapes = llamaShapes): Promise<void> {
  mkdirSync(join(directory, "onnx"), { recursive: true });
  const tensors = Object.entries(shapes).map(([name, shape], seed) => {
    const bytes = weights(
      shape.reduce((a, b) => a * b, 1),
      seed,
    );
    return { name, dtype: "F32" as SafetensorsDtype, shape, bytes };
  });
  await writeSafetensors(join(directory, "model.safetensors"), tensors);
  writeFileSync(join(directory, "config.json"), llamaConfig);
  writeFileSync(join(directory, "tokenizer.json"), '{"version": "1.0"}');
  writeFileSync(join(directory, ".gitattributes"), "");
  writeFileSync(join(directory, "pytorch_model.bin"), "old weights");
  writeFileSync(join(directory, "onnx/model.onnx"), "other weights");
  writeFileSync(join(directory, "onnx/README.md"), "about them");
}

export interface GgufTensorSpec {
  readonly name: string;
  /** Row-major. */
  readonly shape: readonly number[];
  /** GGML's number. */
  readonly type: number;
  readonly data: Uint8Array;
}

export type GgufMetadata = Record<string, string | number | boolean | readonly string[] | readonly number[]>;

/** A GGUF file of version 3. Integers become uint32, other numbers float32, also in lists. */
export function ggufFile(metadata: GgufMetadata, tensors: readonly GgufTensorSpec[]): Uint8Array {
  const typed: Record<string, unknown> = {
    version: { value: 3, type: GGUFValueType.UINT32 },
    tensor_count: { value: BigInt(tensors.length), type: GGUFValueType.UINT64 },
    kv_count: { value: BigInt(Object.keys(metadata).length), type: GGUFValueType.UINT64 },
  };
  for (const [key, value] of Object.entries(metadata)) {
    typed[key] = Array.isArray(value)
      ? { value, type: GGUFValueType.ARRAY, subType: ggufType(value[0], value) }
      : { value, type: ggufType(value, [value]) };
  }
  // Unpadded, since the tensors' entries follow the metadata directly.
  const head = serializeGgufMetadata(typed as unknown as GGUFTypedMetadata, { alignment: 1 });
  const parts: Uint8Array[] = [head];
  let offset = 0;
  for (const { name, shape, type, data } of tensors) {
    const entry = Buffer.alloc(8 + Buffer.byteLength(name) + 4 + 8 * shape.length + 4 + 8);
    let at = entry.writeBigUInt64LE(BigInt(Buffer.byteLength(name)));
    at += entry.write(name, at);
    at = entry.writeUInt32LE(shape.length, at);
    for (const extent of shape.toReversed()) at = entry.writeBigUInt64LE(BigInt(extent), at);
    at = entry.writeUInt32LE(type, at);
    entry.writeBigUInt64LE(BigInt(offset), at);
    parts.push(entry);
    offset += pad(data.length);
  }
  const header = Buffer.concat(parts);
  const body = tensors.map(({ data }) => Buffer.concat([data, Buffer.alloc(pad(data.length) - data.length)]));
  return Buffer.concat([header, Buffer.alloc(pad(header.length) - header.length), ...body]);
}

function ggufType(value: unknown, all: readonly unknown[]): GGUFValueType {
  if (typeof value === "string") return GGUFValueType.STRING;
  if (typeof value === "boolean") return GGUFValueType.BOOL;
  return all.every(Number.isInteger) ? GGUFValueType.UINT32 : GGUFValueType.FLOAT32;
}

const pad = (bytes: number) => Math.ceil(bytes / 32) * 32;

/** A tensor of float32 weights. */
export const f32 = (name: string, shape: number[], seed = 1): GgufTensorSpec => {
  const values = weights(
    shape.reduce((a, b) => a * b, 1),
    seed,
  );
  return { name, shape, type: 0, data: new Uint8Array(values.buffer) };
};

/** A llama of one layer, as GGUF says it. */
export const llamaGgufMetadata: GgufMetadata = {
  "general.architecture": "llama",
  "llama.block_count": 1,
  "llama.context_length": 128,
  "llama.embedding_length": 64,
  "llama.feed_forward_length": 96,
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
  "llama.attention.layer_norm_rms_epsilon": Math.fround(1e-5),
  "llama.rope.freq_base": 500000,
  "tokenizer.ggml.bos_token_id": 1,
};
export const llamaGgufTensors = [
  f32("token_embd.weight", [10, 64]),
  f32("blk.0.attn_norm.weight", [64]),
  f32("blk.0.attn_q.weight", [64, 64]),
  f32("blk.0.attn_k.weight", [32, 64]),
  f32("blk.0.attn_v.weight", [32, 64]),
  f32("blk.0.attn_output.weight", [64, 64]),
  f32("blk.0.ffn_norm.weight", [64]),
  f32("blk.0.ffn_gate.weight", [96, 64]),
  f32("blk.0.ffn_up.weight", [96, 64]),
  f32("blk.0.ffn_down.weight", [64, 96]),
  f32("output_norm.weight", [64]),
];
