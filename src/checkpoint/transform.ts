// The four ways to make a checkpoint from another: quantise it, dequantise it, merge an adapter into it, convert
// it from GGUF.

import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import type { ScalesOptions } from "../quantize.ts";
import { openAdapter } from "./adapter.ts";
import {
  checkPlain,
  expertNotes,
  formatNotes,
  noConfig,
  nothingToDo,
  rangeNotes,
  sizeNotes,
  typeNotes,
  whyStays,
} from "./advice.ts";
import { checkPath, checkQuantize, checkTransform, signatures } from "./arguments.ts";
import { openCheckpoint, type Step, type WriteOptions, writeCheckpoint } from "./checkpoint.ts";
import { openGguf } from "./gguf.ts";
import { tokenizerFiles } from "./gguf_tokenizer.ts";
import {
  type Choice,
  type Config,
  chooseModules,
  configDtype,
  isTransformersType,
  readConfig,
  type StoredQuantType,
  staysFloat32,
  storedByColumns,
  withDtype,
  withOwnQuantization,
  withoutQuantization,
  withQuantization,
  writeConfig,
} from "./huggingface.ts";
import { Merging } from "./merge.ts";
import { intoDirectory } from "./output.ts";
import type { OutputOptions } from "./plan.ts";
import { writeText } from "./staging.ts";
import { floatDtypes, isOurs, type StorageDtype, type Stored } from "./state.ts";
import {
  castStep,
  copyStep,
  floatDtypeOf,
  fromGguf,
  fromSafetensors,
  fromStored,
  keepStep,
  quantizeBlockwiseStep,
  quantizeInt8Step,
  type Source,
  transposedSource,
} from "./steps.ts";
import { specBytes } from "./writer.ts";

/** Options of every function that writes one model from another. */
export interface TransformOptions extends OutputOptions {
  /** The dtype of what is not quantised, and of weights before they are quantised; by default the model's own. */
  readonly dtype?: FloatDType | undefined;
  /** The most bytes of a shard; 50 GB by default. */
  readonly shardBytes?: number | undefined;
  /** Called when a tensor has been written. */
  readonly onProgress?: ((progress: Progress) => void) | undefined;
}

/** Options of {@link quantizeCheckpoint} and {@link convertGguf}, under transformers' names. */
export interface QuantizeOptions extends TransformOptions {
  /**
   * `"nf4"` by default. transformers loads `"nf4"`, `"fp4"` and `"int8"` (LLM.int8(), with one scale a row). Only this
   * library loads the others: AF4, normal float of 2, 3, 5, 6 and 7 bits, and the 8-bit dynamic map.
   */
  readonly quantType?: StoredQuantType;
  /** Elements that share a scale; 64 by default. This and the next three options do not apply to `"int8"`. */
  readonly blocksize?: number;
  readonly doubleQuant?: boolean;
  /** How the scales are found; `"absmax"`, as bitsandbytes does, by default. */
  readonly scales?: ScalesOptions["scales"];
  readonly quantStorage?: StorageDtype;
  /** Further modules that are not to be quantised, by transformers' rule for `llm_int8_skip_modules`. */
  readonly skip?: readonly string[];
}

/** How far a transformation has come. */
export interface Progress {
  readonly tensor: string;
  readonly tensors: number;
  readonly tensorsTotal: number;
  readonly inputBytes: number;
  readonly inputBytesTotal: number;
}

/** What a transformation has done. */
export interface TransformReport {
  readonly output: string;
  /** Weights that were quantised, or dequantised. */
  readonly weights: number;
  /** Tensors that were written as they are, or in another float dtype. */
  readonly kept: number;
  readonly inputBytes: number;
  readonly outputBytes: number;
  /** Other files that were copied, relative to the directory. */
  readonly carried: readonly string[];
  /** What a person should know. */
  readonly notes: readonly string[];
  /** From {@link quantizeCheckpoint}: for each tensor that was not quantised, by name, why. */
  readonly stays?: Readonly<Record<string, string>>;
}

/**
 * Quantises a model's Linear weights, as transformers does with a `BitsAndBytesConfig` and `save_pretrained`.
 *
 * @example
 * ```ts
 * const report = await checkpoint.quantizeCheckpoint("./model", {
 *   output: "./quantised",
 *   doubleQuant: true,
 *   skip: ["down_proj"],
 * });
 * report.weights; // → 6
 * ```
 *
 * @param input a directory, a safetensors file, or an index
 * @throws BnbError if the model is quantised already, or cannot be read; nothing is left at the output then
 */
