// Checkpoints as a whole: opens one or many safetensors files as one set of tensors, and writes such sets.

import { closeSync, existsSync, mkdirSync, readdirSync, readSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { BnbError } from "../error.ts";
import { checkPath, signatures } from "./arguments.ts";
import { fileIn, openRegular, readText } from "./folder.ts";
import { findGptq } from "./gptq.ts";
import { damaged, headerBytesMax, liesBehind } from "./header.ts";
import { readConfig } from "./huggingface.ts";
import { isObject, parseJson } from "./json.ts";
import { snapshotOf } from "./locate.ts";
import { findMlx } from "./mlx.ts";
import { dumps } from "./pyjson.ts";
import { openSafetensors, type SafetensorsFile, type SafetensorsTensor } from "./safetensors.ts";
import { writeText } from "./staging.ts";
import { findQuantized, type Stored } from "./state.ts";
import { SafetensorsWriter, specBytes, type TensorSpec } from "./writer.ts";

const singleName = "model.safetensors";
const indexName = "model.safetensors.index.json";
/** As much as a header may have, for it says less of each tensor. */
const indexBytesMax = headerBytesMax;

/** transformers' own default; a shard is larger only where one module is. */
export const shardBytesDefault = 50e9;

/** An open checkpoint: the tensors of one file, or of the shards that an index lists. */
export class Checkpoint implements Disposable {
  /** What was opened; for a repository's folder in the Hugging Face cache, its snapshot. */
  readonly path: string;
  /** Where config.json and the tokenizer lie. */
  readonly directory: string;
  /** Every tensor as it is stored, by name, including the parts of quantised weights. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  readonly files: readonly SafetensorsFile[];
  #quantized: Map<string, Stored> | undefined;

  /** @internal Use {@link openCheckpoint}. */
  constructor(path: string, directory: string, files: readonly SafetensorsFile[]) {
    this.path = path;
    this.directory = directory;
    this.files = files;
    const owner = new Map<string, string>();
    for (const file of files) {
      for (const name of file.tensors.keys()) {
        const other = owner.get(name);
        if (other !== undefined) throw damaged(file.path, `it stands in ${other} too`, name);
        owner.set(name, file.path);
      }
    }
    this.tensors = new Map(files.flatMap((file) => [...file.tensors]));
  }

  /** @internal Whether a value is a checkpoint, by a private field. */
  static is(value: unknown): value is Checkpoint {
    return typeof value === "object" && value !== null && #quantized in value;
  }

  /** The quantised weights, found at the first use. @throws BnbError as {@link findQuantized} does */
  get quantized(): ReadonlyMap<string, Stored> {
    this.#quantized ??= within(this.path, () => {
      const config = readConfig(this.directory);
      const foreign = new Map<string, Stored>([...findMlx(this.tensors, config), ...findGptq(this.tensors, config)]);
      return foreign.size > 0 ? foreign : findQuantized(this.tensors);
    });
    return this.#quantized;
  }

  /** Closes every file. Views of tensors have length 0 from then on. */
  close(): void {
    for (const file of this.files) file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Runs what speaks of a checkpoint's tensors by their names; its errors say which checkpoint that was. */
export function within<T>(path: string, run: () => T): T {
  try {
    return run();
  } catch (cause) {
    if (!(cause instanceof BnbError) || cause.message.includes(path)) throw cause;
    throw new BnbError(`${path}: ${cause.message}`, cause.code, { cause });
  }
}

/**
 * Opens a checkpoint: a `.safetensors` file, a `.safetensors.index.json`, or a directory that has `model.safetensors`
 * or `model.safetensors.index.json`, in that order, as transformers looks for them.
 *
 * @example
 * ```ts
 * using model = checkpoint.openCheckpoint("./model-nf4");
 * model.tensors.size; // → 33
 * [...model.quantized.values()].filter((weight) => weight.format === "nf4").length; // → 7
 * ```
 *
 * @throws BnbError naming the file and the tensor, if anything is missing or damaged
 */
export function openCheckpoint(path: string): Checkpoint {
  checkPath(signatures.openCheckpoint, path, "path");
  const place = snapshotOf(path);
  const weights = weightsPath(place);
  const directory = dirname(weights);
  const opened: SafetensorsFile[] = [];
  try {
    if (!weights.endsWith(".json")) {
      opened.push(openSafetensors(weights));
    } else {
      const index = readIndex(weights);
      for (const name of new Set(index.values())) opened.push(openSafetensors(join(directory, name)));
      checkIndex(weights, index, opened);
    }
    return new Checkpoint(place, directory, opened);
  } catch (error) {
    for (const file of opened) file.close();
    throw error;
  }
}

/** The file to open for a path that a person gave. */
function weightsPath(path: string): string {
  if (!existsSync(path))
    throw new BnbError(`${path} does not exist; expected a safetensors file or a model's directory.`);
  if (path.endsWith(".gguf"))
    throw new BnbError(`${path} is a GGUF file; convert it first (\`bunsandbytes convert\`).`);
  if (!statSync(path).isDirectory()) {
    if (/\.(safetensors|index\.json)$/.test(path) || isSafetensors(path)) return path;
    throw new BnbError(`${path} is no safetensors file, nor an index of such; name the model's directory.`);
  }
  for (const name of [singleName, indexName]) {
    const file = fileIn(path, name);
    if (file !== undefined) return file;
  }
  if (fileIn(path, "adapter_config.json") !== undefined)
    throw new BnbError(
      `${path} is an adapter, not a model; merge it into its base (\`bunsandbytes merge BASE ${path} --output DIR\`).`,
    );
  const others = readdirSync(path).filter((name) => /\.(safetensors|gguf|bin|pth?)$/.test(name));
  const advice = others.some((name) => name.endsWith(".gguf"))
    ? "convert the GGUF file first (`bunsandbytes convert`)"
    : "name the safetensors file itself, or save the model as safetensors";
  const found = others.length > 0 ? others.slice(0, 5).join(", ") : "no weights";
  throw new BnbError(`${path} has neither ${singleName} nor ${indexName}, but ${found}; ${advice}.`);
}

/** Whether a file of any name begins as a safetensors file does: a length, then an object. */
function isSafetensors(path: string): boolean {
  const file = openRegular(path);
  const start = Buffer.alloc(9);
  const got = readSync(file, start, 0, start.length, 0);
  closeSync(file);
  return got === start.length && start.readUInt32LE(4) === 0 && start.at(8) === 0x7b;
}

/** An index as tensor name → file name. */
function readIndex(path: string): Map<string, string> {
  const text = readText(path, indexBytesMax);
  let json: unknown;
  try {
    json = parseJson(Buffer.from(text), { python: true });
  } catch (cause) {
    throw damaged(path, `it is not JSON (${(cause as Error).message})`);
  }
  const map = isObject(json) ? json.weight_map : undefined;
  if (!isObject(map)) throw damaged(path, "it has no weight_map");
  const index = new Map<string, string>();
  const files = new Set<string>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== "string" || basename(file) !== file) {
      throw damaged(path, `it names the file ${JSON.stringify(file)}, expected one beside the index`, name);
    }
    if (!files.has(file) && fileIn(dirname(path), file) === undefined)
      throw damaged(path, `its file ${JSON.stringify(file)} is missing`, name);
    files.add(file);
    index.set(name, file);
  }
  return index;
}

