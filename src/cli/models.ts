// The options of commands that run a model, and how they load one.
import { type Command, InvalidArgumentError, Option } from "commander";
import type { DeviceName } from "../device.ts";
import type { GenerateOptions } from "../model/generation.ts";
import { Model } from "../model/model.ts";
import type { Precision } from "../native.ts";
import type { ReportOptions } from "./options.ts";
import { progress } from "./terminal.ts";

/** Options of every command that loads a model, as commander gives them. */
export interface LoadFlags extends ReportOptions {
  readonly quantType?: "nf4" | "fp4" | "int8";
  readonly doubleQuant?: boolean;
  readonly precision?: Precision;
  readonly mmap?: boolean;
  readonly adapter?: string;
  readonly devices?: readonly DeviceName[] | "auto";
}

export function withLoading(command: Command): Command {
  return command
    .addOption(
      new Option("--quant-type <type>", "quantise a dense model while it loads").choices(["nf4", "fp4", "int8"]),
    )
    .option("--double-quant", "with 4 bits: quantise the scales too")
    .addOption(
      new Option(
        "--precision <precision>",
        "of products with quantised weights; on an NVIDIA GPU medium, else high",
      ).choices(["highest", "high", "medium"]),
    )
    .option("--mmap", "use the files' own pages in place of copies; the files must stay as they are")
    .option("--adapter <dir>", "a LoRA adapter of PEFT's, to run beside the weights")
    .option(
      "--devices <list>",
      "share the layers among several, such as cuda:0,cuda:1,cpu; auto: as far as each one's memory goes",
      (text) => (text === "auto" ? text : (text.split(",").map((name) => name.trim()) as DeviceName[])),
    )
    .option("--quiet", "print no progress and no figures");
}

/** Loads a model, with its progress on standard error. */
export async function loadModel(path: string, flags: LoadFlags): Promise<Model> {
  const reporter = progress("Loading", (layers) => `${layers.toFixed(0)} layers`, flags);
  try {
    const { quantType, doubleQuant, precision, mmap, adapter, devices } = flags;
    return await Model.load(path, {
      ...{ quantType, doubleQuant, precision, mmap, adapter, devices },
      onProgress: (done, total) => reporter.update(done, total),
    });
  } finally {
    reporter.stop();
  }
}

/** Options of commands that write text, as commander gives them. */
export interface SamplingFlags extends LoadFlags {
  readonly maxTokens: number;
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly seed?: number;
}

export function withSampling(command: Command, maxTokens: number): Command {
  return withLoading(command)
    .option("--max-tokens <n>", "the most tokens to write", number, maxTokens)
    .option(
      "--temperature <t>",
      "0 takes the likeliest token, always (default: as the model recommends, else 0)",
      number,
    )
    .option("--top-k <n>", "only so many of the likeliest tokens", number)
    .option("--top-p <p>", "only the likeliest tokens that together have this probability", number)
    .option("--min-p <p>", "only tokens at least this share as likely as the likeliest", number)
    .option("--repetition-penalty <p>", "above 1: what stands there already is less likely", number)
    .option("--seed <n>", "the same seed gives the same text", number);
}

/** What the library takes, of what commander gives. */
export function samplingOptions(flags: SamplingFlags): GenerateOptions {
  const { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed } = flags;
  return { maxTokens, temperature, topK, topP, minP, repetitionPenalty, seed };
}

function number(text: string): number {
  const value = Number(text);
  if (text.trim() !== "" && Number.isFinite(value)) return value;
  throw new InvalidArgumentError("Expected a number.");
}

/** All of standard input, less the newline that ends its last line. */
export async function standardInput(): Promise<string> {
  return (await Bun.stdin.text()).replace(/\n$/, "");
}
