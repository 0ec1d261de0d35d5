// Looks at checkpoints: what each weight is stored as, costs and lost, and whether all is sound.

import { type Comparison, compare } from "../compare.ts";
import { BnbError } from "../error.ts";
import { checkInspect, checkPath, signatures } from "./arguments.ts";
import { type Checkpoint, openCheckpoint } from "./checkpoint.ts";
import { type GgufModel, openGguf } from "./gguf.ts";
import { checkChoice, originalShapes, quantMethod, readConfig, storedByColumns } from "./huggingface.ts";
import { type Pieces, runLength } from "./pieces.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import { isOurs, type Stored } from "./state.ts";
import { floatDtypeOf, fromGguf, fromSafetensors, fromStored, type Source, transposedSource } from "./steps.ts";

/** One weight of a model, as it is stored. */
export interface WeightReport {
  readonly name: string;
  readonly shape: readonly number[];
  /**
   * `nf4`, `fp4`, `int8`; else the dtype, or GGML's type. A block size other than 64 and nested scales are named too.
   */
  readonly format: string;
  readonly bytes: number;
  /** Of all that belongs to it: codes, scales, codebooks. */
  readonly bitsPerWeight: number;
  /** Present where an original was given and the weight differs in format. */
  readonly error?: WeightError;
}

/** How far a stored weight is from the original. */
export interface WeightError {
  /** Root mean square of the difference, over that of the original. */
  readonly relative: number;
  /** The largest difference. */
  readonly largest: number;
}

