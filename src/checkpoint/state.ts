// bitsandbytes' state-dict keys: which tensors make up a quantised weight, and how they must agree.
import { isMap } from "node:util/types";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { defaultStores, type Stores } from "../quantized.ts";
import { isOptions, Signature, show } from "../signature.ts";
import type { StoredGptq } from "./gptq.ts";
import { type SafetensorsDtype, tensorBytes } from "./header.ts";
import type { StoredMlx } from "./mlx.ts";
import {
  parseState,
  type QuantType4bit,
  type State,
  type State4bit,
  type StateBlockwise,
  statePattern,
  storesOf,
} from "./packed_state.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import type { TensorSpec } from "./writer.ts";

/** The library's names of the dtypes that a weight can have, and safetensors' names. */
export const floatDtypes = { float32: "F32", float16: "F16", bfloat16: "BF16" } as const satisfies Record<
  string,
  SafetensorsDtype
>;

/**
 * Dtypes that 4-bit codes may be stored as; the bytes are the same, but FSDP wants them to look like the model's
 * dtype.
 */
export const storageDtypes = {
  uint8: "U8",
  int8: "I8",
  float16: "F16",
  bfloat16: "BF16",
  float32: "F32",
  float64: "F64",
} as const satisfies Record<string, SafetensorsDtype>;
/** A dtype that 4-bit codes may be stored as: upstream's `quant_storage`. */
export type StorageDtype = keyof typeof storageDtypes;

/** The longest text that {@link packState} makes besides the shape: a double prints as at most 24 characters. */
const stateBytesMax = 512;

export interface SpecsOptions {
  readonly quantType: State["quantType"];
  /** Bits of a code, 4 by default. */
  readonly bits?: number;
  readonly blocksize: number;
  readonly storage: StorageDtype;
  /** The block of the scales' scales, or 0 where the scales are plain. */
  readonly nestedBlocksize: number;
  /** How scales and offsets are stored: as bitsandbytes has it by default. */
  readonly stores?: Stores | undefined;
}

/** A part of a weight besides its codes, as the keys of a file and the members of {@link Stored} name it. */
interface BlockPart {
  readonly part: "absmax" | "code" | "nestedAbsmax" | "nestedCode" | "offsets" | "nestedOffsets" | "offsetsAbsmax";
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly count: number;
}

/** The parts that such a weight has, in the order in which they are written. */
function blockParts(
  name: string,
  elements: number,
  { bits = 4, blocksize, nestedBlocksize, stores }: Omit<SpecsOptions, "quantType" | "storage">,
): BlockPart[] {
  const { absmax, offsets, nested } = stores ?? defaultStores(nestedBlocksize > 0);
  const blocks = Math.ceil(elements / blocksize);
  const ofBlocks = (dtype: FloatDType | "uint8") =>
    dtype === "uint8"
      ? ({ dtype: "U8", count: Math.ceil((blocks * nested!.bits) / 8) } as const)
      : ({ dtype: floatDtypes[dtype], count: blocks } as const);
  const parts: BlockPart[] = [
    { part: "absmax", name: `${name}.absmax`, ...ofBlocks(absmax) },
    { part: "code", name: `${name}.quant_map`, dtype: "F32", count: 2 ** bits },
  ];
  if (nested) {
    const ofGroups = { dtype: floatDtypes[nested.dtype], count: Math.ceil(blocks / nestedBlocksize) };
    parts.push({ part: "nestedAbsmax", name: `${name}.nested_absmax`, ...ofGroups });
    parts.push({ part: "nestedCode", name: `${name}.nested_quant_map`, dtype: "F32", count: 2 ** nested.bits });
    const inFloats = { ...ofGroups, dtype: "F32" } as const;
    if (nested.hasOffsets) parts.push({ part: "nestedOffsets", name: `${name}.nested_offsets`, ...inFloats });
    if (offsets === "uint8") parts.push({ part: "offsetsAbsmax", name: `${name}.offsets_absmax`, ...ofGroups });
  }
  if (offsets) parts.push({ part: "offsets", name: `${name}.offsets`, ...ofBlocks(offsets) });
  return parts;
}

