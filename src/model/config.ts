// config.json: what transformers writes for any family becomes one Architecture record, or is refused by name.

import type { Activation } from "../activate.ts";
import { BnbError } from "../error.ts";
import type { Architecture, LayerSpec, RopeSpec } from "./architecture.ts";
import { type Family, families } from "./families.ts";

/** A config.json, parsed. */
export type JsonObject = { readonly [key: string]: unknown };

/** Fields of a config, each checked for its type as it is read, with the file's path in the error. */
class Fields {
  constructor(
    readonly values: JsonObject,
    readonly path: string,
  ) {}

  /** `undefined` for what is absent or null. */
  get(key: string): unknown {
    return Object.hasOwn(this.values, key) ? (this.values[key] ?? undefined) : undefined;
  }

  number(key: string, fallback?: number): number {
    const value = this.get(key) ?? fallback;
    if (typeof value === "number" && Number.isFinite(value)) return value;
    throw this.wrong(key, value, "a number");
  }

  count(key: string, fallback?: number): number {
    const value = this.number(key, fallback);
    if (Number.isSafeInteger(value) && value >= 1 && value <= 2 ** 31) return value;
    throw this.wrong(key, value, "a whole number of at least 1");
  }

  flag(key: string, fallback: boolean): boolean {
    const value = this.get(key) ?? fallback;
    if (typeof value === "boolean") return value;
    throw this.wrong(key, value, "true or false");
  }

  text(key: string): string | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === "string") return value;
    throw this.wrong(key, value, "a text");
  }

  list(key: string): readonly unknown[] | undefined {
    const value = this.get(key);
    if (value === undefined || Array.isArray(value)) return value;
    throw this.wrong(key, value, "a list");
  }

  numbers(key: string): readonly number[] | undefined {
    const list = this.list(key);
    if (list?.some((value) => typeof value !== "number" || !Number.isFinite(value)))
      throw this.wrong(key, list, "a list of numbers");
    return list as readonly number[] | undefined;
  }

  object(key: string): Fields | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (typeof value === "object" && !Array.isArray(value)) return new Fields(value as JsonObject, this.path);
    throw this.wrong(key, value, "an object");
  }

  wrong(key: string, value: unknown, expected: string): BnbError {
    const shown = value === undefined ? "missing" : JSON.stringify(value);
    return new BnbError(`${this.path}: ${key} is ${shown}, expected ${expected}.`);
  }
}

const activations: Readonly<Record<string, Activation>> = {
  silu: "silu",
  swish: "silu",
  gelu: "gelu",
  gelu_new: "geluTanh",
  gelu_pytorch_tanh: "geluTanh",
  gelu_fast: "geluTanh",
};

/**
 * What a config.json describes.
 *
 * @param path of the file, for errors
 * @param generation generation_config.json, whose ids of ends win
 * @throws BnbError (`unsupported`) naming a family or an option that is not known; else naming what is wrong
 */
export function readArchitecture(json: JsonObject, path: string, generation: JsonObject = {}): Architecture {
  const whole = new Fields(json, path);
  const type = whole.text("model_type");
  if (type === undefined) throw whole.wrong("model_type", undefined, "the name of a family");
  const family = Object.hasOwn(families, type) ? families[type]! : undefined;
  if (!family)
    throw new BnbError(
      `${path}: model_type is ${JSON.stringify(type)}, expected a family that is known: ${Object.keys(families).join(", ")}.`,
      "unsupported",
    );
  const fields = whole.object("text_config") ?? whole; // of a model that sees too, the part that reads
  return describe(fields, type, family, new Fields(generation, path));
}

function describe(fields: Fields, type: string, family: Family, generation: Fields): Architecture {
  const hidden = fields.count("hidden_size");
  const heads = fields.count("num_attention_heads");
  const kvHeads = fields.count("num_key_value_heads", heads);
  const headDim = fields.count("head_dim", Math.floor(hidden / heads));
  if (heads % kvHeads !== 0) throw fields.wrong("num_key_value_heads", kvHeads, `a divisor of the ${heads} heads`);
  refuseVariants(fields, type);
  const firstPosition = family.firstPosition ?? 0;
  return {
    family: type,
    kind: family.kind,
    vocabulary: fields.count("vocab_size"),
    hidden,
    heads,
    kvHeads,
    headDim,
    positions: fields.count("max_position_embeddings") - firstPosition,
    layers: layersOf(fields, type, family, headDim),
    norm: { kind: family.norm, eps: epsOf(fields, family.norm), offset: family.normOffset ?? 0 },
    qkNorm: family.qkNorm ?? false,
    attention: { scale: scaleOf(fields, headDim), softcap: fields.number("attn_logit_softcapping", 0) },
    mlp: { activation: activationOf(fields, family), gated: family.gated ?? false },
    parallel: family.parallel ?? false,
    experts: expertsOf(fields, family),
    multipliers: {
      embedding: family.scaledEmbedding ? Math.sqrt(hidden) : fields.number("embedding_multiplier", 1),
      residual: fields.number("residual_multiplier", 1),
      logits: 1 / fields.number("logits_scaling", 1),
    },
    logitSoftcap: fields.number("final_logit_softcapping", 0),
    tied: fields.flag("tie_word_embeddings", family.tied ?? false),
    firstPosition,
    relativeBuckets: fields.count("relative_attention_num_buckets", 32),
    tokens: tokensOf(fields, generation),
    names: family.names,
  };
}