function checkIndex(path: string, index: Map<string, string>, files: readonly SafetensorsFile[]): void {
  const byName = new Map(files.map((file) => [basename(file.path), file]));
  for (const [name, file] of index) {
    if (!byName.get(file)!.tensors.has(name)) throw damaged(path, `${file} does not have it`, name);
  }
}

/** One piece of work that writes some tensors of a new checkpoint. */
export interface Step {
  /** The source tensor; steps run in the order of these names. */
  readonly name: string;
  /** What it writes. They go into one shard. */
  readonly specs: readonly TensorSpec[];
  /** Bytes that it reads, for progress. */
  readonly inputBytes: number;
  /** Elements of the model that it stands for; 0 for buffers. */
  readonly parameters: number;
  /** Whether it keeps its dtype because float16, which was asked for, has no such numbers. */
  readonly isBeyondHalf?: boolean;
  run(write: (name: string, data: ArrayBufferView) => void): void | Promise<void>;
}

export interface WriteOptions {
  /** Begin another shard before one grows above this many bytes. */
  readonly shardBytes?: number;
  readonly onStep?: (step: Step) => void;
  /** Of the files: `{ format: "pt" }` by default. */
  readonly metadata?: Readonly<Record<string, string>> | undefined;
}

/**
 * Runs the steps and writes what they make as `model.safetensors`, or as shards with an index where that is too large.
 * One step's data is in memory at a time.
 *
 * @param directory it exists; files in it are replaced
 */
