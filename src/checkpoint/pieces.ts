// Weights a piece at a time, so that looking through a file takes memory for a piece, not for all of it as floats.
import { currentDevice } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { Int8Weight } from "../int8_weight.ts";
import { dtypes, native, size } from "../native.ts";
import { dequantizeBlockwise } from "../quantize.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Signature } from "../signature.ts";
import { Tensor } from "../tensor.ts";
import type { GgufTensor } from "./gguf.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import type { Stored4bit, StoredBlockwise, StoredInt8, StoredOurs } from "./state.ts";
import { storedCodebook } from "./statedict.ts";

/** A weight as runs of its elements, in order, each a flat tensor of floats. */
export interface Pieces {
  /** Every run but the last has a multiple of so many elements. */
  readonly unit: number;
  /**
   * Runs of at most so many elements, a multiple of `unit`. The caller disposes of each before it asks for the next.
   */
  runs(elements: number): Iterable<Tensor<FloatDType>>;
}

/** About what a piece may have: 1 MB as float32. */
const elementsWanted = 2 ** 18;

/** How many elements a run of all these weights can have, so that runs of one lie beside those of another. */
export function runLength(...weights: readonly Pieces[]): number {
  const unit = weights.reduce((all, { unit }) => leastCommonMultiple(all, unit), 1);
  return unit * Math.max(1, Math.floor(elementsWanted / unit));
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y > 0) [x, y] = [y, x % y];
  return (a / x) * b;
}

function* spans(total: number, elements: number): Iterable<readonly [start: number, end: number]> {
  for (let start = 0; start < total; start += elements) yield [start, Math.min(start + elements, total)];
}

const sizeOf = (shape: readonly number[]) => shape.reduce((product, extent) => product * extent, 1);

/** A weight that can only be had whole, as one piece. */
export function wholePiece(shape: readonly number[], load: () => Tensor<FloatDType>): Pieces {
  function* runs() {
    using whole = load();
    yield whole.reshape([-1]);
  }
  return { unit: Math.max(1, sizeOf(shape)), runs };
}

/** A float tensor of a file. */
export function plainPieces(tensor: SafetensorsTensor, dtype: FloatDType): Pieces {
  function* runs(elements: number) {
    const values = tensor.values as Float32Array;
    for (const [start, end] of spans(values.length, elements))
      yield Tensor.from(values.subarray(start, end), undefined, { dtype }) as Tensor<FloatDType>;
    tensor.release();
  }
  return { unit: 1, runs };
}

/** A quantised weight of a checkpoint, dequantised to a dtype. */
export function storedPieces(stored: StoredOurs, dtype: FloatDType): Pieces {
  return stored.format === "int8" ? int8Pieces(stored, dtype) : blockwisePieces(stored, dtype);
}

function int8Pieces({ codes, absmax }: StoredInt8, dtype: FloatDType): Pieces {
  const [rows, columns] = codes.shape as [number, number];
  function* runs(elements: number) {
    const [values, scales] = [codes.values as Int8Array, absmax.values as Float32Array];
    for (const [start, end] of spans(rows, elements / columns)) {
      using CB = Tensor.from(values.subarray(start * columns, end * columns), [end - start, columns]);
      using SCB = Tensor.from(scales.subarray(start, end));
      using matrix = new Int8Weight(CB, SCB).dequantize({ dtype });
      yield matrix.reshape([-1]);
    }
    codes.release();
    absmax.release();
  }
  return { unit: Math.max(1, columns), runs };
}