/** What a config can ask for that nothing here does, and that would show only as wrong text. */
function refuseVariants(fields: Fields, type: string): void {
  const refusals: [key: string, isRefused: (value: unknown) => boolean][] = [
    ["qk_layernorm", (value) => value === true],
    ["use_bidirectional_attention", (value) => value === true],
    ["position_embedding_type", (value) => value !== "absolute"],
    ["clip_qkv", (value) => typeof value === "number"],
    ["is_decoder", (value) => value === true],
  ];
  for (const [key, isRefused] of refusals) {
    const value = fields.get(key);
    if (value !== undefined && isRefused(value))
      throw new BnbError(
        `${fields.path}: ${key} is ${JSON.stringify(value)}, which is not supported for ${type}.`,
        "unsupported",
      );
  }
}

function epsOf(fields: Fields, kind: "rms" | "layer"): number {
  if (kind === "rms") return fields.number("rms_norm_eps", 1e-6);
  return fields.number(fields.get("norm_eps") === undefined ? "layer_norm_eps" : "norm_eps");
}

function scaleOf(fields: Fields, headDim: number): number {
  const multiplier = fields.get("attention_multiplier");
  if (multiplier !== undefined) return fields.number("attention_multiplier");
  return fields.number("query_pre_attn_scalar", headDim) ** -0.5;
}

function activationOf(fields: Fields, family: Family): Activation {
  const key = ["hidden_activation", "hidden_act", "activation_function"].find((key) => fields.get(key) !== undefined);
  // Gemma 1 says gelu and means its tanh.
  if (family.activation && key !== "hidden_activation") return family.activation;
  const name = key === undefined ? "silu" : fields.text(key)!;
  const activation = Object.hasOwn(activations, name) ? activations[name] : undefined;
  if (activation) return activation;
  throw new BnbError(
    `${fields.path}: ${key} is ${JSON.stringify(name)}, expected ${Object.keys(activations).join(", ")}.`,
    "unsupported",
  );
}

function expertsOf(fields: Fields, family: Family): Architecture["experts"] {
  if (!family.names.experts) return undefined;
  const count = fields.count(fields.get("num_local_experts") === undefined ? "num_experts" : "num_local_experts");
  const perToken = fields.count("num_experts_per_tok", 2);
  if (perToken > count) throw fields.wrong("num_experts_per_tok", perToken, `at most the ${count} experts`);
  return { count, perToken, normalised: family.normalisesExperts ?? fields.flag("norm_topk_prob", false) };
}

function tokensOf(fields: Fields, generation: Fields): Architecture["tokens"] {
  const ids = (value: unknown, key: string): number[] => {
    const list = Array.isArray(value) ? value : value === undefined ? [] : [value];
    for (const id of list) if (!Number.isSafeInteger(id) || id < 0) throw fields.wrong(key, value, "ids of tokens");
    return list;
  };
  const one = (key: string) => ids(generation.get(key) ?? fields.get(key), key)[0];
  return {
    bos: one("bos_token_id"),
    eos: ids(generation.get("eos_token_id") ?? fields.get("eos_token_id"), "eos_token_id"),
    pad: one("pad_token_id"),
  };
}

// ── Layers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

function layersOf(fields: Fields, type: string, family: Family, headDim: number): LayerSpec[] {
  const count = fields.count("num_hidden_layers");
  if (count > 1024) throw fields.wrong("num_hidden_layers", count, "at most 1024");
  const types = fields.list("layer_types");
  const window = windowOf(fields, type, family);
  const pattern = fields.count(
    "sliding_window_pattern",
    fields.count("_sliding_window_pattern", fields.count("global_attn_every_n_layers", family.slidingPattern ?? 1)),
  );
  const maxWindowLayers = fields.number("max_window_layers", 28);
  const rotates = rotationsOf(fields, family);
  const dense = fields.numbers("mlp_only_layers") ?? [];
  const step = fields.count("decoder_sparse_step", 1);
  const ropes = new Map(
    ["full_attention", "sliding_attention"].map((kind) => [kind, ropeOf(fields, kind, family, headDim)]),
  );
  return Array.from({ length: count }, (_, i) => {
    const kind = types
      ? layerType(fields, types, i)
      : slides(type, i, pattern, window, maxWindowLayers)
        ? "sliding_attention"
        : "full_attention";
    return {
      window: kind === "sliding_attention" ? window : undefined,
      rope: rotates(i) ? ropes.get(kind) : undefined,
      sparse: family.names.experts !== undefined && !dense.includes(i) && (i + 1) % step === 0,
      attentionNorm: !(type === "modernbert" && i === 0),
    };
  });
}

