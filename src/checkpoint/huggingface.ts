// Owns what a Hugging Face directory holds beside the weights: config.json and the choice of modules.
import { join } from "node:path";
import { BnbError } from "../error.ts";
import { configBytesMax, fileIn, readText } from "./folder.ts";
import { damaged, type SafetensorsDtype } from "./header.ts";
import { isObject } from "./json.ts";
import { modulePattern } from "./pattern.ts";
import { dumps, PyFloat, type PyValue, parsePreserving } from "./pyjson.ts";
import { writeText } from "./staging.ts";
import { type FloatDtype, floatDtypes, type StorageDtype } from "./state.ts";

/** A config.json; numbers are kept as the file spells them. */
export type Config = { readonly [key: string]: PyValue };

const configName = "config.json";

/** A directory's config.json, or `undefined` if it has none. @throws BnbError if it is not a JSON object */
export function readConfig(directory: string): Config | undefined {
  const path = fileIn(directory, configName);
  if (path === undefined) return undefined;
  const text = readText(path, configBytesMax);
  let json: PyValue;
  try {
    json = parsePreserving(text);
  } catch (cause) {
    throw damaged(path, `it is not JSON (${(cause as Error).message})`);
  }
  if (!isObject(json)) throw damaged(path, "it is not an object");
  checkTexts(path, json, ["model_type", "dtype", "torch_dtype"]);
  const quantization = json.quantization_config ?? {};
  if (!isObject(quantization)) throw damaged(path, "its quantization_config is not an object");
  checkTexts(path, quantization, ["quant_method", "bnb_4bit_quant_type"]);
  return json as Config;
}

/** @throws BnbError where one of these keys holds another value than text, or nothing */
function checkTexts(path: string, object: Readonly<Record<string, unknown>>, keys: readonly string[]): void {
  for (const key of keys) {
    const value = object[key] ?? "";
    if (typeof value !== "string") throw damaged(path, `its ${key} is ${JSON.stringify(value)}, expected text`);
  }
}

/** Writes a config.json as transformers does: keys sorted, two spaces, a newline at the end. */
export function writeConfig(directory: string, config: Config): void {
  writeText(join(directory, configName), `${dumps(config, { indent: 2, sortKeys: true })}\n`);
}

/** The dtype that a config names, under transformers 5's key or the older one. */
export function configDtype(config: Config | undefined): FloatDtype | undefined {
  const dtype = config?.dtype ?? config?.torch_dtype;
  return Object.hasOwn(floatDtypes, String(dtype)) ? (dtype as FloatDtype) : undefined;
}

/** The config with its dtype set, under the key that it uses already. */
export function withDtype(config: Config, dtype: FloatDtype): Config {
  const key = "torch_dtype" in config && !("dtype" in config) ? "torch_dtype" : "dtype";
  return { ...config, [key]: dtype };
}

export type QuantType = "nf4" | "fp4" | "int8";

/** What `quantization_config` says of a bitsandbytes model. */
export interface QuantizationConfig {
  readonly quantType: QuantType;
  readonly doubleQuant: boolean;
  readonly computeDtype: FloatDtype;
  readonly storage: StorageDtype;
  /** `undefined` lets transformers choose, as {@link chooseModules} does. */
  readonly skipModules: readonly string[] | undefined;
}

/** The config with the `quantization_config` that transformers' `BitsAndBytesConfig.to_dict()` gives. */
export function withQuantization(config: Config, quantization: QuantizationConfig): Config {
  const int8 = quantization.quantType === "int8";
  return {
    ...config,
    quantization_config: {
      _load_in_4bit: !int8,
      _load_in_8bit: int8,
      bnb_4bit_compute_dtype: quantization.computeDtype,
      bnb_4bit_quant_storage: quantization.storage,
      bnb_4bit_quant_type: quantization.quantType === "int8" ? "fp4" : quantization.quantType,
      bnb_4bit_use_double_quant: quantization.doubleQuant,
      llm_int8_enable_fp32_cpu_offload: false,
      llm_int8_has_fp16_weight: false,
      llm_int8_skip_modules: quantization.skipModules ?? null,
      llm_int8_threshold: new PyFloat(6),
      load_in_4bit: !int8,
      load_in_8bit: int8,
      quant_method: "bitsandbytes",
    },
  };
}

export function withoutQuantization(config: Config): Config {
  const { quantization_config: _, ...rest } = config;
  return rest;
}

