// Owns GGUF files: their header, their quantised tensors' sizes, and what they are called in Hugging Face's models.
import { BnbError } from "../error.ts";
import { type GgufInfo, type MetadataValue, readGgufHeader } from "./gguf_header.ts";
import { damaged } from "./header.ts";
import type { Config } from "./huggingface.ts";
import { MappedFile, unmap } from "./mapped.ts";
import { PyFloat, type PyValue } from "./pyjson.ts";

/** GGML's types that can be read, by their number: elements and bytes of a block. */
const types: Record<number, { readonly name: string; readonly block: number; readonly bytes: number }> = {
  0: { name: "F32", block: 1, bytes: 4 },
  1: { name: "F16", block: 1, bytes: 2 },
  2: { name: "Q4_0", block: 32, bytes: 18 },
  3: { name: "Q4_1", block: 32, bytes: 20 },
  6: { name: "Q5_0", block: 32, bytes: 22 },
  7: { name: "Q5_1", block: 32, bytes: 24 },
  8: { name: "Q8_0", block: 32, bytes: 34 },
  12: { name: "Q4_K", block: 256, bytes: 144 },
  13: { name: "Q5_K", block: 256, bytes: 176 },
  14: { name: "Q6_K", block: 256, bytes: 210 },
  30: { name: "BF16", block: 1, bytes: 2 },
};

/** A tensor of a GGUF file, under its Hugging Face name. */
export interface GgufTensor {
  readonly name: string;
  /** Row-major, as everywhere else; GGUF itself lists the extents from the last to the first. */
  readonly shape: readonly number[];
  /** GGML's number of the type. */
  readonly type: number;
  /** GGML's name of the type, such as `Q4_K`. */
  readonly format: string;
  readonly byteLength: number;
  /**
   * The quantised bytes, rows in Hugging Face's order. A mapped view where the order is the file's; give it to
   * `release`.
   */
  read(): Uint8Array;
  release(bytes: Uint8Array): void;
}

export interface GgufModel extends Disposable {
  readonly path: string;
  readonly config: Config;
  readonly tensors: readonly GgufTensor[];
  /** What a person should know: what the file has that the model will not. */
  readonly notes: readonly string[];
}

type Metadata = ReadonlyMap<string, MetadataValue>;

/** The models that can be converted: GGUF's architecture → Hugging Face's. */
const architectures: Record<string, { readonly model: string; readonly type: string }> = {
  llama: { model: "LlamaForCausalLM", type: "llama" },
  qwen2: { model: "Qwen2ForCausalLM", type: "qwen2" },
  qwen3: { model: "Qwen3ForCausalLM", type: "qwen3" },
};

const globalNames: Record<string, string> = {
  token_embd: "model.embed_tokens",
  output_norm: "model.norm",
  output: "lm_head",
};

const layerNames: Record<string, string> = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
};

/** llama.cpp's table of rotary factors, which Hugging Face's models compute from config.json instead. */
const ropeFactors = "rope_freqs.weight";

/**
 * Opens a GGUF file of an architecture that can be converted.
 *
 * @throws BnbError naming the architecture, the type or the tensor that cannot be converted, or what is damaged
 */
export async function openGguf(path: string): Promise<GgufModel> {
  const file = new MappedFile(path);
  try {
    const { metadata, tensors: all } = readGgufHeader(file);
    const architecture = String(metadata.get("general.architecture"));
    if (!Object.hasOwn(architectures, architecture)) {
      const known = Object.keys(architectures).join(", ");
      throw new BnbError(`${path} has architecture ${architecture}; ${known} can be converted.`, "unsupported");
    }
    if (Number(metadata.get("split.count") ?? 1) > 1) {
      throw new BnbError(`${path} is one of several; merge them first (llama-gguf-split --merge).`, "unsupported");
    }
    const infos = all.filter((info) => info.name !== ropeFactors);
    const factors = all.find((info) => info.name === ropeFactors);
    const heads = architecture === "llama" ? headCounts(path, metadata) : undefined;
    const tensors = infos.map((info) => toTensor(file, info, heads));
    const tied = !tensors.some((tensor) => tensor.name === "lm_head.weight");
    const config = toConfig(path, architecture, metadata, tied, tensors);
    const scaling = factors && ropeScaling(file, factors, config);
    const notes = factors && !scaling ? [ropeNote] : [];
    const scaled = scaling ? { ...config, rope_scaling: scaling } : config;
    return { path, config: scaled, tensors, notes, [Symbol.dispose]: () => file.close() };
  } catch (error) {
    file.close();
    throw error;
  }
}

