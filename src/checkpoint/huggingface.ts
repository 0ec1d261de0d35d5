// What a Hugging Face directory holds beside the weights: config.json and the choice of modules.
import { join } from "node:path";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { configBytesMax, fileIn, readText } from "./folder.ts";
import { damaged, type SafetensorsDtype } from "./header.ts";
import { isObject } from "./json.ts";
import { isHead, isKnown, isReplaced, judge, type Kind, knownOf, sentenceOf } from "./modules.ts";
import { modulePattern } from "./pattern.ts";
import { dumps, PyFloat, type PyValue, parsePreserving } from "./pyjson.ts";
import { writeText } from "./staging.ts";
import { floatDtypes, type StorageDtype } from "./state.ts";

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
  checkTexts(path, json as Config, ["model_type", "dtype", "torch_dtype"]);
  const quantization = json.quantization_config ?? {};
  if (!isObject(quantization)) throw damaged(path, "its quantization_config is not an object");
  checkTexts(path, quantization as Config, ["quant_method", "bnb_4bit_quant_type"]);
  return json as Config;
}

/** @throws BnbError where one of these keys holds another value than text, or nothing */
function checkTexts(path: string, object: Readonly<Record<string, PyValue>>, keys: readonly string[]): void {
  for (const key of keys) {
    const value = object[key] ?? "";
    if (typeof value !== "string") throw damaged(path, `its ${key} is ${dumps(value)}, expected text`);
  }
}

/** Writes a config.json as transformers does: keys sorted, two spaces, a newline at the end. */
export function writeConfig(directory: string, config: Config): void {
  writeText(join(directory, configName), `${dumps(config, { indent: 2, sortKeys: true })}\n`);
}

/** The dtype that a config names, under transformers 5's key or the older one. */
export function configDtype(config: Config | undefined): FloatDType | undefined {
  const dtype = config?.dtype ?? config?.torch_dtype;
  return Object.hasOwn(floatDtypes, String(dtype)) ? (dtype as FloatDType) : undefined;
}

/** The config with its dtype set, under the key that it uses already. */
export function withDtype(config: Config, dtype: FloatDType): Config {
  const key = "torch_dtype" in config && !("dtype" in config) ? "torch_dtype" : "dtype";
  return { ...config, [key]: dtype };
}

/** Formats that transformers loads. */
export type TransformersType = "nf4" | "fp4" | "int8";

/** Formats that weights can be quantised to: transformers', and codebooks that only this library reads. */
export const quantTypes = ["nf4", "fp4", "int8", "af4", "nf2", "nf3", "nf5", "nf6", "nf7", "dynamic"] as const;

export type StoredQuantType = (typeof quantTypes)[number];

export function isTransformersType(quantType: StoredQuantType): quantType is TransformersType {
  return quantType === "nf4" || quantType === "fp4" || quantType === "int8";
}

