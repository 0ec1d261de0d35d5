// Quantised tensors: codes, scales and codebook as one handle, put together from its parts and taken apart again.
import { Codebook } from "./codebook.ts";
import { type Device, type DeviceName, deviceOf } from "./device.ts";
import { dtypeBytes, type FloatDType } from "./dtype.ts";
import { Handle } from "./handle.ts";
import { inspect } from "./inspect.ts";
import { type MatmulOptions, matmulQuantized } from "./matmul.ts";
import { floatDtypes, type NativePointer, native, parts as numbers, size } from "./native.ts";
import { format, matrixOf, type Shape, sizeOf } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** The 4-bit codebooks that bitsandbytes and this library know by name. */
export type QuantType = (typeof quantTypes)[number];

/** Every one of them: an array, so that tsc names the choices where one is wrong. */
export const quantTypes = ["nf4", "fp4", "af4"] as const;

/** The parts of quantised scales: upstream's `QuantState.state2` and `offset`. */
export interface NestedScales {
  /** [blocks / blocksize] of any float dtype, float32 in bitsandbytes: the scale of each block of scale codes. */
  absmax: Tensor<FloatDType>;
  /** The values that a scale's code stands for: 256 in bitsandbytes. */
  code: Codebook;
  /** Scales that share one of their own: 256 in bitsandbytes. */
  blocksize: number;
  /** The mean of the scales, which was taken off before they were quantised. */
  offset: number;
  /**
   * float32 [blocks / blocksize]: an offset for each block of scale codes instead, as weights have that were joined by
   * rows.
   */
  offsets?: Tensor<"float32"> | undefined;
  /**
   * As `absmax`, of its dtype: the scale of each block of offset codes, where the offsets of blocks are quantised too,
   * as GGUF's minima are. They have the scales' codebook.
   */
  offsetsAbsmax?: Tensor<FloatDType> | undefined;
}

/** What {@link QuantizedTensor.fromParts} puts together. */
export interface QuantizedParts {
  /**
   * uint8: k-bit codes as one string of bits, the first bit of a byte its highest; codes of 8 bits may be signed
   * bytes.
   */
  codes: Tensor<"uint8"> | Tensor<"int8">;
  /**
   * A scale for each block: float32, float16 or bfloat16; or, where `nested` is given, their codes as one string of
   * bits.
   */
  absmax: Tensor<FloatDType> | Tensor<"uint8">;
  /**
   * What is added to the elements of each block once they are scaled, in any float dtype: MLX's biases, GGUF's
   * minima. Their codes, as `absmax` has those of scales, where `nested.offsetsAbsmax` is given.
   */
  offsets?: Tensor<FloatDType> | Tensor<"uint8"> | undefined;
  /** The values that a code stands for. */
  code: Codebook;
  /** Elements that share a scale; blocks run over the flattened tensor. */
  blocksize: number;
  /** The shape of the tensor that the codes stand for. */
  shape: Shape;
  /** The dtype that it had, and is dequantised to by default. */
  dtype?: FloatDType;
  nested?: NestedScales | undefined;
}

/** What {@link QuantizedTensor.state2} holds: the parts of quantised scales. */
export interface State2 extends Omit<NestedScales, "code" | "offset"> {
  /** The values that a scale's code stands for. */
  code: Float32Array;
}

/**
 * A tensor as k-bit codes with one scale a block. Made by `quantize4bit` and `quantizeBlockwise`, or from the parts of
 * a checkpoint. It has the fields of bitsandbytes' `QuantState`.
 *
 * @example
 * ```ts
 * using q = quantize4bit(Tensor.from(new Float32Array(128).fill(-2), [2, 64]));
 * q.absmax.read(); // → [2, 2]
 * q.codes.read().slice(0, 2); // → [0, 0]
 *
 * // From its parts, as they stand in a checkpoint.
 * const { codes, blocksize, shape } = q;
 * const absmax = Tensor.from([2, 4]);
 * using other = QuantizedTensor.fromParts({ codes, absmax, code: Codebook.named("nf4"), blocksize, shape });
 * dequantize4bit(other).read()[64]; // → -4
 * ```
 */