const ropeNote =
  "The file scales its rotary frequencies (rope_freqs.weight), which config.json must say too: copy `rope_scaling` from the " +
  "original model's config.json, or long texts will suffer.";

function headCounts(path: string, metadata: Metadata): { q: number; k: number } {
  const q = count(path, metadata, "llama.attention.head_count");
  const k =
    metadata.get("llama.attention.head_count_kv") === undefined
      ? q
      : count(path, metadata, "llama.attention.head_count_kv");
  return { q, k };
}

function toTensor(file: MappedFile, info: GgufInfo, heads: { q: number; k: number } | undefined): GgufTensor {
  const type = types[info.type];
  if (!type) {
    const known = Object.values(types).map(({ name }) => name);
    throw new BnbError(
      `${file.path}: ${info.name} has GGML type ${info.type}; ${known.join(", ")} can be read.`,
      "unsupported",
    );
  }
  const shape = info.shape.toReversed();
  const columns = shape.at(-1) ?? 1;
  if (columns % type.block !== 0) {
    throw damaged(file.path, `rows of ${columns} elements are no multiple of ${type.name}'s ${type.block}`, info.name);
  }
  const elements = shape.reduce((product, extent) => product * extent, 1);
  const byteLength = (elements / type.block) * type.bytes;
  const { offset } = info;
  if (!Number.isSafeInteger(elements) || elements === 0 || !(offset + byteLength <= file.size)) {
    throw damaged(file.path, `its ${byteLength} bytes at ${offset} reach beyond the file's ${file.size}`, info.name);
  }
  const pairs = /^blk\.\d+\.attn_q\./.test(info.name)
    ? heads?.q
    : /^blk\.\d+\.attn_k\./.test(info.name)
      ? heads?.k
      : undefined;
  const read = () => {
    const bytes = file.view(offset, byteLength, info.name);
    if (pairs === undefined) return bytes;
    const ordered = unpermute(file.path, info.name, bytes, shape[0]!, pairs);
    unmap(bytes);
    return ordered;
  };
  return {
    name: hfName(file.path, info.name),
    shape,
    type: info.type,
    format: type.name,
    byteLength,
    read,
    release: unmap,
  };
}

/**
 * Undoes the order that llama.cpp's converter gives the rows of llama's q and k. It interleaves the two halves of a
 * head, since its rotary embedding turns neighbouring pairs where Hugging Face's turns row i with row i + half. Rows
 * are whole runs of bytes, also when quantised.
 */
function unpermute(path: string, name: string, bytes: Uint8Array, rows: number, heads: number): Uint8Array {
  const half = rows / heads / 2;
  if (!Number.isInteger(half)) throw damaged(path, `${rows} rows do not fit ${heads} heads`, name);
  const rowBytes = bytes.length / rows;
  const ordered = new Uint8Array(bytes.length);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < 2 * half; row++) {
      const from = (head * 2 * half + row) * rowBytes;
      const to = (head * 2 * half + (row % 2) * half + Math.floor(row / 2)) * rowBytes;
      ordered.set(bytes.subarray(from, from + rowBytes), to);
    }
  }
  return ordered;
}

function hfName(path: string, name: string): string {
  const [, layer, stem, suffix] = /^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/.exec(name) ?? [];
  const known = layer === undefined ? globalNames : layerNames;
  if (stem === undefined || !Object.hasOwn(known, stem)) {
    throw new BnbError(
      `${path}: tensor ${name} has no place in the Hugging Face model of this architecture.`,
      "unsupported",
    );
  }
  return layer === undefined ? `${known[stem]}.${suffix}` : `model.layers.${layer}.${known[stem]}.${suffix}`;
}

