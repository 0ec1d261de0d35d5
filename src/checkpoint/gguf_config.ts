// config.json of a model that comes as GGUF: what transformers calls what the file's metadata says.
import { type Architecture, architectures, type Facts, mixtral } from "./gguf_architectures.ts";
import { GgufList, type Metadata } from "./gguf_header.ts";
import { damaged } from "./header.ts";
import type { Config } from "./huggingface.ts";
import { PyFloat, type PyValue } from "./pyjson.ts";

/** As much of a model's tensors as its config says of them. */
export interface GgufContents {
  readonly path: string;
  readonly metadata: Metadata;
  /** Names in GGUF's spelling. */
  readonly names: ReadonlySet<string>;
  readonly vocabulary: number;
  /** Factors of rotary frequencies: a table for short texts and one for long, or one for all. */
  factors(name: string): Float32Array | undefined;
}

/** A file's architecture, or its name where it is none that can be read. */
export function architectureOf(metadata: Metadata): Architecture | string {
  const name = String(metadata.get("general.architecture"));
  if (!Object.hasOwn(architectures, name)) return name;
  return name === "llama" && Number(metadata.get("llama.expert_count") ?? 0) > 0 ? mixtral : architectures[name]!;
}

/** Reads metadata under an architecture's name. */
export function factsOf(path: string, metadata: Metadata, names: ReadonlySet<string> = new Set()): Facts {
  const prefix = String(metadata.get("general.architecture"));
  const value = (key: string) => {
    const found = metadata.get(`${prefix}.${key}`);
    // Some files give one count for each layer: they can be read where all are the same.
    if (!(found instanceof GgufList)) return found;
    const each = found.read();
    return each.every((one) => one === each[0]) ? each[0] : String(found);
  };
  const count = (key: string) => {
    const number = value(key);
    if (typeof number === "number" && Number.isSafeInteger(number) && number > 0) return number;
    throw damaged(path, `its metadata ${prefix}.${key} is ${String(number)}, expected a count`);
  };
  return {
    count,
    optional: (key) => (value(key) === undefined ? undefined : count(key)),
    float: (key) => {
      const number = value(key);
      if (number === undefined) return undefined;
      if (typeof number === "number" && Number.isFinite(number)) return shortFloat(number);
      throw damaged(path, `its metadata ${prefix}.${key} is ${String(number)}, expected a finite number`);
    },
    has: (stem) => names.has(`blk.0.${stem}`),
  };
}

/** GGUF keeps fp32; config.json should say 1e-05, not 9.999999747378752e-06. */
function shortFloat(value: number): number {
  return Number(Math.fround(value).toPrecision(7));
}

/** The whole config.json, and what a person should know. */
export function configOf(architecture: Architecture, contents: GgufContents): { config: Config; notes: string[] } {
  const { path, metadata, names, vocabulary } = contents;
  const facts = factsOf(path, metadata, names);
  const heads = facts.count("attention.head_count");
  const scaling = ropeScaling(facts, contents);
  const config: Record<string, PyValue | undefined> = {
    architectures: [architecture.model],
    model_type: architecture.type,
    hidden_act: "silu",
    hidden_size: facts.count("embedding_length"),
    intermediate_size: facts.optional("feed_forward_length") ?? facts.optional("expert_feed_forward_length"),
    max_position_embeddings: facts.count("context_length"),
    num_attention_heads: heads,
    num_hidden_layers: facts.count("block_count"),
    num_key_value_heads: facts.optional("attention.head_count_kv") ?? heads,
    rms_norm_eps: new PyFloat(facts.float("attention.layer_norm_rms_epsilon") ?? 1e-6),
    rope_theta: new PyFloat(facts.float("rope.freq_base") ?? 10_000),
    tie_word_embeddings: !names.has("output.weight"),
    vocab_size: vocabulary,
    head_dim: headSize(architecture, facts),
    ...tokenIds(path, metadata),
    ...architecture.config?.(facts),
    ...(scaling.found && { rope_scaling: scaling.found }),
  };
  const said = Object.entries(config).filter(([, value]) => value !== undefined && value !== null);
  const notes = [...scaling.notes, ...(architecture.type === "bert" ? [poolerNote] : [])];
  return { config: Object.fromEntries(said) as Config, notes };
}

const poolerNote =
  "The file has no pooler (pooler.dense), which transformers then makes at random: take embeddings from the last hidden " +
  "state.";