/** Which layers turn positions to angles: SmolLM3's list has a 0 for those that don't, and else every fourth is one. */
function rotationsOf(fields: Fields, { unrotatedInterval }: Family): (layer: number) => boolean {
  const list = fields.numbers("no_rope_layers");
  if (list) return (layer) => list[layer] !== 0;
  if (unrotatedInterval === undefined) return () => true;
  const interval = fields.count("no_rope_layer_interval", unrotatedInterval);
  return (layer) => (layer + 1) % interval !== 0;
}

function layerType(fields: Fields, types: readonly unknown[], i: number): "full_attention" | "sliding_attention" {
  const type = types[i];
  if (type === "full_attention" || type === "sliding_attention") return type;
  throw new BnbError(
    `${fields.path}: layer_types[${i}] is ${JSON.stringify(type)}, expected "full_attention" or "sliding_attention".`,
    "unsupported",
  );
}

/** Whether a layer has a window where the config has no list of types. */
function slides(
  type: string,
  layer: number,
  pattern: number,
  window: number | undefined,
  maxWindowLayers: number,
): boolean {
  if (window === undefined) return false;
  if (type === "gemma2" || type.startsWith("gemma3")) return (layer + 1) % pattern !== 0;
  if (type === "modernbert") return layer % pattern !== 0;
  return !type.startsWith("qwen") || layer >= maxWindowLayers;
}

/** The keys that a row of a layer with a window sees: for an encoder, so many on each side. */
function windowOf(fields: Fields, type: string, family: Family): number | undefined {
  if (type === "modernbert") return Math.floor(fields.count("local_attention", 128) / 2);
  if (type.startsWith("qwen") && !fields.flag("use_sliding_window", false)) return undefined;
  if (!Object.hasOwn(fields.values, "sliding_window")) return family.defaultWindow;
  return fields.number("sliding_window", 0) > 0 ? fields.count("sliding_window") : undefined;
}

// ── Positions ───────────────────────────────────────────────────────────────────────────────────────────────────────

const ropeTypes = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"] as const;

/**
 * transformers 5 has `rope_parameters`, for all layers or by their type; older files have `rope_theta` and
 * `rope_scaling`.
 */
function ropeOf(fields: Fields, layerType: string, family: Family, headDim: number): RopeSpec | undefined {
  if (family.names.positions) return undefined;
  const all = fields.object("rope_parameters");
  const local =
    layerType === "sliding_attention"
      ? (fields.get("rope_local_base_freq") ?? fields.get("local_rope_theta"))
      : undefined;
  const scaling = local === undefined ? fields.object("rope_scaling") : undefined;
  const own = all?.object(layerType) ?? all ?? scaling ?? new Fields({}, fields.path);
  const theta = own.number(
    "rope_theta",
    Number(local ?? fields.get("global_rope_theta") ?? fields.number("rope_theta", family.defaultTheta ?? 10000)),
  );
  const share = own.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1));
  const name = own.text("rope_type") ?? own.text("type") ?? "default";
  const type = ropeTypes.find((type) => type === (name === "su" ? "longrope" : name));
  if (!type)
    throw new BnbError(
      `${fields.path}: rope_type is ${JSON.stringify(name)}, expected ${ropeTypes.join(", ")}.`,
      "unsupported",
    );
  return describeRope(fields, own, type, theta, Math.floor(headDim * share));
}

function describeRope(fields: Fields, own: Fields, type: RopeSpec["type"], theta: number, rotated: number): RopeSpec {
  const positions = fields.count("max_position_embeddings");
  const originalPositions = own.count(
    "original_max_position_embeddings",
    fields.count("original_max_position_embeddings", positions),
  );
  const factor = own.number("factor", positions / originalPositions);
  if (rotated < 2 || rotated % 2)
    throw fields.wrong("partial_rotary_factor", rotated, "an even number of columns of a head");
  const [shortFactors, longFactors] = [own.numbers("short_factor") ?? [], own.numbers("long_factor") ?? []];
  for (const [key, list] of Object.entries({ short_factor: shortFactors, long_factor: longFactors }))
    if (type === "longrope" && list.length !== rotated / 2) throw own.wrong(key, list, `${rotated / 2} numbers`);
  return {
    rotated,
    theta,
    type,
    factor,
    originalPositions,
    attentionFactor: attentionFactorOf(own, type, factor, originalPositions),
    lowFrequency: own.number("low_freq_factor", 1),
    highFrequency: own.number("high_freq_factor", 4),
    betaFast: own.number("beta_fast", 32),
    betaSlow: own.number("beta_slow", 1),
    truncate: own.flag("truncate", true),
    shortFactors,
    longFactors,
  };
}

function attentionFactorOf(own: Fields, type: RopeSpec["type"], factor: number, originalPositions: number): number {
  if (type !== "yarn" && type !== "longrope") return 1;
  if (own.get("attention_factor") !== undefined) return own.number("attention_factor");
  if (factor <= 1) return 1;
  if (type === "longrope") return Math.sqrt(1 + Math.log(factor) / Math.log(originalPositions));
  const growth = (scale: number) => 0.1 * scale * Math.log(factor) + 1;
  const [scale, all] = [own.number("mscale", 0), own.number("mscale_all_dim", 0)];
  return scale && all ? growth(scale) / growth(all) : growth(1);
}
