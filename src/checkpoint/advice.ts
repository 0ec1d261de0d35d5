// What a person should know of a model that is made of another: notes, and why something can't be done.
import { BnbError } from "../error.ts";
import type { Checkpoint, Step } from "./checkpoint.ts";
import {
  type Choice,
  type Config,
  hasForeignCodes,
  isTransformersType,
  kindOf,
  quantMethod,
  type StoredQuantType,
} from "./huggingface.ts";
import { isKnown, transformersVersion } from "./modules.ts";
import { specBytes, type TensorSpec } from "./writer.ts";

/** Why a model shrank less than one would expect of 4 bits, and what helps. */
export function sizeNotes(
  { inputBytes, outputBytes }: { inputBytes: number; outputBytes: number },
  kept: readonly Step[],
): string[] {
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

export function formatNotes({ quantType = "nf4" }: { quantType?: StoredQuantType }): string[] {
  if (isTransformersType(quantType)) return [];
  return [`transformers and bitsandbytes have no format ${quantType}: only this library reads the result.`];
}

export function nothingToDo(input: string, { kept }: Choice): BnbError {
  const [first] = [...kept].filter(([, why]) => !why.startsWith("an embedding") && !why.startsWith("the output head"));
  const why = first ? `: ${first[0]} and its like are kept (${first[1]})` : "";
  return new BnbError(`${input} has no Linear weights to quantise${why}.`);
}

/** @returns what a person should know @throws BnbError for an adapter, or a model that is quantised */
export function checkPlain(input: string, checkpoint: Checkpoint, config: Config | undefined): string[] {
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

export function whyStays({ name, specs, isBeyondHalf }: Step, { kept }: Choice, isWide: boolean): string {
  const why = kept.get(name) ?? "not a matrix of a linear layer";
  if (isBeyondHalf) return `${why}; in ${specs[0]!.dtype}, since it is beyond float16's 65504`;
  return isWide ? `${why}; in float32, as in transformers` : why;
}

/** What float16 has no numbers for. */
export function rangeNotes(steps: readonly Step[]): string[] {
  const [first, ...more] = steps.filter(({ isBeyondHalf }) => isBeyondHalf);
  const others = more.length > 0 ? ` and ${more.length} more` : "";
  return first ? [`Beyond float16's 65504, so as it was: ${first.name}${others}.`] : [];
}

export function noConfig(input: string): string {
  return `There is no config.json beside ${input}, so none was written: transformers needs one to load the result.`;
}

export function expertNotes({ kept }: Choice): string[] {
  const experts = [...kept.keys()].filter((name) => /\.experts\.\d+\./.test(name)).length;
  return experts === 0 ? [] : [`${experts} expert matrices stay as they are, as in transformers 5, which fuses them.`];
}

export function typeNotes(config: Config | undefined): string[] {
  const kind = kindOf(config);
  if (!config || isKnown(kind)) return [];
  const what = kind.type
    ? `transformers ${transformersVersion} has no type ${kind.type}`
    : "config.json has no model_type";
  return [`${what}: the choice of modules is a guess by names and shapes, and transformers may make another.`];
}
