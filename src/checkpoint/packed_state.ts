// What a weight's state says of it: the JSON that its key holds, written as Python writes it, read and checked.
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { floatDtypes } from "../native.ts";
import { defaultStores, type Stores } from "../quantized.ts";
import { isObject, parseJson } from "./json.ts";
import { dumps, PyFloat, type PyValue } from "./pyjson.ts";

export type QuantType4bit = "nf4" | "fp4";

/** What the packed JSON of a weight says, whatever its format. */
interface StateShared {
  readonly blocksize: number;
  /** The dtype that the weight had, and dequantises to. */
  readonly dtype: FloatDType;
  readonly shape: readonly number[];
  /** Present where the scales are quantised too. */
  readonly nested?: { readonly blocksize: number; readonly offset: number } | undefined;
}

/** The quantisation state of a 4-bit weight, as its packed JSON says. */
export interface State4bit extends StateShared {
  readonly quantType: QuantType4bit;
}

/**
 * The quantisation state of a weight that bitsandbytes has no format for: of another width, or with another codebook.
 */
export interface StateBlockwise extends StateShared {
  readonly quantType: "blockwise";
  /** Bits of a code, 2 to 8. */
  readonly bits: number;
  /** How scales and offsets are stored, where that is not as bitsandbytes has it. */
  readonly stores?: Stores | undefined;
}

export type State = State4bit | StateBlockwise;

export const statePattern = /^(.*)\.quant_state\.(bitsandbytes__\w+|bunsandbytes__blockwise)$/;
/** What bitsandbytes reads; blocks of 16 are this library's. */
export const blocksizes = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/** How a weight's scales and offsets are stored. */
export function storesOf(state: State): Stores {
  return (state.quantType === "blockwise" ? state.stores : undefined) ?? defaultStores(state.nested !== undefined);
}

/** The JSON, for 4-bit weights byte for byte as bitsandbytes' `QuantState.as_dict(packed=True)` writes it. */
export function packState(state: State): Uint8Array {
  const { absmax, offsets, nested: codes } = storesOf(state);
  const nested = state.nested && {
    nested_blocksize: state.nested.blocksize,
    nested_dtype: codes!.dtype,
    nested_offset: new PyFloat(state.nested.offset),
    ...(codes!.bits !== 8 && { nested_bits: codes!.bits }),
    ...(codes!.hasOffsets && { nested_offsets: true }),
  };
  const json: PyValue = {
    quant_type: state.quantType,
    ...(state.quantType === "blockwise" && { bits: state.bits }),
    blocksize: state.blocksize,
    dtype: state.dtype,
    shape: state.shape,
    ...(!state.nested && absmax !== "float32" && { absmax_dtype: absmax }),
    ...(offsets && { offsets_dtype: offsets }),
    ...nested,
  };
  return new TextEncoder().encode(dumps(json));
}

/** What the JSON of a weight says of how its scales and offsets are stored; undefined where that is nothing new. */
function parseStores(state: Record<string, unknown>, nested: boolean, need: Need): Stores | undefined {
  const isDtype = (dtype: unknown) => typeof dtype === "string" && Object.hasOwn(floatDtypes, dtype);
  const { absmax_dtype = "float32", offsets_dtype, nested_bits = 8, nested_offsets = false } = state;
  need("absmax_dtype", !nested || state.absmax_dtype === undefined, "none of nested scales");
  need("absmax_dtype", isDtype(absmax_dtype), names);
  const mayBeCodes = nested && offsets_dtype === "uint8";
  need("offsets_dtype", offsets_dtype === undefined || isDtype(offsets_dtype) || mayBeCodes, names);
  if (nested) {
    need("nested_dtype", isDtype(state.nested_dtype), names);
    need("nested_bits", isCount(nested_bits) && Number(nested_bits) >= 2 && Number(nested_bits) <= 8, "2 to 8");
    need("nested_offsets", typeof nested_offsets === "boolean", "true or false");
  }
  const stores = {
    absmax: nested ? "uint8" : absmax_dtype,
    offsets: offsets_dtype,
    nested: nested ? { bits: nested_bits, dtype: state.nested_dtype, hasOffsets: nested_offsets } : undefined,
  } as Stores;
  return Bun.deepEquals(stores, defaultStores(nested)) ? undefined : stores;
}

const names = Object.keys(floatDtypes).join(" or ");
type Need = (field: string, holds: boolean, expected: string) => void;

/** Reads and checks the JSON that `key` holds. @throws BnbError naming the key and the field */
export function parseState(key: string, bytes: Uint8Array): State {
  const quantType = statePattern.exec(key)?.[2]?.split("__")[1];
  const ours = key.endsWith(".bunsandbytes__blockwise");
  if (quantType !== "nf4" && quantType !== "fp4" && !ours) {
    throw new BnbError(`${key}: the type ${JSON.stringify(quantType)} is unknown; expected nf4 or fp4.`, "unsupported");
  }
  let json: unknown;
  try {
    json = parseJson(bytes, { python: true });
  } catch (cause) {
    throw new BnbError(`${key} is not JSON (${(cause as Error).message}); quantise the model again.`);
  }
  if (!isObject(json)) throw new BnbError(`${key} is not a JSON object; quantise the model again.`);
  const state = json;
  const need: Need = (field, holds, expected) => {
    if (holds) return;
    throw new BnbError(`${key}: ${field} is ${JSON.stringify(state[field])}, expected ${expected}; quantise again.`);
  };
  const { blocksize, dtype, shape } = state;
  need("quant_type", state.quant_type === quantType, JSON.stringify(quantType));
  const bits = ours && typeof state.bits === "number" ? state.bits : ours ? 0 : 4;
  need("bits", Number.isInteger(bits) && bits >= 2 && bits <= 8, "2 to 8");
  if (bits === 8) need("blocksize", isCount(blocksize), "a count");
  else {
    const known = ours ? [16, ...blocksizes] : blocksizes;
    need("blocksize", known.includes(blocksize as number), `one of ${known.join(", ")}`);
  }
  need("dtype", typeof dtype === "string" && Object.hasOwn(floatDtypes, dtype), names);
  need("shape", isShape(shape), "a list of positive counts");
  const isNested = state.nested_blocksize !== undefined || state.nested_offset !== undefined;
  const stores = ours ? parseStores(state, isNested, need) : undefined;
  const parsed = { quantType, ...(ours && { bits }), blocksize, dtype, shape, ...(stores && { stores }) } as State;
  if (!isNested) return parsed;
  need("nested_blocksize", isCount(state.nested_blocksize), "a count");
  if (!ours) need("nested_dtype", state.nested_dtype === "float32", '"float32"');
  need("nested_offset", Number.isFinite(state.nested_offset), "a finite number");
  return { ...parsed, nested: { blocksize: Number(state.nested_blocksize), offset: Number(state.nested_offset) } };
}

const isCount = (value: unknown) => Number.isSafeInteger(value) && Number(value) > 0;

function isShape(shape: unknown): boolean {
  return Array.isArray(shape) && shape.length > 0 && shape.every(isCount);
}