/** What `quantization_config` says of a bitsandbytes model. */
export interface QuantizationConfig {
  readonly quantType: TransformersType;
  readonly doubleQuant: boolean;
  readonly computeDtype: FloatDType;
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

/**
 * The config of a model in a format that transformers does not know, under a name that it refuses; "blockwise" where
 * each weight's own state says what it is in.
 */
export function withOwnQuantization(
  config: Config,
  quantType: StoredQuantType | "blockwise",
  blocksize?: number,
): Config {
  const method = { quant_method: "bunsandbytes", quant_type: quantType };
  return { ...config, quantization_config: { ...(blocksize !== undefined && { blocksize }), ...method } };
}

/** The config without what says how weights are quantised: transformers' key, and MLX's. */
export function withoutQuantization(config: Config): Config {
  const { quantization_config: _, quantization, ...rest } = config;
  return quantization === undefined || isObject(quantization) ? rest : { ...rest, quantization };
}

/** How a config says that its weights are quantised: bitsandbytes' format, or the name of another method. */
export function quantMethod(config: Config | undefined): string | undefined {
  const said = config?.quantization_config ?? config?.quantization;
  if (!isObject(said) || Object.keys(said).length === 0) return undefined;
  const { quant_method: method, load_in_4bit: in4, load_in_8bit: in8 } = said;
  if (method === undefined && "bits" in said && "group_size" in said) return "mlx";
  if (method === "bunsandbytes") return "blockwise";
  if (method !== undefined && method !== "bitsandbytes") return String(method);
  if (in8 === true) return "int8";
  if (in4 === false || (method === undefined && in4 !== true)) return undefined;
  return String(said.bnb_4bit_quant_type ?? "fp4");
}

/** Whether weights are stored as codes of some other method's: as integers, or floats of 8 bits or less. */
export function hasForeignCodes(tensors: Iterable<TensorShape>): boolean {
  const floats = [...Object.values(floatDtypes), "F64"] as string[];
  return [...tensors].some(({ name, dtype }) => /(^|[._])q?weight[^.]*$/.test(name) && !floats.includes(dtype));
}

// ── Which modules ───────────────────────────────────────────────────────────────────────────────────────────────────

/** As much of a tensor as the choice depends on. */
export interface TensorShape {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
}

export interface Choice {
  /** Names of the weights to quantise. */
  readonly weights: ReadonlySet<string>;
  /** Those among them that the file holds by columns, as GPT-2's kin do: transformers transposes them first. */
  readonly transposed: ReadonlySet<string>;
  /** Names of matrices that stay, with why. */
  readonly kept: ReadonlyMap<string, string>;
  /** What `llm_int8_skip_modules` must say so that transformers makes the same choice. */
  readonly skipModules: readonly string[] | undefined;
}

/**
 * Chooses the weights to quantise as transformers does by default: those of `nn.Linear` and of its `Conv1D`, except the
 * output head, the last module, and what shares a weight. A file has no classes, so what transformers makes of each
 * module is data for the models that it knows, and a guess by names and shapes for others.
 *
 * @param skip more modules to leave alone, by transformers' rule: a pattern matches a module from its start to a dot,
 *   as a regular expression, or is the end of its name
 * @throws BnbError for a model of an unknown type whose weights are transposed
 */
export function chooseModules(
  tensors: Iterable<TensorShape>,
  config: Config | undefined,
  skip: readonly string[] = [],
): Choice {
  const all = new Map(Array.from(tensors, (tensor) => [tensor.name, tensor]));
  const kind = kindOf(config);
  const verdicts = judge(shapesOf(all.values()), kind);
  const patterns = skip.length > 0 ? [...new Set(["lm_head", ...skip])] : [];
  const isSkipped = patterns.map(modulePattern);
  const weights = new Set<string>();
  const transposed = new Set<string>();
  const kept = new Map<string, string>();
  const named: string[] = [];
  for (const [module, verdict] of verdicts) {
    const name = `${module}.weight`;
    const { dtype } = all.get(name)!;
    if (isHead(verdict)) named.push(module);
    if (!isReplaced(verdict)) kept.set(name, sentenceOf(verdict));
    else if (isSkipped.some((skips) => skips(module))) kept.set(name, "skipped");
    else if (!(Object.values(floatDtypes) as string[]).includes(dtype)) kept.set(name, `stored as ${dtype}`);
    else weights.add(name);
    if (verdict === "Conv1D" && weights.has(name)) transposed.add(name);
  }
  if (transposed.size > 0 && !isKnown(kind)) {
    const type = kind.type ?? "a model without a model_type";
    const what = `${type}: its weights, such as ${[...transposed][0]}, are stored by columns`;
    throw new BnbError(`${what}, which is undone only for the types that transformers knows.`, "unsupported");
  }
  const heads = knownOf(kind).find(({ skips }) => skips)?.skips ?? named;
  const skipModules = skip.length > 0 ? [...new Set([...heads, ...patterns])].sort() : undefined;
  return { weights, transposed, kept, skipModules };
}

const shapesOf = (tensors: Iterable<TensorShape>) => new Map(Array.from(tensors, ({ name, shape }) => [name, shape]));

/** A model's type, its class, and the types of its parts. */
export function kindOf(config: Config | undefined): Kind {
  const text = (value: PyValue | undefined) => (typeof value === "string" && value !== "" ? value : undefined);
  const parts = new Set<string>();
  const walk = (value: PyValue | undefined) => {
    if (value === null || typeof value !== "object" || Array.isArray(value)) return;
    for (const [key, inner] of Object.entries(value as Config)) {
      if (key === "model_type" && text(inner)) parts.add(inner as string);
      else walk(inner);
    }
  };
  walk(config);
  const type = text(config?.model_type);
  if (type) parts.delete(type);
  const [architecture] = Array.isArray(config?.architectures) ? (config.architectures as PyValue[]) : [];
  return { type, architecture: text(architecture), parts: [...parts] };
}

/**
 * Tensors as a model has them before it is quantised: a quantised weight under its own name and shape, without its
 * parts.
 */
export function originalShapes({ tensors, quantized }: Pick<Checkpoint, "tensors" | "quantized">): TensorShape[] {
  const parts = new Set([...quantized.values()].flatMap((weight) => weight.parts.map((part) => part.name)));
  const weights = Array.from(quantized.values(), (weight) => ({
    name: weight.name,
    dtype: "F32" as const,
    shape: weight.format === "int8" ? weight.codes.shape : weight.state.shape,
  }));
  return [...[...tensors.values()].filter(({ name }) => !parts.has(name)), ...weights];
}

/** Whether a model's own file, the one that is not quantised, has a weight by columns. */
export function storedByColumns(
  checkpoint: Pick<Checkpoint, "tensors" | "quantized">,
  config: Config | undefined,
): (weight: string) => boolean {
  const kind = kindOf(config);
  if (!isKnown(kind)) return () => false;
  const verdicts = judge(shapesOf(originalShapes(checkpoint)), kind);
  return (weight) => verdicts.get(weight.slice(0, -".weight".length)) === "Conv1D";
}

/** Whether transformers keeps a tensor in float32 when a model gets another dtype. */
export function staysFloat32(config: Config | undefined): (name: string, dtype: FloatDType) => boolean {
  const known = knownOf(kindOf(config));
  const patterns = (key: "float32" | "float32Always") =>
    [...new Set(known.flatMap((one) => one[key] ?? []))].map((part) => new RegExp(part.replaceAll("*", ".*")));
  const [half, always] = [patterns("float32"), patterns("float32Always")];
  return (name, dtype) =>
    dtype !== "float32" && [...(dtype === "float16" ? half : []), ...always].some((pattern) => pattern.test(name));
}

/**
 * What transformers would not find as it expects: a sentence for each kind of fault in a checkpoint that it is to load,
 * for it makes its choice of modules again from config.json.
 *
 * @param quantized names of the weights that are stored quantised
 */
export function checkChoice(
  tensors: Iterable<TensorShape>,
  config: Config | undefined,
  quantized: ReadonlySet<string>,
): string[] {
  const kind = kindOf(config);
  if (!isKnown(kind)) return [];
  const listed = Object(config?.quantization_config).llm_int8_skip_modules as PyValue | undefined;
  const skips = Array.isArray(listed) ? listed.map(String) : undefined;
  const isSkipped = (skips ?? []).map(modulePattern);
  const matched = (module: string) => isSkipped.some((matches) => matches(module));
  const headsListed = knownOf(kind).some((known) => known.skips?.every((head) => skips?.includes(head)));
  const wrong: string[] = [];
  const missing: string[] = [];
  for (const [module, verdict] of judge(shapesOf(tensors), kind)) {
    const name = `${module}.weight`;
    const stays = isHead(verdict) ? skips === undefined || headsListed || matched(module) : !isReplaced(verdict);
    const expected = !stays && !matched(module);
    if (quantized.has(name) && !expected) wrong.push(`${name} (${stays ? sentenceOf(verdict) : "skipped"})`);
    if (!quantized.has(name) && expected) missing.push(name);
  }
  const some = (names: string[]) => `${names[0]}${names.length > 1 ? ` and ${names.length - 1} more` : ""}`;
  return [
    ...(wrong.length > 0
      ? [`Quantised, but not in transformers, which would refuse or misread it: ${some(wrong)}.`]
      : []),
    ...(missing.length > 0 ? [`Not quantised, but transformers expects it to be: ${some(missing)}.`] : []),
  ];
}