// ── config.json ─────────────────────────────────────────────────────────────────────────────────────────────────────

function count(path: string, metadata: Metadata, key: string): number {
  const value = Number(metadata.get(key));
  if (Number.isSafeInteger(value) && value > 0) return value;
  throw damaged(path, `its metadata ${key} is ${String(metadata.get(key))}, expected a count`);
}

function toConfig(
  path: string,
  architecture: string,
  metadata: Metadata,
  tied: boolean,
  tensors: readonly GgufTensor[],
): Config {
  const { model, type } = architectures[architecture]!;
  const own = (key: string) => count(path, metadata, `${architecture}.${key}`);
  const optional = (key: string) => metadata.get(`${architecture}.${key}`);
  const heads = own("attention.head_count");
  const vocabulary = tensors.find((tensor) => tensor.name === "model.embed_tokens.weight");
  if (!vocabulary) throw damaged(path, "it has no token_embd.weight");
  const config: Record<string, PyValue> = {
    architectures: [model],
    model_type: type,
    hidden_act: "silu",
    hidden_size: own("embedding_length"),
    intermediate_size: own("feed_forward_length"),
    max_position_embeddings: own("context_length"),
    num_attention_heads: heads,
    num_hidden_layers: own("block_count"),
    num_key_value_heads: optional("attention.head_count_kv") === undefined ? heads : own("attention.head_count_kv"),
    rms_norm_eps: new PyFloat(shortFloat(optional("attention.layer_norm_rms_epsilon") ?? 1e-6)),
    rope_theta: new PyFloat(shortFloat(optional("rope.freq_base") ?? 10_000)),
    tie_word_embeddings: tied,
    vocab_size: vocabulary.shape[0]!,
  };
  const headSize =
    optional("attention.key_length") ?? (type === "llama" ? optional("rope.dimension_count") : undefined);
  if (headSize !== undefined) config.head_dim = Number(headSize);
  if (tensors.some((tensor) => tensor.name.endsWith("q_proj.bias")) && type === "llama") config.attention_bias = true;
  for (const id of ["bos", "eos", "unknown", "padding"] as const) {
    const token = metadata.get(`tokenizer.ggml.${id}_token_id`);
    const key = { bos: "bos_token_id", eos: "eos_token_id", unknown: "unk_token_id", padding: "pad_token_id" }[id];
    if (token !== undefined) config[key] = Number(token);
  }
  return config;
}

/**
 * The `rope_scaling` of Llama 3.1 to 3.3, found again from the factors that llama.cpp's converter computed of it. All
 * these models have the same parameters except the factor, which the lowest frequency has whole.
 *
 * @returns `undefined` if the factors are of another kind
 */
function ropeScaling(file: MappedFile, info: GgufInfo, config: Config): Config | undefined {
  if (info.type !== 0 || info.shape.length !== 1) return undefined;
  const count = info.shape[0]!;
  if (count === 0 || !(info.offset + 4 * count <= file.size)) {
    throw damaged(file.path, `its ${count} factors at ${info.offset} reach beyond the file's ${file.size}`, info.name);
  }
  const factors = new Float32Array(file.read(info.offset, 4 * count).buffer);
  const [low, high, context, factor] = [1, 4, 8192, factors.at(-1)!];
  const theta = (config.rope_theta as PyFloat).value;
  const same = factors.every((value, i) => {
    const turns = context / (2 * Math.PI * theta ** (i / count));
    const smooth = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    return Math.abs(value * ((1 - smooth) / factor + smooth) - 1) < 1e-3;
  });
  if (!same || !(factor > 1)) return undefined;
  return {
    rope_type: "llama3",
    factor: new PyFloat(factor),
    low_freq_factor: new PyFloat(low),
    high_freq_factor: new PyFloat(high),
    original_max_position_embeddings: context,
  };
}

/** GGUF keeps fp32; config.json should say 1e-05, not 9.999999747378752e-06. */
function shortFloat(value: unknown): number {
  return Number(Math.fround(Number(value)).toPrecision(7));
}
