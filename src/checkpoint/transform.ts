// Owns the three ways to make a checkpoint from another: quantise it, dequantise it, convert it from GGUF.
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import type { ScalesOptions } from "../quantize.ts";
import { type Checkpoint, openCheckpoint, type Step, type WriteOptions, writeCheckpoint } from "./checkpoint.ts";
import { openGguf } from "./gguf.ts";
import { tokenizerFiles } from "./gguf_tokenizer.ts";
import {
  type Choice,
  type Config,
  chooseModules,
  configDtype,
  hasForeignCodes,
  isTransformersType,
  kindOf,
  quantMethod,
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
import { isKnown, transformersVersion } from "./modules.ts";
import { intoDirectory } from "./output.ts";
import type { OutputOptions } from "./plan.ts";
import { writeText } from "./staging.ts";
import { floatDtypes, type StorageDtype } from "./state.ts";
import {
  castStep,
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
import { specBytes, type TensorSpec } from "./writer.ts";

/** Options of every function that writes a model from another. */
export interface TransformOptions extends OutputOptions {
  /** The dtype of what is not quantised, and of weights before they are; by default what the model says. */
  readonly dtype?: FloatDType | undefined;
  /** Begin another shard before one grows above this many bytes; 50 GB by default. */
  readonly shardBytes?: number | undefined;
  /** Called when a tensor has been written. */
  readonly onProgress?: ((progress: Progress) => void) | undefined;
}

/** Options of {@link quantizeCheckpoint} and {@link convertGguf}, under transformers' names. */
export interface QuantizeOptions extends TransformOptions {
  /**
   * `"nf4"` by default. transformers loads that, `"fp4"`, and `"int8"`, which is LLM.int8(), a scale a row; only this library
   * the others: AF4, normal float of 2, 3, 5, 6 and 7 bits, and the dynamic map of 8.
   */
  readonly quantType?: StoredQuantType;
  /** Of all but `"int8"`, as the next three are: 64 by default. */
  readonly blocksize?: number;
  readonly doubleQuant?: boolean;
  /** How the scales are found; `"absmax"`, as bitsandbytes does, by default. */
  readonly scales?: ScalesOptions["scales"];
  readonly quantStorage?: StorageDtype;
  /** More modules to leave alone, by transformers' rule for `llm_int8_skip_modules`. */
  readonly skip?: readonly string[];
}

/** How far a transformation is. */
export interface Progress {
  readonly tensor: string;
  readonly tensors: number;
  readonly tensorsTotal: number;
  readonly inputBytes: number;
  readonly inputBytesTotal: number;
}

/** What was done. */
export interface TransformReport {
  readonly output: string;
  /** Weights that were quantised, or dequantised. */
  readonly weights: number;
  /** Tensors that were written as they are, or in another float dtype. */
  readonly kept: number;
  readonly inputBytes: number;
  readonly outputBytes: number;
  /** Files that came along, relative to the directory. */
  readonly carried: readonly string[];
  /** What a person should know. */
  readonly notes: readonly string[];
  /** Of {@link quantizeCheckpoint}: why each tensor that stays does, by its name. */
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
    if (!choice.weights.has(name)) return keepStep(tensor, to);
    const source = fromSafetensors(tensor);
    return quantizeStep(choice.transposed.has(name) ? transposedSource(source) : source, to, options);
  });
  const plain = config && withDtype(withoutQuantization(config), wanted);
  const written = plain && quantizedConfig(plain, wanted, choice, options);
  const stays = Object.fromEntries(
    [...checkpoint.tensors.keys()]
      .filter((name) => !choice.weights.has(name))
      .map((name) => [name, whyStays(name, choice, isWide(name, wanted))]),
  );
  const notes = [...(config ? [] : [noConfig(input)]), ...leftover, ...typeNotes(config), ...expertNotes(choice)];
  const report = await write(checkpoint, steps, written, choice.weights.size, notes, options);
  const wide = steps.filter(({ specs }) => specs.length === 1);
  return { ...report, notes: [...report.notes, ...sizeNotes(report, wide), ...formatNotes(options)], stays };
}

/** Why a model shrank less than one would expect of 4 bits, and what helps. */
function sizeNotes({ inputBytes, outputBytes }: TransformReport, kept: readonly Step[]): string[] {
  const specs = kept.flatMap((step) => step.specs);
  const bytesOf = (some: readonly TensorSpec[]) => some.reduce((sum, spec) => sum + specBytes(spec), 0);
  const stay = bytesOf(specs);
  if (inputBytes >= 2.5 * outputBytes || 2 * stay < outputBytes) return [];
  const wide = bytesOf(specs.filter(({ dtype }) => dtype === "F32"));
  const share = `${Math.round((100 * stay) / outputBytes)} % of the result are tensors that stay floats`;
  const what = `The model shrank by ${(inputBytes / outputBytes).toFixed(1)} only: ${share}, as in transformers`;
  if (2 * wide < stay) return [`${what}; --json says why each does.`];
  return [`${what}, in float32: --dtype bfloat16 makes these half as large.`];
}