export async function quantizeCheckpoint(input: string, options: QuantizeOptions): Promise<TransformReport> {
  checkPath(signatures.quantizeCheckpoint, input, "input");
  checkQuantize(signatures.quantizeCheckpoint, options);
  return await quantizeWith(input, options);
}

/** @param merging an adapter whose share each tensor gets before it is quantised */
async function quantizeWith(input: string, options: QuantizeOptions, merging?: Merging): Promise<TransformReport> {
  using checkpoint = openCheckpoint(input);
  const config = readConfig(checkpoint.directory);
  const leftover = checkPlain(input, checkpoint, config);
  const dtype = options.dtype ?? configDtype(config);
  const choice = chooseModules(checkpoint.tensors.values(), config, options.skip);
  if (choice.weights.size === 0) throw nothingToDo(input, choice);
  const stored = [...checkpoint.tensors.values()].map((tensor) => floatDtypeOf(tensor.dtype)).find(Boolean)!;
  const wanted = dtype ?? stored;
  const isWide = staysFloat32(config);
  const steps = Array.from(checkpoint.tensors.values(), (tensor) => {
    const { name } = tensor;
    const to = isWide(name, wanted) ? "float32" : dtype;
    const merged = merging && floatDtypeOf(tensor.dtype) && merging.merged(fromSafetensors(tensor), false);
    if (!choice.weights.has(name)) return merged ? castStep(merged, to ?? merged.dtype) : keepStep(tensor, to);
    const source = merged ?? fromSafetensors(tensor);
    return quantizeStep(choice.transposed.has(name) ? transposedSource(source) : source, to, options);
  });
  if (merging) steps.push(...merging.rest().map((source) => castStep(source, dtype ?? source.dtype)));
  merging?.checkAllTaken();
  const plain = config && withDtype(withoutQuantization(config), wanted);
  const written = plain && quantizedConfig(plain, wanted, choice, options);
  const stays = Object.fromEntries(
    steps
      .filter(({ name }) => !choice.weights.has(name) && checkpoint.tensors.has(name))
      .map((step) => [step.name, whyStays(step, choice, isWide(step.name, wanted))]),
  );
  const notes = [...(config ? [] : [noConfig(input)]), ...leftover, ...typeNotes(config), ...expertNotes(choice)];
  const report = await write(checkpoint, steps, written, choice.weights.size, notes, options);
  const wide = steps.filter(({ specs }) => specs.length === 1);
  return { ...report, notes: [...report.notes, ...sizeNotes(report, wide), ...formatNotes(options)], stays };
}

/**
 * Writes a copy of a quantised checkpoint (of bitsandbytes, MLX, GPTQ or AWQ) whose weights are floats.
 *
 * @example
 * ```ts
 * const report = await checkpoint.dequantizeCheckpoint("./model-nf4", { output: "./floats", dtype: "bfloat16" });
 * report.weights; // → 7
 * ```
 *
 * @throws BnbError naming the key, if a quantisation state is missing, foreign or damaged
 */
export async function dequantizeCheckpoint(input: string, options: TransformOptions): Promise<TransformReport> {
  checkPath(signatures.dequantizeCheckpoint, input, "input");
  checkTransform(signatures.dequantizeCheckpoint, options);
  using checkpoint = openCheckpoint(input);
  const config = readConfig(checkpoint.directory);
  const stored = checkpoint.quantized;
  if (stored.size === 0) throw new BnbError(`${input} holds no quantised weights; there is nothing to dequantise.`);
  const parts = new Set([...stored.values()].flatMap((weight) => weight.parts.map((part) => part.name)));
  // transformers dequantises int8 weights, which keep no record of their dtype, to the model's.
  const isColumns = storedByColumns(checkpoint, config);
  const isWide = staysFloat32(config);
  const sources = Array.from(stored.values(), (weight) => {
    const source = fromStored(weight, options.dtype ?? (weight.format === "int8" ? configDtype(config) : undefined));
    return isColumns(weight.name) ? transposedSource(source) : source;
  });
  const kept = [...checkpoint.tensors.values()].filter((tensor) => !parts.has(tensor.name));
  const steps = [
    ...sources.map((source) => castStep(source, source.dtype)),
    ...kept.map((tensor) =>
      keepStep(tensor, options.dtype && isWide(tensor.name, options.dtype) ? "float32" : options.dtype),
    ),
  ];
  const plain = config && withoutQuantization(config);
  const written = plain && (options.dtype ? withDtype(plain, options.dtype) : plain);
  return await write(checkpoint, steps, written, stored.size, config ? [] : [noConfig(input)], options);
}