export async function writeCheckpoint(
  directory: string,
  steps: Iterable<Step>,
  { shardBytes = shardBytesDefault, onStep, metadata }: WriteOptions = {},
): Promise<void> {
  const sorted = [...steps].sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
  const shards = planShards(sorted, shardBytes);
  const map: [name: string, file: string][] = [];
  let totalBytes = 0;
  mkdirSync(directory, { recursive: true });
  for (const [index, shard] of shards.entries()) {
    const file = shards.length === 1 ? singleName : shardName(index + 1, shards.length);
    using writer = new SafetensorsWriter(
      join(directory, file),
      shard.flatMap((step) => step.specs),
      metadata && { metadata },
    );
    for (const step of inLayout(shard)) {
      await runStep(step, (name, data) => {
        writer.write(name, data);
        map.push([name, file]);
        totalBytes += data.byteLength;
      });
      onStep?.(step);
      // Lets signals and the progress bar in.
      await new Promise(setImmediate);
    }
    writer.commit();
  }
  if (shards.length > 1) writeIndex(join(directory, indexName), map, sorted, totalBytes);
}

/** In the order of their names, but last what lies behind U8 in the file, among which are states of open length. */
function inLayout(steps: readonly Step[]): Step[] {
  const isBehind = ({ specs }: Step) => specs.some(({ dtype }) => liesBehind(dtype, "U8"));
  return [...steps.filter((step) => !isBehind(step)), ...steps.filter(isBehind)];
}

/** Runs a step; the library's errors say what is wrong with a tensor, and here which tensor it was. */
async function runStep(step: Step, write: (name: string, data: ArrayBufferView) => void): Promise<void> {
  try {
    await step.run(write);
  } catch (cause) {
    if (!(cause instanceof BnbError) || cause.message.includes(step.name)) throw cause;
    throw new BnbError(`${step.name}: ${cause.message}`, cause.code, { cause });
  }
}

function writeIndex(path: string, map: [string, string][], steps: readonly Step[], totalBytes: number): void {
  const parameters = steps.reduce((sum, step) => sum + step.parameters, 0);
  const index = {
    metadata: { total_parameters: parameters, total_size: totalBytes },
    weight_map: Object.fromEntries(map),
  };
  writeText(path, `${dumps(index, { indent: 2, sortKeys: true })}\n`);
}

function shardName(number: number, count: number): string {
  const pad = (value: number) => String(value).padStart(5, "0");
  return `model-${pad(number)}-of-${pad(count)}.safetensors`;
}

/** Fills shards in order; a new one begins where a step would overfill the last. */
function planShards(steps: readonly Step[], shardBytes: number): Step[][] {
  const shards: Step[][] = [[]];
  let filled = 0;
  for (const step of steps) {
    const bytes = step.specs.reduce((sum, spec) => sum + specBytes(spec), 0);
    if (filled > 0 && filled + bytes > shardBytes) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)!.push(step);
    filled += bytes;
  }
  return shards;
}

/** Whether a directory's entry belongs to a checkpoint's weights, of any shard count. */
export function isWeightsName(name: string): boolean {
  return /^model(-\d{5}-of-\d{5})?\.safetensors$/.test(name) || name === indexName;
}