/** The tensors that a weight of a shape becomes. @throws BnbError where the storage dtype does not divide it */
export function specsBlockwise(name: string, shape: readonly number[], options: SpecsOptions): TensorSpec[] {
  const { bits = 4 } = options;
  const elements = shape.reduce((product, extent) => product * extent, 1);
  const dtype = storageDtypes[options.storage];
  const unit = tensorBytes(dtype, [1]) as number;
  const bytes = Math.ceil((elements * bits) / 8);
  if (bytes % unit !== 0) {
    const what = `${name} packs into ${bytes} bytes, which ${options.storage} of ${unit} bytes does not divide`;
    throw new BnbError(`${what}; store it as uint8.`);
  }
  return [
    { name, dtype, shape: [bytes / unit, 1] },
    ...blockParts(name, elements, options).map(({ name, dtype, count }) => ({ name, dtype, shape: [count] })),
    { name: stateKey(name, options.quantType), dtype: "U8", shape: { atMost: stateBytesMax + 24 * shape.length } },
  ];
}

/** The last part of the key is the state's own; bitsandbytes looks for its own name, and passes over ours. */
export function stateKey(name: string, quantType: State["quantType"]): string {
  return `${name}.quant_state.${quantType === "blockwise" ? "bunsandbytes" : "bitsandbytes"}__${quantType}`;
}

/** A quantised weight as a checkpoint holds it: its tensors, found and checked against one another. */
export type Stored = StoredOurs | StoredMlx | StoredGptq;

/** Whether a weight is in a format of bitsandbytes', or of this library's. */
export function isOurs(stored: Stored): stored is StoredOurs {
  return stored.format !== "mlx" && stored.format !== "gptq" && stored.format !== "awq";
}

/** One whose state stands beside it in bitsandbytes' form. */
export type StoredOurs = Stored4bit | StoredBlockwise | StoredInt8;

/** A 4-bit weight of a checkpoint: its state, and its tensors. */
export interface Stored4bit extends StoredParts {
  readonly format: QuantType4bit;
  readonly state: State4bit;
}

/** A weight of 2 to 8 bits in this library's own format: its state, and its tensors. */
export interface StoredBlockwise extends StoredParts {
  readonly format: "blockwise";
  readonly state: StateBlockwise;
}

interface StoredParts {
  readonly name: string;
  readonly codes: SafetensorsTensor;
  readonly absmax: SafetensorsTensor;
  readonly code: SafetensorsTensor;
  readonly nestedAbsmax: SafetensorsTensor | undefined;
  readonly nestedCode: SafetensorsTensor | undefined;
  readonly offsets: SafetensorsTensor | undefined;
  readonly nestedOffsets: SafetensorsTensor | undefined;
  readonly offsetsAbsmax: SafetensorsTensor | undefined;
  /** Every tensor that belongs to it. */
  readonly parts: readonly SafetensorsTensor[];
}

/** An int8 weight of a checkpoint: its tensors. */
export interface StoredInt8 {
  readonly format: "int8";
  readonly name: string;
  readonly codes: SafetensorsTensor;
  readonly absmax: SafetensorsTensor;
  readonly parts: readonly SafetensorsTensor[];
}

function checkTensors(tensors: unknown): void {
  const me = new Signature("findQuantized");
  if (!isMap(tensors)) throw me.wrong("tensors", tensors, "a Map of tensors by name");
  for (const [name, tensor] of tensors)
    if (typeof name !== "string" || !isOptions(tensor))
      throw me.fail(`tensors has ${show(tensor)} as ${show(name)}, expected tensors of a file by their names.`);
}

/**
 * Finds the quantised weights among the tensors of a checkpoint.
 *
 * @example
 * ```ts
 * using file = checkpoint.openSafetensors("./model-nf4/model.safetensors");
 * for (const [name, weight] of checkpoint.findQuantized(file.tensors)) console.log(name, weight.format);
 * ```
 *
 * @returns the weights by name
 * @throws BnbError naming the key that is missing, foreign, damaged, or at odds with the others
 */
export function findQuantized(tensors: ReadonlyMap<string, SafetensorsTensor>): Map<string, StoredOurs> {
  checkTensors(tensors);
  const found = new Map<string, StoredOurs>();
  for (const key of tensors.keys()) {
    const name = statePattern.exec(key)?.[1];
    if (name !== undefined) {
      if (found.has(name)) throw new BnbError(`${key}: ${name} has another quantisation state too; quantise again.`);
      found.set(name, findBlockwise(tensors, name, key));
    } else if (key === "SCB" || key.endsWith(".SCB")) {
      const weight = `${key.slice(0, -"SCB".length)}weight`;
      found.set(weight, findInt8(tensors, weight, key));
    }
  }
  checkOrphans(tensors, found);
  return found;
}