function formatNotes({ quantType = "nf4" }: QuantizeOptions): string[] {
  if (isTransformersType(quantType)) return [];
  return [`transformers and bitsandbytes have no format ${quantType}: only this library reads the result.`];
}

function nothingToDo(input: string, { kept }: Choice): BnbError {
  const [first] = [...kept].filter(([, why]) => !why.startsWith("an embedding") && !why.startsWith("the output head"));
  const why = first ? `: ${first[0]} and its like are kept (${first[1]})` : "";
  return new BnbError(`${input} has no Linear weights to quantise${why}.`);
}

/** @returns what a person should know @throws BnbError for an adapter, or a model that is quantised */
function checkPlain(input: string, checkpoint: Checkpoint, config: Config | undefined): string[] {
  const names = [...checkpoint.tensors.keys()];
  if (names.length > 0 && names.every((name) => /\.(lora_|modules_to_save\.)/.test(name)))
    throw new BnbError(
      `${input} is an adapter, not a model; merge it into its base (\`bunsandbytes merge BASE ADAPTER --output DIR\`).`,
    );
  const says = quantMethod(config);
  const stored = [...checkpoint.quantized.values()][0]?.format;
  if (stored !== undefined || (says !== undefined && hasForeignCodes(checkpoint.tensors.values())))
    throw new BnbError(`${input} is quantised already (${stored ?? says}); dequantise it first, or take the original.`);
  if (says === undefined) return [];
  return [
    `config.json said that weights are quantised (${says}), but none is: they were floats, and are quantised now.`,
  ];
}

function whyStays(name: string, { kept }: Choice, isWide: boolean): string {
  const why = kept.get(name) ?? "not a matrix of a linear layer";
  return isWide ? `${why}; in float32, as in transformers` : why;
}

/**
 * Writes a bitsandbytes checkpoint's weights out as floats.
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
  using checkpoint = openCheckpoint(input);
  const config = readConfig(checkpoint.directory);
  const stored = checkpoint.quantized;
  if (stored.size === 0) throw new BnbError(`${input} holds no bitsandbytes weights; there is nothing to dequantise.`);
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
 * Makes a Hugging Face model of a GGUF file, or of the parts of a split one: its weights as floats (bfloat16 by default),
 * or quantised where `quantType` is given, which has no default here; its tokenizer rebuilt from the file's metadata.
 *
 * @example
 * ```ts
 * const report = await checkpoint.convertGguf("./model.gguf", { output: "./converted", quantType: "nf4" });
 * report.weights; // → 7
 * ```
 */
export async function convertGguf(input: string, options: QuantizeOptions): Promise<TransformReport> {
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
  return await write(model, steps, config, choice?.weights.size ?? 0, notes, options, tokenizer.files);
}

function quantizeStep(source: Source, dtype: FloatDType | undefined, options: QuantizeOptions): Step {
  const { quantType = "nf4", blocksize = 64, doubleQuant = false, quantStorage: storage = "uint8" } = options;
  const { scales = "absmax" } = options;
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

function noConfig(input: string): string {
  return `There is no config.json beside ${input}, so none was written: transformers needs one to load the result.`;
}

function expertNotes({ kept }: Choice): string[] {
  const experts = [...kept.keys()].filter((name) => /\.experts\.\d+\./.test(name)).length;
  return experts === 0 ? [] : [`${experts} expert matrices stay as they are, as in transformers 5, which fuses them.`];
}

function typeNotes(config: Config | undefined): string[] {
  const kind = kindOf(config);
  if (!config || isKnown(kind)) return [];
  const what = kind.type
    ? `transformers ${transformersVersion} has no type ${kind.type}`
    : "config.json has no model_type";
  return [`${what}: the choice of modules is a guess by names and shapes, and transformers may make another.`];
}

async function write(
  source: { readonly path: string },
  steps: Step[],
  config: Config | undefined,
  weights: number,
  notes: readonly string[],
  options: TransformOptions,
  texts: ReadonlyMap<string, string> = new Map(),
): Promise<TransformReport> {
  const inputBytes = steps.reduce((sum, step) => sum + step.inputBytes, 0);
  const bytes = steps.reduce((sum, { specs }) => sum + specs.reduce((all, spec) => all + specBytes(spec), 0), 0);
  const { notes: found, ...written } = await intoDirectory(
    options,
    { input: source.path, bytes },
    async (directory) => {
      await writeCheckpoint(directory, steps, writeOptions(steps.length, inputBytes, options));
      const outputBytes = bytesIn(directory);
      if (config) writeConfig(directory, config);
      for (const [name, text] of texts) writeText(join(directory, name), text);
      return { outputBytes };
    },
  );
  const kept = steps.length - weights;
  return { output: options.output, weights, kept, inputBytes, ...written, notes: [...notes, ...found] };
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
