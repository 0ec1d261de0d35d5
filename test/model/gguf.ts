// GGUF files of the tiny models: their tensors under GGUF's names, in the order and form that llama.cpp's
// converter gives them.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { type Architecture, architectures, mixtral } from "../../src/checkpoint/gguf_architectures.ts";
import { Tensor } from "../../src/index.ts";
import { type GgufMetadata, type GgufTensorSpec, ggufFile } from "../models.ts";

type Json = Record<string, unknown>;

/** What llama.cpp's converter calls the numbers of config.json that these models have. */
const metadataOf = (config: Json, prefix: string): GgufMetadata => {
  const rope = (config.rope_parameters ?? {}) as Json & { full_attention?: Json };
  const [hidden, heads] = [Number(config.hidden_size), Number(config.num_attention_heads)];
  const said: Record<string, unknown> = {
    block_count: config.num_hidden_layers,
    context_length: config.max_position_embeddings,
    embedding_length: hidden,
    feed_forward_length: config.intermediate_size,
    expert_feed_forward_length: config.moe_intermediate_size,
    expert_count: config.num_local_experts,
    expert_used_count: config.num_experts_per_tok,
    "attention.head_count": heads,
    "attention.head_count_kv": config.num_key_value_heads,
    "attention.key_length": config.head_dim,
    "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    "attention.layer_norm_epsilon": config.layer_norm_eps,
    "attention.sliding_window": config.sliding_window,
    "attention.scale": config.attention_multiplier,
    embedding_scale: config.embedding_multiplier,
    residual_scale: config.residual_multiplier,
    logit_scale: config.logits_scaling,
    attn_logit_softcapping: config.attn_logit_softcapping,
    final_logit_softcapping: config.final_logit_softcapping,
    "rope.freq_base": rope.full_attention?.rope_theta ?? rope.rope_theta,
    "rope.dimension_count": (hidden / heads) * Number(rope.partial_rotary_factor ?? 1),
    pooling_type: config.model_type === "bert" ? 2 : undefined,
  };
  const there = Object.entries(said).filter(([, value]) => typeof value === "number");
  return Object.fromEntries(there.map(([key, value]) => [`${prefix}.${key}`, value as number]));
};

/** Rows of a head in the order of llama.cpp's rotary embedding: row i beside row i + half. */
function interleaved(values: Float32Array, rows: number, heads: number): Float32Array {
  const [columns, half] = [values.length / rows, rows / heads / 2];
  const ordered = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    const [head, inside] = [Math.floor(row / (2 * half)), row % (2 * half)];
    const from = head * 2 * half + (inside % 2) * half + Math.floor(inside / 2);
    ordered.set(values.subarray(from * columns, (from + 1) * columns), row * columns);
  }
  return ordered;
}

/** GGUF's name of a tensor: that which the architecture's table has for the module's. */
function ggufName(name: string, { whole, layers, layer, experts }: Architecture): string | undefined {
  const [, module, part] = /^(.*)\.(weight|bias)$/.exec(name)!;
  const stemOf = (names: Readonly<Record<string, string>>, wanted: string) =>
    Object.keys(names).find((stem) => names[stem] === wanted);
  const [, number, inside] = new RegExp(`^${layers.replaceAll(".", "\\.")}\\.(\\d+)\\.(.*)$`).exec(module!) ?? [];
  if (inside === undefined) {
    const stem = stemOf(whole, module!);
    return stem && `${stem}.${part}`;
  }
  const [, expert, matrix] = (experts && new RegExp(`^${experts.in}\\.(\\d+)\\.(\\w+)$`).exec(inside)) ?? [];
  const stem = matrix ? stemOf(experts!.names, matrix)?.replace("_exps", `.${expert}`) : stemOf(layer, inside);
  return stem && `blk.${number}.${stem}.${part}`;
}

const q8Bytes = 34;

/** GGML's Q8_0: a half and 32 signed bytes. */
function q8(values: Float32Array): Uint8Array {
  const bytes = Buffer.alloc((values.length / 32) * q8Bytes);
  for (let block = 0; block < values.length / 32; block++) {
    const part = values.subarray(32 * block, 32 * block + 32);
    const scale = Float16Array.of(part.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127);
    bytes.set(new Uint8Array(scale.buffer), block * q8Bytes);
    for (const [i, value] of part.entries())
      bytes.writeInt8(Math.max(-127, Math.min(127, Math.round(value / scale[0]!))), block * q8Bytes + 2 + i);
  }
  return bytes;
}

/**
 * Writes a folder's model as a GGUF file.
 *
 * @param q8Matrices matrices whose rows are of whole blocks become Q8_0
 */
export function writeGguf(folder: string, architecture: string, file: string, q8Matrices = false): void {
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8")) as Json;
  const table = config.model_type === "mixtral" ? mixtral : architectures[architecture]!;
  using checkpoint = openCheckpoint(folder);
  const tensors = Array.from(checkpoint.tensors.values()).flatMap((tensor): GgufTensorSpec[] => {
    const name = ggufName(tensor.name, table);
    if (name === undefined) return []; // a pooler, which GGUF has no place for
    using dense = Tensor.from(tensor.values as Float32Array, tensor.shape, { dtype: "bfloat16" });
    using wide = dense.cast("float32");
    let values: Float32Array = wide.read();
    const which = /attn_([qk])\./.exec(name)?.[1];
    if (table.interleaved && which)
      values = interleaved(
        values,
        tensor.shape[0]!,
        Number(which === "q" ? config.num_attention_heads : config.num_key_value_heads),
      );
    if (table.normsPlusOne && name.includes("norm")) values = values.map((value) => value + 1);
    if (q8Matrices && tensor.shape.length === 2 && tensor.shape[1]! % 32 === 0)
      return [{ name, shape: [...tensor.shape], type: 8, data: q8(values) }];
    return [{ name, shape: [...tensor.shape], type: 0, data: new Uint8Array(values.slice().buffer) }];
  });
  const metadata = { "general.architecture": architecture, ...metadataOf(config, architecture), ...vocabulary(folder) };
  writeFileSync(file, ggufFile(metadata, fused(tensors)));
}

/** Matrices of experts behind each other, as one tensor of three extents. */
function fused(tensors: readonly GgufTensorSpec[]): GgufTensorSpec[] {
  const groups = Map.groupBy(tensors, ({ name }) => name.replace(/\.(ffn_\w+)\.\d+\.weight$/, ".$1_exps.weight"));
  return Array.from(groups, ([name, parts]) => {
    const [first] = parts as [GgufTensorSpec];
    if (first.name === name) return first;
    const ordered = parts.toSorted((a, b) => a.name.localeCompare(b.name));
    const data = Buffer.concat(ordered.map((part) => part.data));
    return { name, shape: [parts.length, ...first.shape], type: first.type, data };
  });
}

/** The tokenizer, as llama.cpp's converter writes a byte-level one. */
function vocabulary(folder: string): GgufMetadata {
  let text: string;
  try {
    text = readFileSync(join(folder, "tokenizer.json"), "utf8");
  } catch {
    return {};
  }
  const { model } = JSON.parse(text) as { model: { vocab: Record<string, number> } };
  const tokens = Object.keys(model.vocab).sort((a, b) => model.vocab[a]! - model.vocab[b]!);
  const config = JSON.parse(readFileSync(join(folder, "tokenizer_config.json"), "utf8")) as { chat_template: string };
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": tokens.map((token) => (/^<.+>$/.test(token) ? 3 : 1)),
    "tokenizer.ggml.merges": [],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
    "tokenizer.ggml.add_bos_token": true,
    "tokenizer.chat_template": config.chat_template,
  };
}