/** Blocks, and blocks of their scales, begin with a piece; so does a byte of codes. */
function blockwisePieces(stored: Stored4bit | StoredBlockwise, dtype: FloatDType): Pieces {
  const { state } = stored;
  const { blocksize, nested } = state;
  const bits = state.quantType === "blockwise" ? state.bits : 4;
  const nestedBits = stored.nestedCode ? Math.log2(stored.nestedCode.byteLength / 4) : 8;
  const blocksOfUnit = nested ? leastCommonMultiple(nested.blocksize, nestedBits === 8 ? 1 : 8) : 1;
  function* runs(elements: number) {
    const code = storedCodebook(stored);
    const nestedCode = stored.nestedCode && storedCodebook(stored, stored.nestedCode);
    for (const [start, end] of spans(sizeOf(state.shape), elements)) {
      const [firstBlock, lastBlock] = [start / blocksize, Math.ceil(end / blocksize)];
      using codes = bitsOf(stored.codes, bits, start, end);
      using absmax = partOf(stored.absmax, nestedBits, firstBlock, lastBlock);
      using offsets = stored.offsets && partOf(stored.offsets, nestedBits, firstBlock, lastBlock);
      const of = { codes, absmax, offsets, code, blocksize, shape: [end - start], dtype };
      if (!nested) {
        using q = QuantizedTensor.fromParts(of);
        yield dequantizeBlockwise(q, { dtype });
        continue;
      }
      const [first, last] = [firstBlock / nested.blocksize, Math.ceil(lastBlock / nested.blocksize)];
      const ofGroups = (part: SafetensorsTensor | undefined) => part && floatsOf(part, first, last);
      using nestedAbsmax = ofGroups(stored.nestedAbsmax)!;
      using nestedOffsets = ofGroups(stored.nestedOffsets);
      using offsetsAbsmax = ofGroups(stored.offsetsAbsmax);
      const parts = { absmax: nestedAbsmax, code: nestedCode!, offsets: nestedOffsets, offsetsAbsmax };
      using q = QuantizedTensor.fromParts({ ...of, nested: { ...nested, ...parts } });
      yield dequantizeBlockwise(q, { dtype });
    }
    for (const part of stored.parts) part.release();
  }
  return { unit: leastCommonMultiple(blocksize * blocksOfUnit, 8), runs };
}

/** Codes [start, end) of a string of bits, which begin with a byte. */
function bitsOf(tensor: SafetensorsTensor, bits: number, start: number, end: number): Tensor<"uint8"> {
  return Tensor.from(tensor.bytes.subarray((start * bits) / 8, Math.ceil((end * bits) / 8))) as Tensor<"uint8">;
}

/** Floats [start, end), widened. */
function floatsOf(tensor: SafetensorsTensor, start: number, end: number): Tensor<"float32"> {
  using part = Tensor.from((tensor.values as Float32Array).subarray(start, end), undefined, {
    dtype: tensorDtype[tensor.dtype as keyof typeof tensorDtype],
  }) as Tensor<FloatDType>;
  return part.cast("float32");
}

const tensorDtype = { F32: "float32", F16: "float16", BF16: "bfloat16" } as const;

/** What blocks [start, end) have: floats, or codes of so many bits. */
const partOf = (tensor: SafetensorsTensor, bits: number, start: number, end: number) =>
  tensor.dtype === "U8" ? bitsOf(tensor, bits, start, end) : floatsOf(tensor, start, end);

/** A tensor of a GGUF file, expanded to a dtype, by rows. */
export function ggufPieces(tensor: GgufTensor, dtype: FloatDType): Pieces {
  const columns = tensor.shape.at(-1) ?? 1;
  const rows = sizeOf(tensor.shape) / columns;
  function* runs(elements: number) {
    const device = currentDevice();
    const bytes = tensor.read();
    const rowBytes = bytes.length / rows;
    for (const [start, end] of spans(rows, elements / columns)) {
      const part = bytes.subarray(start * rowBytes, end * rowBytes);
      const blocks = [part, size(part.length), dtypes[dtype]] as const;
      const extents = [size(end - start), size(columns)] as const;
      const pointer = native.bnb_tensor_from_gguf(device.pointer, tensor.type, ...extents, ...blocks);
      using matrix = new Tensor(new Signature(tensor.name).made(pointer), dtype, [end - start, columns], device);
      yield matrix.reshape([-1]);
    }
    tensor.release(bytes);
  }
  return { unit: columns, runs };
}
