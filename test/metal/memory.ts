// Owns matrices in a kernel's memory: of a dtype, or as random codes with their scales, and the numbers that they stand
// for.
import { Codebook, createDynamicMap, createNormalMap, type FloatDType } from "../../src/index.ts";
import { normal } from "../cases.ts";
import * as reference from "../reference.ts";
import { kernelCodes, scaleArguments } from "./arguments.ts";
import type { View } from "./simulator.ts";

/** Memory of a dtype, filled from numbers by rounding. */
export function store(values: ArrayLike<number>, dtype: FloatDType): View {
  if (dtype === "float16") return new Float16Array(values);
  const floats = new Float32Array(values);
  if (dtype === "float32") return floats;
  const words = new Uint32Array(floats.map((value) => reference.round(value, dtype)).buffer);
  return new Uint16Array(words.map((bits) => bits >>> 16));
}

/** The numbers in memory of a dtype. */
export function load(memory: View, dtype: FloatDType): Float32Array<ArrayBuffer> {
  if (dtype !== "bfloat16") return new Float32Array(memory as Float32Array);
  return new Float32Array(new Uint32Array(memory as Uint16Array).map((bits) => bits << 16).buffer);
}

/**
 * Absmax, nested absmax, codebook and nested codebook of a matrix that has none: as the driver binds what nobody looks
 * at.
 */
export const unused: readonly View[] = Array.from({ length: 4 }, () => new Uint8Array(8192));

/** Offsets of blocks, of nested blocks, and the scales of the first, behind all else: `nested` is the second. */
export const offsetBuffers = (nested: View = unused[0]!): readonly View[] => [unused[0]!, nested, unused[0]!];

export const bytesOf = (view: View) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

export const dynamic = createDynamicMap().values;

/** Some codebook of each width. */
export const valuesOf: Readonly<Record<number, Float32Array>> = {
  4: Codebook.named("nf4").values,
  8: dynamic,
  ...Object.fromEntries([2, 3, 5, 6, 7].map((bits) => [bits, createNormalMap(undefined, true, bits).values])),
};

/** Random codes with their scales, as kernels get them and as numbers. */
export interface Coded {
  values: Float32Array;
  codes: Uint8Array;
  block: number;
  scale: Float32Array;
  buffers: readonly View[]; // codes, absmax, nested absmax, codebook, nested codebook
  offsets: readonly View[];
  args: readonly number[]; // struct scale_layout
  nested: number;
}

export function randomCodes(
  count: number,
  values: Float32Array,
  block: number,
  nestedBlock: number,
  seed: number,
): Coded {
  const noise = normal(count, seed);
  const codes = Uint8Array.from(noise, (x) => Math.floor(Math.abs(x) * 1e4) % values.length);
  const blocks = Math.ceil(count / block);
  const packed = Uint8Array.from(reference.pack(codes, values));
  const own = { values, codes, block, nested: nestedBlock ? 1 : 0 };
  const scale = normal(blocks, seed + 1).map((x) => 0.05 + Math.abs(x));
  if (!nestedBlock) {
    const buffers = [packed, scale, scale, kernelCodes(values), kernelCodes(values)];
    return { ...own, scale, buffers, offsets: offsetBuffers(), args: scaleArguments(block) };
  }
  const absmax = Uint8Array.from(scale, (x) => Math.floor(x * 1e4) % 256);
  const nestedAbsmax = normal(Math.ceil(blocks / nestedBlock), seed + 2).map((x) => 0.05 + Math.abs(x));
  const offset = Math.fround(0.7);
  for (let i = 0; i < blocks; i++)
    scale[i] = Math.fround(dynamic[absmax[i]!]! * nestedAbsmax[Math.floor(i / nestedBlock)]!) + offset;
  const buffers = [packed, absmax, nestedAbsmax, kernelCodes(values), kernelCodes(dynamic)];
  const behind = offsetBuffers(Float32Array.of(offset));
  return { ...own, scale, buffers, offsets: behind, args: scaleArguments(block, nestedBlock) };
}

/** What the codes stand for: products in fp32, as bitsandbytes defines it. */
export const weightsOf = ({ codes, values, scale, block }: Coded) =>
  new Float32Array(codes).map((code, i) => values[code]! * scale[Math.floor(i / block)]!);