/**
 * Merges a PEFT adapter into its base model. A dense model stays dense, or is quantised if `quantType` is given; a
 * quantised one is quantised again in its own format. Supported are LoRA with ranks and alphas by pattern, rsLoRA,
 * DoRA, biases, embeddings, and modules that are saved whole.
 *
 * @example
 * ```ts
 * using layer = nn.Lora.init(new nn.Linear4bit(Tensor.zeros([128, 64])), { r: 4, alpha: 8 });
 * await checkpoint.saveAdapter({ "model.layers.0.mlp.up_proj": layer }, { output: "./adapter" });
 * const report = await checkpoint.mergeAdapter("./model", "./adapter", { output: "./merged" });
 * report.weights; // → 1
 * ```
 *
 * @throws BnbError naming an option of adapter_config.json that is not supported, or a part of the adapter that fits no
 * weight
 */
export async function mergeAdapter(base: string, adapter: string, options: QuantizeOptions): Promise<TransformReport> {
  checkPath(signatures.mergeAdapter, base, "base");
  checkPath(signatures.mergeAdapter, adapter, "adapter");
  checkQuantize(signatures.mergeAdapter, options);
  using opened = openAdapter(adapter);
  const merging = new Merging(opened);
  if (options.quantType !== undefined) return await quantizeWith(base, options, merging);
  using checkpoint = openCheckpoint(base);
  const config = readConfig(checkpoint.directory);
  const parts = new Set([...checkpoint.quantized.values()].flatMap((weight) => weight.parts.map((part) => part.name)));
  const isWide = staysFloat32(config);
  let weights = 0;
  const quantized = [...checkpoint.quantized.values()].flatMap((stored) => {
    const merged = merging.merged(fromStored(stored, configDtype(config)), true);
    if (!merged) return stored.parts.map(copyStep);
    weights++;
    return [againStep(stored, merged)];
  });
  const plain = [...checkpoint.tensors.values()].filter((tensor) => !parts.has(tensor.name));
  const dense = plain.map((tensor) => {
    const to = options.dtype && isWide(tensor.name, options.dtype) ? "float32" : options.dtype;
    const merged = floatDtypeOf(tensor.dtype) && merging.merged(fromSafetensors(tensor), false);
    if (!merged) return keepStep(tensor, to);
    weights++;
    return castStep(merged, to ?? merged.dtype);
  });
  const rest = merging.rest().map((source) => castStep(source, options.dtype ?? source.dtype));
  merging.checkAllTaken();
  const written = config && (options.dtype ? withDtype(config, options.dtype) : config);
  const notes = config ? [] : [noConfig(base)];
  return await write(checkpoint, [...quantized, ...dense, ...rest], written, weights, notes, options);
}

/** Quantises a weight as it was before. @throws BnbError for a codebook of its own */
function againStep(stored: Stored, source: Source): Step {
  if (stored.format === "int8") return quantizeInt8Step(source, source.dtype);
  if (stored.format === "blockwise" || !isOurs(stored)) {
    const whose = stored.format === "blockwise" ? "of this library's" : `of ${stored.format}'s`;
    throw new BnbError(`${stored.name} is in a format ${whose}; dequantise the model, and merge with --quant-type.`);
  }
  const { blocksize, nested } = stored.state;
  const options = { quantType: stored.format, blocksize, doubleQuant: nested !== undefined };
  return quantizeBlockwiseStep(source, source.dtype, { ...options, scales: "absmax", storage: "uint8" });
}

/**
 * Converts a GGUF file, or all parts of a split one, to a Hugging Face model. Weights become floats (bfloat16 by
 * default), or are quantised if `quantType` is given, which has no default here. The tokenizer is rebuilt from the
 * file's metadata.
 *
 * @example
 * ```ts
 * const report = await checkpoint.convertGguf("./model.gguf", { output: "./converted", quantType: "nf4" });
 * report.weights; // → 7
 * ```
 */
