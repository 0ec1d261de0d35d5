// The options that commands share, and how their values are read.
import { basename, resolve } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { quantTypes, type StoredQuantType } from "../checkpoint/huggingface.ts";
import type { StorageDtype } from "../checkpoint/state.ts";
import type { TransformOptions } from "../checkpoint/transform.ts";
import type { FloatDType } from "../dtype.ts";

/** How a command reports. */
export interface ReportOptions {
  readonly json?: boolean;
  readonly quiet?: boolean;
}

export function withReporting(command: Command): Command {
  return command
    .option("--json", "print the result as JSON on standard output, and nothing else there")
    .option("--quiet", "print no progress and no summary");
}

/** Options of every command that writes a model, as commander gives them. */
export interface WriteFlags extends ReportOptions {
  readonly output?: string;
  readonly dtype?: FloatDType;
  readonly force?: boolean;
  readonly maxShardSize?: number;
}

export function withWriting(command: Command, dtypeDefault: string): Command {
  const dtypes = ["float32", "float16", "bfloat16"];
  return withReporting(command)
    .option("-o, --output <dir>", "where to write the model (default: here, under the input's name and what is done)")
    .addOption(
      new Option("--dtype <dtype>", `of the weights that stay floats (default: ${dtypeDefault})`).choices(dtypes),
    )
    .option("--max-shard-size <size>", "begin another file above this size, such as 5GB (default: 50GB)", byteCount)
    .option("--force", "replace weights, config.json and other files in an output directory that is not empty");
}

/** What `--scales` takes, and the library's name for it. */
const scaleRules = { absmax: "absmax", "least-squares": "leastSquares" } as const;

/** Options of the commands that can quantise, as commander gives them. */
export interface QuantizeFlags extends WriteFlags {
  readonly quantType?: StoredQuantType;
  readonly blocksize: number;
  readonly doubleQuant?: boolean;
  readonly scales: keyof typeof scaleRules;
  readonly quantStorage: StorageDtype;
  readonly skip?: readonly string[];
  readonly best?: boolean;
}

export function withQuantizing(command: Command, quantType: Option): Command {
  const storages = ["uint8", "int8", "float16", "bfloat16", "float32", "float64"];
  return command
    .addOption(quantType.choices(quantTypes))
    .option("--blocksize <n>", "weights that share a scale: a power of two from 16 to 4096", blocksize, 64)
    .option("--double-quant", "quantise the scales too, which saves 0.37 bits a weight at block 64")
    .addOption(
      new Option("--scales <rule>", "of codebooks: bitsandbytes' own, or those of the smallest squared error")
        .choices(Object.keys(scaleRules))
        .default("absmax"),
    )
    .option("--best", "the least error at about 4.3 bits: blocks of 32, quantised scales of the smallest squared error")
    .addOption(
      new Option("--quant-storage <dtype>", "the dtype that codes are stored as").choices(storages).default("uint8"),
    )
    .option(
      "--skip <pattern>",
      "leave modules alone: a name's start, a regular expression or an ending (repeatable)",
      collect,
    );
}

/**
 * What the library's functions take, of what commander gives.
 *
 * @param input what the person named, of which the output has its name where none is given
 * @param done what is done to it, such as `nf4`
 */
export function transformOptions(flags: WriteFlags, input: string, done: string): TransformOptions {
  const output = flags.output ?? `${nameOf(input)}-${done}`;
  return { output, force: flags.force, dtype: flags.dtype, shardBytes: flags.maxShardSize };
}

/** The last part of a path or of a hub's id, without what kind of file it is. */
function nameOf(input: string): string {
  const name = basename(resolve(input)).replace(/\.(gguf|safetensors(\.index\.json)?)$/, "");
  return name === "" ? "model" : name.replace(/^models--.*--/, "");
}

export function quantizeOptions(flags: QuantizeFlags, input: string, done: string) {
  const { quantType, quantStorage, skip = [], best } = flags;
  const { blocksize, doubleQuant, scales } = best
    ? ({ blocksize: 32, doubleQuant: true, scales: "least-squares" } as const)
    : { doubleQuant: false, ...flags };
  const quantize = { blocksize, doubleQuant, scales: scaleRules[scales], quantStorage, skip };
  return { ...transformOptions(flags, input, done), ...(quantType && { quantType }), ...quantize };
}

function collect(value: string, before: readonly string[] = []): string[] {
  return [...before, value];
}

function blocksize(text: string): number {
  const value = Number(text);
  if (value >= 16 && value <= 4096 && Number.isInteger(Math.log2(value))) return value;
  throw new InvalidArgumentError("Expected 16, 32, 64, 128, 256, 512, 1024, 2048 or 4096.");
}

/** Sizes as transformers reads them: `5GB` is 5·10⁹ bytes, `5GiB` is 5·2³⁰. */
function byteCount(text: string): number {
  const [, digits, unit = "", binary] = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?$/i.exec(text) ?? [];
  const power = " KMGT".indexOf(unit.toUpperCase() || " ");
  const value = Number(digits) * (binary ? 1024 : 1000) ** power;
  if (value >= 1) return value;
  throw new InvalidArgumentError("Expected a size such as 500MB or 5GB.");
}