export class QuantizedTensor extends Handle {
  readonly #shape: Shape;
  /** The dtype that it had before, and is dequantised to by default. */
  readonly dtype: FloatDType;
  readonly device: Device;
  /** Bits of a code: 2 to 8. */
  readonly bits: number;
  /** The name of a 4-bit codebook; undefined for other widths and for codebooks of the user's own. */
  readonly quantType: QuantType | undefined;
  /** Elements that share a scale. */
  readonly blocksize: number;
  /** Scales that share one of their own; 0 where the scales are plain. */
  readonly nestedBlocksize: number;
  readonly #stores: Stores;

  /** @internal Takes over a native handle, and a shape that nobody changes. */
  constructor(
    pointer: NativePointer,
    shape: Shape,
    dtype: FloatDType,
    device: Device,
    code: Codebook,
    blocksize: number,
    nestedBlocksize: number,
    stores: Stores = defaultStores(nestedBlocksize > 0),
  ) {
    super("QuantizedTensor", pointer, bytesOf(sizeOf(shape), code.bits, blocksize, nestedBlocksize, stores));
    this.#stores = stores;
    this.#shape = shape;
    this.dtype = dtype;
    this.device = device;
    this.bits = code.bits;
    this.quantType = code.bits === 4 ? (code.codebookName as QuantType | undefined) : undefined;
    this.blocksize = blocksize;
    this.nestedBlocksize = nestedBlocksize;
  }

  /**
   * Puts a quantised tensor together from its parts, whose memory it shares.
   *
   * @throws BnbError if a part's dtype, size or device does not fit the others; the message names it
   */
  static fromParts(parts: QuantizedParts): QuantizedTensor {
    const me = signatures.fromParts;
    const { codes, absmax, offsets, code, blocksize, shape, dtype = "float32", nested } = me.members(parts, "parts");
    const to = me.shape(shape, "shape", 1);
    me.code(dtype, "dtype", floatDtypes);
    me.whole(blocksize, "blocksize", 1);
    const state2 = nested === undefined ? undefined : signatures.nested.members(nested, "nested");
    const pointer = native.bnb_quantized_from(
      me.tensor(codes, "codes"),
      ...matrixOf(to),
      me.codebook(code, "code"),
      size(blocksize),
      me.tensor(absmax, "absmax"),
      offsets === undefined ? null : me.tensor(offsets, "offsets"),
      state2 ? me.codebook(state2.code, "nested.code") : null,
      size(state2 ? me.whole(state2.blocksize, "nested.blocksize", 1) : 0),
      state2 ? me.tensor(state2.absmax, "nested.absmax") : null,
      state2 ? me.finite(state2.offset, "nested.offset") : 0,
      state2?.offsets === undefined ? null : me.tensor(state2.offsets, "nested.offsets"),
      state2?.offsetsAbsmax === undefined ? null : me.tensor(state2.offsetsAbsmax, "nested.offsetsAbsmax"),
    );
    const stores: Stores = {
      absmax: state2 ? "uint8" : (absmax.dtype as FloatDType),
      offsets: state2?.offsetsAbsmax ? "uint8" : (offsets?.dtype as FloatDType | undefined),
      nested: state2 && {
        bits: state2.code.bits,
        dtype: state2.absmax.dtype,
        hasOffsets: state2.offsets !== undefined,
      },
    };
    return new QuantizedTensor(
      me.made(pointer),
      to,
      dtype,
      codes.device,
      code,
      blocksize,
      state2?.blocksize ?? 0,
      stores,
    );
  }

  /** A copy of the dimensions of the tensor that the codes stand for. */
  get shape(): Shape {
    return this.#shape.slice();
  }