/** The size of a head, where it is not the width over the heads, or the file says it. */
function headSize({ type }: Architecture, facts: Facts): number | undefined {
  if (["phi", "phi3", "bert", "nomic_bert", "starcoder2"].includes(type)) return undefined;
  const isLlama = ["llama", "mixtral", "granite", "smollm3"].includes(type);
  return facts.optional("attention.key_length") ?? (isLlama ? facts.optional("rope.dimension_count") : undefined);
}

/** Ids of special tokens, by config.json's keys. */
export function tokenIds(path: string, metadata: Metadata): Record<string, number> {
  const keys = { bos: "bos_token_id", eos: "eos_token_id", unknown: "unk_token_id", padding: "pad_token_id" };
  const ids: Record<string, number> = {};
  for (const [name, key] of Object.entries(keys)) {
    const id = metadata.get(`tokenizer.ggml.${name}_token_id`);
    if (id === undefined) continue;
    if (typeof id !== "number" || !Number.isSafeInteger(id) || id < 0 || id >= 2 ** 32)
      throw damaged(
        path,
        `its metadata tokenizer.ggml.${name}_token_id is ${String(id)}, expected a number of a token`,
      );
    ids[key] = id;
  }
  return ids;
}

// ── Rotary embedding beyond its first length ────────────────────────────────────────────────────────────────────────

interface Scaling {
  readonly found: Config | undefined;
  readonly notes: string[];
}

const py = (value: number) => new PyFloat(value);

function ropeScaling(facts: Facts, contents: GgufContents): Scaling {
  const [long, short] = ["rope_factors_long.weight", "rope_factors_short.weight"].map(contents.factors);
  if (long && short) {
    const attention = facts.float("rope.scaling.attn_factor");
    const found: Config = {
      rope_type: "longrope",
      long_factor: [...long].map(py),
      short_factor: [...short].map(py),
      ...(attention !== undefined && { attention_factor: py(attention) }),
    };
    return { found, notes: [] };
  }
  const factors = contents.factors("rope_freqs.weight");
  if (factors) {
    const found = llama3Scaling(factors, facts.float("rope.freq_base") ?? 10_000);
    return { found, notes: found ? [] : [ropeNote] };
  }
  return { found: namedScaling(facts, contents), notes: [] };
}

const ropeNote =
  "The file scales its rotary frequencies (rope_freqs.weight), which config.json must say too: copy `rope_scaling` from " +
  "the original model's config.json, or long texts will suffer.";

/** Scaling that the metadata names. The first files had `rope.scale_linear` alone. */
function namedScaling(facts: Facts, { path, metadata }: GgufContents): Config | undefined {
  const prefix = String(metadata.get("general.architecture"));
  const old = facts.float("rope.scale_linear");
  const type = metadata.get(`${prefix}.rope.scaling.type`) ?? (old === undefined ? "none" : "linear");
  const factor = facts.float("rope.scaling.factor") ?? old;
  if (type === "none" || factor === 1) return undefined;
  if (type === "linear" && factor !== undefined) return { rope_type: "linear", factor: py(factor) };
  if (type === "yarn" && factor !== undefined) {
    const optional = {
      attention_factor: facts.float("rope.scaling.attn_factor"),
      beta_fast: facts.float("rope.scaling.yarn_beta_fast"),
      beta_slow: facts.float("rope.scaling.yarn_beta_slow"),
    };
    const said = Object.entries(optional).flatMap(([key, value]) => (value === undefined ? [] : [[key, py(value)]]));
    const original = facts.optional("rope.scaling.original_context_length");
    return {
      rope_type: "yarn",
      factor: py(factor),
      ...(original !== undefined && { original_max_position_embeddings: original }),
      ...Object.fromEntries(said),
    };
  }
  throw damaged(path, `its metadata ${prefix}.rope.scaling.type is ${String(type)} with the factor ${String(factor)}`);
}

/**
 * The `rope_scaling` of Llama 3.1 to 3.3, found again from the factors that llama.cpp's converter computed of it. All
 * these models have the same parameters except the factor, which the lowest frequency has whole.
 *
 * @returns `undefined` if the factors are of another kind
 */
function llama3Scaling(factors: Float32Array, theta: number): Config | undefined {
  const [low, high, context, factor] = [1, 4, 8192, factors.at(-1)!];
  const same = factors.every((value, i) => {
    const turns = context / (2 * Math.PI * theta ** (i / factors.length));
    const smooth = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    return Math.abs(value * ((1 - smooth) / factor + smooth) - 1) < 1e-3;
  });
  if (!same || !(factor > 1)) return undefined;
  return {
    rope_type: "llama3",
    factor: py(factor),
    low_freq_factor: py(low),
    high_freq_factor: py(high),
    original_max_position_embeddings: context,
  };
}