/** A part without the state that explains it would be carried along as if it were a weight of its own. */
function checkOrphans(tensors: ReadonlyMap<string, SafetensorsTensor>, found: ReadonlyMap<string, Stored>): void {
  for (const key of tensors.keys()) {
    const name = /^(.*)\.(?:absmax|quant_map|nested_absmax|nested_quant_map|nested_offsets|offsets_absmax)$/.exec(
      key,
    )?.[1];
    if (name === undefined || !tensors.has(name) || found.has(name)) continue;
    throw new BnbError(
      `${key} has no ${name}.quant_state.bitsandbytes__nf4 or the like beside it; quantise the model again.`,
    );
  }
}

function findBlockwise(
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  name: string,
  key: string,
): Stored4bit | StoredBlockwise {
  const stateTensor = expectPart(tensors, key, "U8", undefined, key);
  const state = parseState(key, stateTensor.bytes);
  stateTensor.release();
  const elements = state.shape.reduce((product, extent) => product * extent, 1);
  const codes = expectPart(tensors, name, undefined, undefined, key);
  const bits = state.quantType === "blockwise" ? state.bits : 4;
  const bytes = Math.ceil((elements * bits) / 8);
  if (codes.byteLength !== bytes || !(Object.values(storageDtypes) as string[]).includes(codes.dtype)) {
    const has = `${codes.dtype} [${codes.shape.join(", ")}]`;
    throw new BnbError(
      `${name} is ${has}, expected the ${bytes} bytes of [${state.shape.join(", ")}] that ${key} names.`,
    );
  }
  const { blocksize, nested } = state;
  const options = { bits, blocksize, nestedBlocksize: nested?.blocksize ?? 0, stores: storesOf(state) };
  const wanted = blockParts(name, elements, options);
  const all = wanted.map(
    ({ part, name, dtype, count }) => [part, expectPart(tensors, name, dtype, count, key)] as const,
  );
  const parts = [codes, ...all.map(([, tensor]) => tensor), stateTensor];
  const found = { name, codes, parts, ...Object.fromEntries(all) } as unknown as StoredParts;
  if (state.quantType === "blockwise") return { format: state.quantType, state, ...found };
  return { format: state.quantType, state, ...found };
}

function findInt8(tensors: ReadonlyMap<string, SafetensorsTensor>, name: string, key: string): StoredInt8 {
  const codes = expectPart(tensors, name, "I8", undefined, key);
  if (codes.shape.length !== 2) throw new BnbError(`${name} has shape [${codes.shape.join(", ")}], expected a matrix.`);
  const absmax = expectPart(tensors, key, "F32", codes.shape[0], key);
  const format = tensors.get(`${key.slice(0, -"SCB".length)}weight_format`);
  const layout = format?.bytes[0] ?? 0;
  format?.release();
  // 1 to 3 are layouts for tensor cores, which bitsandbytes before 0.45 could save.
  if (layout !== 0) {
    throw new BnbError(
      `${format!.name} is ${layout}, expected 0 (rows); save the model again with bitsandbytes 0.45 or later.`,
    );
  }
  const parts = [codes, absmax, format].filter((part) => part !== undefined);
  return { format: "int8", name, codes, absmax, parts };
}

function expectPart(
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  name: string,
  dtype: SafetensorsDtype | undefined,
  length: number | undefined,
  because: string,
): SafetensorsTensor {
  const tensor = tensors.get(name);
  if (!tensor) throw new BnbError(`${name} is missing, though ${because} names it; quantise the model again.`);
  const expected = dtype && length !== undefined ? tensorBytes(dtype, [length]) : tensor.byteLength;
  if ((dtype && tensor.dtype !== dtype) || tensor.byteLength !== expected) {
    const has = `${tensor.dtype} [${tensor.shape.join(", ")}]`;
    throw new BnbError(
      `${name} is ${has}, expected ${dtype}${length === undefined ? "" : ` [${length}]`} (see ${because}).`,
    );
  }
  return tensor;
}

/** A tensor of which all is known before it is written. */
type FixedSpec = TensorSpec & { readonly shape: readonly number[] };

/**
 * The tensors that an int8 weight becomes: bitsandbytes' `Linear8bitLt` saves these. @throws BnbError for another name
 */
export function specsInt8(
  name: string,
  shape: readonly number[],
): [codes: FixedSpec, scales: FixedSpec, format: FixedSpec] {
  if (name !== "weight" && !name.endsWith(".weight"))
    throw new BnbError(`${name} does not end in .weight, as bitsandbytes names int8 weights: call it ${name}.weight.`);
  const prefix = name.slice(0, -"weight".length);
  return [
    { name, dtype: "I8", shape },
    { name: `${prefix}SCB`, dtype: "F32", shape: [shape[0]!] },
    { name: `${prefix}weight_format`, dtype: "U8", shape: [] },
  ];
}