  /** The number of elements that the codes stand for. */
  get size(): number {
    return sizeOf(this.#shape);
  }

  /** Whether the scales are quantised too: upstream's `compress_statistics`. */
  get nested(): boolean {
    return this.nestedBlocksize > 0;
  }

  /** Bytes of codes and scales in memory. */
  get byteLength(): number {
    return bytesOf(this.size, this.bits, this.blocksize, this.nestedBlocksize, this.#stores);
  }

  /** Bits an element, codes and scales together. */
  get bitsPerElement(): number {
    return (8 * this.byteLength) / this.size;
  }

  /** uint8 [bytes]: k-bit codes as one string of bits, the first bit of a byte its highest. Shares the memory. */
  get codes(): Tensor<"uint8"> {
    return new Tensor(this.#part("codes"), "uint8", [codeBytes(this.size, this.bits)], this.device);
  }

  /**
   * A scale for each block: float32 where this library quantised, or what it was put together of; where {@link nested}
   * uint8, their codes as one string of bits. Shares the memory.
   */
  get absmax(): Tensor<FloatDType> | Tensor<"uint8"> {
    return this.#ofBlocks("absmax", this.#stores.absmax);
  }

  /**
   * What is added to each block's elements once they are scaled, or its codes where `state2` has `offsetsAbsmax`;
   * undefined where there is nothing. Shares the memory.
   */
  get offsets(): Tensor<FloatDType> | Tensor<"uint8"> | undefined {
    const { offsets } = this.#stores;
    return offsets && this.#ofBlocks("offsets", offsets);
  }

  #ofBlocks(part: "absmax" | "offsets", dtype: FloatDType | "uint8"): Tensor<FloatDType> | Tensor<"uint8"> {
    const blocks = Math.ceil(this.size / this.blocksize);
    const shape = [dtype === "uint8" ? codeBytes(blocks, this.#stores.nested!.bits) : blocks];
    return new Tensor(this.#part(part), dtype as FloatDType, shape, this.device);
  }

  /** The 2^bits values that a code stands for. Upstream: `quant_map`. */
  get code(): Float32Array {
    return this.#values("code", 2 ** this.bits);
  }

  /** The scales' own scales and codebook where they are quantised too, else undefined. Shares the memory. */
  get state2(): State2 | undefined {
    const { nested, offsets } = this.#stores;
    if (!nested) return undefined;
    const { bits, dtype, hasOffsets } = nested;
    const shape = [Math.ceil(Math.ceil(this.size / this.blocksize) / this.nestedBlocksize)];
    const { device } = this;
    return {
      absmax: new Tensor(this.#part("nestedAbsmax"), dtype, shape, device),
      code: this.#values("nestedCode", 2 ** bits),
      blocksize: this.nestedBlocksize,
      offsets: hasOffsets ? new Tensor(this.#part("nestedOffsets"), "float32", shape, device) : undefined,
      offsetsAbsmax: offsets === "uint8" ? new Tensor(this.#part("offsetsAbsmax"), dtype, shape, device) : undefined,
    };
  }

  /** @internal How scales and offsets are stored. */
  get stores(): Stores {
    return this.#stores;
  }

  /** The mean of the scales, which was taken off before they were quantised; 0 where the scales are plain. */
  get offset(): number {
    return native.bnb_quantized_offset(this.pointer);
  }

  #part(part: keyof typeof numbers): NativePointer {
    const me = signatures.part;
    return me.made(native.bnb_quantized_part(me.quantized(this, "this"), numbers[part]));
  }

  #values(part: "code" | "nestedCode", length: number): Float32Array {
    using tensor = new Tensor(this.#part(part), "float32", [length], this.device);
    return tensor.read();
  }

  /** `x · wᵀ + bias` with this weight [n, k], which stays as it is: [..., n] of x [..., k], in x's dtype. */
  matmul<D extends FloatDType>(x: Tensor<D>, options: MatmulOptions = {}): Tensor<D> {
    const me = signatures.matmul;
    return matmulQuantized(me, x, this, me.options(options));
  }

  /** A copy on another device. */
  to(device: Device | DeviceName): QuantizedTensor {
    const me = signatures.to;
    const target = deviceOf(me, device);
    using codes = this.codes;
    using absmax = this.absmax;
    const { state2 } = this;
    using nested = state2?.absmax;
    using nestedOffsets = state2?.offsets;
    using offsetsAbsmax = state2?.offsetsAbsmax;
    using offsets = this.offsets;
    using movedCodes = codes.to(target);
    using movedAbsmax = absmax.to(target);
    using movedOffsets = offsets?.to(target);
    using movedNested = nested?.to(target);
    using movedNestedOffsets = nestedOffsets?.to(target);
    using movedOffsetsAbsmax = offsetsAbsmax?.to(target);
    const { blocksize, dtype, offset } = this;
    return QuantizedTensor.fromParts({
      codes: movedCodes,
      absmax: movedAbsmax,
      offsets: movedOffsets,
      code: this.quantType ? Codebook.named(this.quantType) : Codebook.from(this.code),
      blocksize,
      shape: this.#shape,
      dtype,
      nested: movedNested && {
        absmax: movedNested,
        code: Codebook.from(state2!.code),
        blocksize: this.nestedBlocksize,
        offset,
        offsets: movedNestedOffsets,
        offsetsAbsmax: movedOffsetsAbsmax,
      },
    });
  }

  /** Resolves to this tensor when its device has done all that was asked of it, without blocking the event loop. */
  async ready(): Promise<this> {
    void this.pointer; // a disposed tensor is never ready
    await this.device.ready();
    return this;
  }

  override toString(): string {
    const nested = this.nested ? ", nested" : "";
    return `QuantizedTensor(${this.quantType ?? `${this.bits}-bit`} ${format(this.#shape)}, blocksize ${this.blocksize}${nested}, on ${this.device})`;
  }

  /** What JSON.stringify shows: what the tensor is. Its codes are not among it, nor any address. */
  toJSON(): { quantType: QuantType | undefined; bits: number; shape: Shape; blocksize: number; device: string } {
    const { quantType, bits, shape, blocksize, device } = this;
    return { quantType, bits, shape, blocksize, device: device.kind };
  }

  /** What console.log shows. */
  [inspect](): string {
    return this.disposed ? `${this} disposed` : String(this);
  }
}

function codeBytes(elements: number, bits: number): number {
  return Math.ceil((elements * bits) / 8);
}

/** How scales and offsets of blocks are stored: floats of a dtype, or uint8 for codes. */
export interface Stores {
  readonly absmax: FloatDType | "uint8";
  readonly offsets?: FloatDType | "uint8" | undefined;
  /** What codes are: their bits, the dtype of their blocks' scales, and whether those have offsets of their own. */
  readonly nested?: { readonly bits: number; readonly dtype: FloatDType; readonly hasOffsets: boolean } | undefined;
}

/** @internal As bitsandbytes stores them, and this library where it quantises. */
export function defaultStores(nested: boolean): Stores {
  return nested ? { absmax: "uint8", nested: { bits: 8, dtype: "float32", hasOffsets: false } } : { absmax: "float32" };
}

function bytesOf(elements: number, bits: number, blocksize: number, nestedBlocksize: number, stores: Stores): number {
  const { absmax, offsets, nested } = stores;
  const blocks = Math.ceil(elements / blocksize);
  const groups = nestedBlocksize ? Math.ceil(blocks / nestedBlocksize) : 0;
  const ofBlocks = (dtype: FloatDType | "uint8") =>
    dtype === "uint8" ? codeBytes(blocks, nested!.bits) : blocks * dtypeBytes(dtype);
  const ofGroups = nested ? dtypeBytes(nested.dtype) * (offsets === "uint8" ? 2 : 1) + (nested.hasOffsets ? 4 : 0) : 0;
  return codeBytes(elements, bits) + ofBlocks(absmax) + (offsets ? ofBlocks(offsets) : 0) + groups * ofGroups;
}

const signatures = {
  fromParts: new Signature("QuantizedTensor.fromParts", {
    options: ["codes", "absmax", "offsets", "code", "blocksize", "shape", "dtype", "nested"],
    native: {
      nested_code: "nested.code",
      nested_block: "nested.blocksize",
      nested_absmax: "nested.absmax",
      nested_offsets: "nested.offsets",
      offsets_absmax: "nested.offsetsAbsmax",
    },
  }),
  nested: new Signature("QuantizedTensor.fromParts", {
    options: ["absmax", "code", "blocksize", "offset", "offsets", "offsetsAbsmax"],
  }),
  part: new Signature("QuantizedTensor"),
  matmul: new Signature("QuantizedTensor.matmul", { options: ["bias", "precision"] }),
  to: new Signature("QuantizedTensor.to"),
};