/** How a config says that its weights are quantised: bitsandbytes' format, or the name of another method. */
export function quantMethod(config: Config | undefined): QuantType | string | undefined {
  const quantization = config?.quantization_config as Config | null | undefined;
  if (quantization === undefined || quantization === null) return undefined;
  if ((quantization.quant_method ?? "bitsandbytes") !== "bitsandbytes") return String(quantization.quant_method);
  return quantization.load_in_8bit === true ? "int8" : String(quantization.bnb_4bit_quant_type ?? "fp4");
}

// ── Which modules ───────────────────────────────────────────────────────────────────────────────────────────────────

/** Output heads, which transformers leaves alone by default. `score` counts as one where it has no bias. */
const heads = ["lm_head", "lm_head.decoder", "embed_out", "cls.predictions.decoder", "vocab_projector"];

/** The last part of the names that embeddings have in transformers' models. Their weights are matrices too. */
const embedding = /^(wte|wpe|shared|embed|relative_attention_bias|.*embeddings?|embed_.*)$/;

/** Models that store Linear weights transposed. */
const transposed = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];

/** Models of which transformers keeps some modules in fp32, and so unquantised. */
const keptInFp32: Record<string, string> = { t5: "wo", mt5: "wo", umt5: "wo", udop: "wo", pop2piano: "wo" };

/** As much of a tensor as the choice depends on. */
export interface TensorShape {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
}

export interface Choice {
  /** Names of the weights to quantise. */
  readonly weights: ReadonlySet<string>;
  /** Names of matrices that stay, with why. */
  readonly kept: ReadonlyMap<string, string>;
  /** What `llm_int8_skip_modules` must say so that transformers makes the same choice. */
  readonly skipModules: readonly string[] | undefined;
}

/**
 * Chooses the weights to quantise as transformers 5 does by default: those of `nn.Linear`, except the output head. A
 * file has no classes, so a Linear is a matrix called `….weight` whose module is not named as an embedding is; experts
 * of a mixture stay, since transformers 5 fuses them into tensors that bitsandbytes does not quantise.
 *
 * @param skip more modules to leave alone, by transformers' rule: a pattern matches a module from its start to a dot,
 *   as a regular expression, or is the end of its name
 */
export function chooseModules(
  tensors: Iterable<TensorShape>,
  config: Config | undefined,
  skip: readonly string[] = [],
): Choice {
  const type = String(config?.model_type ?? "");
  if (transposed.includes(type)) {
    throw new BnbError(`${type} models store Linear weights transposed, which is not supported.`, "unsupported");
  }
  const all = new Map(Array.from(tensors, (tensor) => [tensor.name, tensor]));
  const patterns = skip.length > 0 ? [...new Set(["lm_head", ...skip])] : [];
  const isSkipped = patterns.map(modulePattern);
  const fp32 = keptInFp32[type];
  const isFp32 = fp32 === undefined ? () => false : modulePattern(fp32);
  const weights = new Set<string>();
  const kept = new Map<string, string>();
  for (const { name, dtype, shape } of all.values()) {
    if (shape.length !== 2 || !name.endsWith(".weight")) continue;
    const reason = whyKept(name.slice(0, -".weight".length), dtype, all, isFp32, isSkipped);
    if (reason === undefined) weights.add(name);
    else kept.set(name, reason);
  }
  const named = [...kept]
    .filter(([, reason]) => reason === "output head")
    .map(([name]) => name.slice(0, -".weight".length));
  const skipModules = skip.length > 0 ? [...new Set([...named, ...patterns])].sort() : undefined;
  return { weights, kept, skipModules };
}

function whyKept(
  module: string,
  dtype: SafetensorsDtype,
  all: ReadonlyMap<string, TensorShape>,
  isFp32: (module: string) => boolean,
  isSkipped: readonly ((module: string) => boolean)[],
): string | undefined {
  const last = module.split(".").at(-1)!;
  const isHead = heads.some((head) => module === head || module.endsWith(`.${head}`));
  if (isHead || (last === "score" && !all.has(`${module}.bias`))) return "output head";
  if (embedding.test(last)) return "embedding";
  if (/\.experts\.\d+\./.test(module)) return "expert of a mixture";
  if (isFp32(module)) return "kept in float32";
  if (isSkipped.some((skips) => skips(module))) return "skipped";
  if (!(Object.values(floatDtypes) as string[]).includes(dtype)) return `stored as ${dtype}`;
  return undefined;
}