export async function convertGguf(input: string, options: QuantizeOptions): Promise<TransformReport> {
  checkPath(signatures.convertGguf, input, "input");
  checkQuantize(signatures.convertGguf, options);
  using model = await openGguf(input);
  const { quantType, dtype = "bfloat16" } = options;
  const sources = model.tensors.map((tensor) => fromGguf(tensor, dtype));
  const shapes = sources.map(({ name, shape }) => ({ name, shape, dtype: floatDtypes[dtype] }));
  const choice = quantType && chooseModules(shapes, model.config, options.skip);
  const steps = sources.map((source) =>
    choice?.weights.has(source.name) ? quantizeStep(source, dtype, options) : castStep(source, dtype),
  );
  const plain = withDtype(model.config, dtype);
  const config = choice ? quantizedConfig(plain, dtype, choice, options) : plain;
  const tokenizer = tokenizerFiles(input, model.metadata);
  const notes = [...model.notes, ...tokenizer.notes];
  return await write(model, steps, config, choice?.weights.size ?? 0, notes, options, { texts: tokenizer.files });
}

function quantizeStep(source: Source, dtype: FloatDType | undefined, options: QuantizeOptions): Step {
  const { quantType = "nf4", blocksize = 64, doubleQuant = false, quantStorage: storage = "uint8" } = options;
  const { scales = "absmax" } = options;
  if (blocksize === 16 && isTransformersType(quantType))
    throw new BnbError(
      `blocksize is 16, and bitsandbytes has blocks of 32 to 4096 for ${quantType}; --quant-type af4 has.`,
    );
  if (quantType !== "int8")
    return quantizeBlockwiseStep(source, dtype ?? source.dtype, { quantType, blocksize, doubleQuant, scales, storage });
  if (doubleQuant || blocksize !== 64 || scales !== "absmax" || storage !== "uint8")
    throw new BnbError(
      "int8 weights have one scale a row: block size, double quantisation, scales and storage are for codebooks.",
    );
  return quantizeInt8Step(source, dtype ?? source.dtype);
}

function quantizedConfig(config: Config, dtype: FloatDType, choice: Choice, options: QuantizeOptions): Config {
  const { quantType = "nf4", blocksize = 64, doubleQuant = false, quantStorage: storage = "uint8" } = options;
  const { skipModules } = choice;
  if (!isTransformersType(quantType)) return withOwnQuantization(config, quantType, blocksize);
  const computeDtype = quantType === "int8" ? "float32" : dtype; // of 4-bit layers: float32 is transformers' default
  return withQuantization(config, { quantType, doubleQuant, computeDtype, storage, skipModules });
}

/** What else is written: texts by the names of their files, and metadata of the weights' files. */
interface Beside {
  readonly texts?: ReadonlyMap<string, string>;
  readonly metadata?: Readonly<Record<string, string>>;
}

/** @internal Writes a model's folder, and says what was done. */
export async function write(
  source: { readonly path: string },
  steps: Step[],
  config: Config | undefined,
  weights: number,
  notes: readonly string[],
  options: TransformOptions,
  { texts = new Map(), metadata }: Beside = {},
): Promise<TransformReport> {
  const inputBytes = steps.reduce((sum, step) => sum + step.inputBytes, 0);
  const bytes = steps.reduce((sum, { specs }) => sum + specs.reduce((all, spec) => all + specBytes(spec), 0), 0);
  const { notes: found, ...written } = await intoDirectory(
    options,
    { input: source.path, bytes },
    async (directory) => {
      await writeCheckpoint(directory, steps, { ...writeOptions(steps.length, inputBytes, options), metadata });
      const outputBytes = bytesIn(directory);
      if (config) writeConfig(directory, config);
      for (const [name, text] of texts) writeText(join(directory, name), text);
      return { outputBytes };
    },
  );
  const kept = steps.length - weights;
  const all = [...notes, ...rangeNotes(steps), ...found];
  return { output: options.output, weights, kept, inputBytes, ...written, notes: all };
}

function writeOptions(tensorsTotal: number, inputBytesTotal: number, options: TransformOptions): WriteOptions {
  let tensors = 0;
  let inputBytes = 0;
  const onStep = (step: Step) => {
    tensors++;
    inputBytes += step.inputBytes;
    options.onProgress?.({ tensor: step.name, tensors, tensorsTotal, inputBytes, inputBytesTotal });
  };
  return options.shardBytes === undefined ? { onStep } : { onStep, shardBytes: options.shardBytes };
}

function bytesIn(directory: string): number {
  return readdirSync(directory).reduce((sum, name) => sum + statSync(join(directory, name)).size, 0);
}