/** Options of {@link inspectCheckpoint}. */
export interface InspectOptions {
  /** The model before it was quantised: a directory, a safetensors file, or a GGUF file. */
  readonly errorAgainst?: string | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** A weight with what it takes to describe it and to load it. */
interface Entry {
  readonly report: WeightReport;
  readonly source: Source | undefined;
  /** The weight as it is stored, if it holds floats. */
  readonly pieces: Pieces | undefined;
}

interface Opened extends Disposable {
  readonly entries: readonly Entry[];
}

/**
 * Describes every weight of a model. With `errorAgainst`, quantised weights come first, the least accurate on top.
 *
 * @example
 * ```ts
 * const [worst] = await checkpoint.inspectCheckpoint("./model-nf4", { errorAgainst: "./model" });
 * worst?.format; // → "nf4"
 * worst?.bitsPerWeight; // → 4.6
 * worst?.error?.relative; // → 0.1
 * ```
 *
 * @param path a directory, a safetensors file, or a GGUF file
 */
export async function inspectCheckpoint(path: string, options: InspectOptions = {}): Promise<WeightReport[]> {
  checkPath(signatures.inspectCheckpoint, path, "path");
  checkInspect(signatures.inspectCheckpoint, options);
  using opened = await open(path);
  const reports = opened.entries.map(({ report }) => report);
  if (options.errorAgainst === undefined) return reports;
  using original = await open(options.errorAgainst);
  const sources = new Map(original.entries.map(({ report, source }) => [report.name, source]));
  const changed = opened.entries.filter(({ source }) => source && sources.get(source.name)?.format !== source.format);
  const errors = new Map<string, WeightError>();
  for (const [done, { source }] of changed.entries()) {
    const before = sources.get(source!.name);
    if (before) errors.set(source!.name, errorOf(before, source!));
    options.onProgress?.(done + 1, changed.length);
    await new Promise(setImmediate);
  }
  if (errors.size === 0) {
    throw new BnbError(
      `${options.errorAgainst} has no weight that ${path} stores in another format: nothing to compare.`,
    );
  }
  return reports
    .map((report) => ({ ...report, ...(errors.has(report.name) && { error: errors.get(report.name)! }) }))
    .sort((a, b) => (b.error?.relative ?? -1) - (a.error?.relative ?? -1));
}

function errorOf(before: Source, after: Source): WeightError {
  if (String(before.shape) !== String(after.shape)) {
    const shapes = `[${after.shape.join(", ")}], but the original is [${before.shape.join(", ")}]`;
    throw new BnbError(`${after.name} is ${shapes}; compare with the model that it was made from.`);
  }
  const { rms, rmsError, maxError } = compareSources(before, after);
  return { relative: rms === 0 ? rmsError : rmsError / rms, largest: maxError };
}

/** A piece at a time, where both can be had so. */
function compareSources(before: Source, after: Source): Omit<Comparison, "nonFinite"> {
  if (!before.pieces || !after.pieces) {
    using a = before.load();
    using b = after.load();
    return compare(a, b);
  }
  const length = runLength(before.pieces, after.pieces);
  const others = after.pieces.runs(length)[Symbol.iterator]();
  let [elements, squares, errors, maxError] = [0, 0, 0, 0];
  for (const piece of before.pieces.runs(length)) {
    using a = piece;
    using b = others.next().value!;
    const found = compare(a, b);
    const finite = a.size - found.nonFinite;
    elements += finite;
    squares += found.rms ** 2 * finite;
    errors += found.rmsError ** 2 * finite;
    maxError = Math.max(maxError, found.maxError);
  }
  others.next(); // lets it give back what it holds
  const root = (sum: number) => Math.sqrt(sum / Math.max(1, elements));
  return { rms: root(squares), rmsError: root(errors), maxError };
}

async function open(path: string): Promise<Opened> {
  if (path.endsWith(".gguf")) return openedGguf(await openGguf(path));
  return openedCheckpoint(openCheckpoint(path));
}

function openedGguf(model: GgufModel): Opened {
  const entries = model.tensors.map((tensor) => {
    const source = fromGguf(tensor, "float32");
    const report = describe(tensor.name, tensor.shape, tensor.format, tensor.byteLength);
    return { source, report, pieces: source.pieces };
  });
  return { entries, [Symbol.dispose]: () => model[Symbol.dispose]() };
}

function openedCheckpoint(checkpoint: Checkpoint): Opened {
  const stored = checkpoint.quantized;
  const parts = new Set([...stored.values()].flatMap((weight) => weight.parts.map((part) => part.name)));
  const plain = [...checkpoint.tensors.values()].filter((tensor) => !parts.has(tensor.name));
  const isColumns = storedByColumns(checkpoint, readConfig(checkpoint.directory));
  const quantized = Array.from(stored.values(), (weight) => storedEntry(weight, isColumns(weight.name)));
  const entries = [...quantized, ...plain.map(plainEntry)];
  entries.sort((a, b) => Buffer.compare(Buffer.from(a.report.name), Buffer.from(b.report.name)));
  return { entries, [Symbol.dispose]: () => checkpoint.close() };
}

/** @param isColumns whether the original has the weight by columns, which it is compared with */
function storedEntry(weight: Stored, isColumns: boolean): Entry {
  const bytes = weight.parts.reduce((sum, part) => sum + part.byteLength, 0);
  const source = fromStored(weight, "float32");
  const report = describe(weight.name, source.shape, formatOf(weight), bytes);
  return { source: isColumns ? transposedSource(source) : source, report, pieces: source.pieces };
}

function plainEntry(tensor: SafetensorsTensor): Entry {
  const source = floatDtypeOf(tensor.dtype) && tensor.byteLength > 0 ? fromSafetensors(tensor) : undefined;
  const report = describe(tensor.name, tensor.shape, tensor.dtype, tensor.byteLength);
  return { source, report, pieces: source?.pieces };
}

function formatOf(weight: Stored): string {
  if (weight.format === "int8") return "int8";
  if (weight.format === "mlx") {
    const { mode, bits, blocksize } = weight.state;
    return mode === "affine" ? `mlx affine${bits}/${blocksize}` : `mlx ${mode}`;
  }
  if (!isOurs(weight)) {
    const { bits, blocksize } = weight.state;
    return `${weight.format} ${bits}-bit/${blocksize}`;
  }
  const { blocksize, nested } = weight.state;
  const format = weight.format === "blockwise" ? `${weight.state.bits}-bit` : weight.format;
  return `${format}${blocksize === 64 ? "" : `/${blocksize}`}${nested ? "+dq" : ""}`;
}

function describe(name: string, shape: readonly number[], format: string, bytes: number): WeightReport {
  const elements = shape.reduce((product, extent) => product * extent, 1);
  return { name, shape, format, bytes, bitsPerWeight: elements === 0 ? 0 : (8 * bytes) / elements };
}

/** What {@link verifyCheckpoint} found. */
export interface VerifyReport {
  /** The model's, a quantised weight as one. */
  readonly tensors: number;
  /** Quantised weights, by format. */
  readonly quantized: Readonly<Record<string, number>>;
  /** What is wrong, one sentence each; empty for a sound checkpoint. */
  readonly problems: readonly string[];
}

/**
 * Checks all of a checkpoint: the structure of every file, the index, every quantisation state against its tensors,
 * config.json against what is stored, and every weight (dequantised if necessary) for NaN and infinity.
 *
 * @example
 * ```ts
 * const { quantized, problems } = await checkpoint.verifyCheckpoint("./model-nf4");
 * quantized; // → { nf4: 7 }
 * problems; // → []
 * ```
 *
 * @throws BnbError if the checkpoint is too damaged to be opened
 */
export async function verifyCheckpoint(
  path: string,
  options: Pick<InspectOptions, "onProgress"> = {},
): Promise<VerifyReport> {
  checkPath(signatures.verifyCheckpoint, path, "path");
  checkInspect(signatures.verifyCheckpoint, options);
  using checkpoint = openCheckpoint(path);
  const stored = checkpoint.quantized;
  const quantized: Record<string, number> = {};
  for (const { format } of stored.values()) quantized[format] = (quantized[format] ?? 0) + 1;
  const problems = checkConfig(checkpoint, quantized);
  using opened = openedCheckpoint(checkpoint);
  for (const [done, { report, pieces }] of opened.entries.entries()) {
    problems.push(...weightProblems(report.name, pieces, stored.get(report.name)));
    options.onProgress?.(done + 1, opened.entries.length);
    await new Promise(setImmediate);
  }
  return { tensors: opened.entries.length, quantized, problems };
}

/** What is wrong with one tensor; what can't even be read is a problem, too. */
function weightProblems(name: string, pieces: Pieces | undefined, stored: Stored | undefined): string[] {
  try {
    const bad = pieces ? nonFinite(pieces) : 0;
    const values = bad > 0 ? [`${name} has ${bad} values that are NaN or infinite.`] : [];
    return [...values, ...(stored ? scaleProblems(stored) : [])];
  } catch (error) {
    if (!(error instanceof BnbError) || error.code !== "invalid") throw error;
    return [error.message];
  }
}

/** Values of a weight that are NaN or infinite. */
function nonFinite(pieces: Pieces): number {
  let count = 0;
  for (const piece of pieces.runs(runLength(pieces))) {
    using tensor = piece;
    count += compare(tensor, tensor).nonFinite;
  }
  return count;
}

/** What is wrong with a quantised weight's scales; what they give is looked at with the weight. */
function scaleProblems(stored: Stored): string[] {
  // Of affine weights they may be negative, and others have no sign.
  if (!isOurs(stored) || (stored.format === "blockwise" && stored.state.stores)) return [];
  const { name } = stored;
  const scales = stored.format !== "int8" && stored.nestedAbsmax ? stored.nestedAbsmax : stored.absmax;
  const bad = (scales.values as Float32Array).reduce(
    (count, scale) => count + Number(!(scale >= 0 && scale < Infinity)),
    0,
  );
  scales.release();
  return bad === 0 ? [] : [`${name} has ${bad} scales in ${scales.name} that are negative, NaN or infinite.`];
}

function checkConfig(checkpoint: Checkpoint, quantized: Readonly<Record<string, number>>): string[] {
  const config = readConfig(checkpoint.directory);
  if (!config) return [];
  const says = quantMethod(config);
  const formats = Object.keys(quantized);
  if (says === undefined && formats.length > 0) {
    const stored = formats.join(" and ");
    return [`config.json has no quantization_config, but weights are ${stored}: transformers would not load them.`];
  }
  const others = formats.filter((format) => format !== says);
  if (says === undefined) return [];
  if (others.length === 0 && ["mlx", "gptq", "awq"].includes(says)) return [];
  // A model that was saved out of memory: each weight's own state says what it is in.
  const said = config.quantization_config as { quant_type?: unknown };
  if (says === "blockwise" && (others.length > 0 || said.quant_type === "blockwise")) return [];
  if (others.length === 0 && formats.length > 0)
    return checkChoice(originalShapes(checkpoint), config, new Set(checkpoint.quantized.keys()));
  return [`config.json says that weights are ${says}, but ${formats.join(" and ") || "none"} are stored.`];
}

/** Formats of a model with what each costs, for a summary. */
export function summarise(reports: readonly WeightReport[]): { format: string; weights: number; bytes: number }[] {
  const sums = new Map<string, { format: string; weights: number; bytes: number }>();
  for (const { format, bytes } of reports) {
    const sum = sums.get(format) ?? { format, weights: 0, bytes: 0 };
    sums.set(format, { format, weights: sum.weights + 1, bytes: sum.bytes + bytes });
  }
  return [...sums.values()].sort((a, b) => b.bytes - a.bytes);
}
