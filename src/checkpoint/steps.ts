// The pieces of work that checkpoints are made by: where a weight comes from, and what is written for it.
import { Codebook, createNormalMap } from "../codebook.ts";
import { compare } from "../compare.ts";
import { currentDevice } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { Int8Weight } from "../int8_weight.ts";
import { dtypes, native, size } from "../native.ts";
import { dequantizeBlockwise, quantizeBlockwise, type ScalesOptions } from "../quantize.ts";
import { matrixOf } from "../shape.ts";
import { Signature } from "../signature.ts";
import { Tensor } from "../tensor.ts";
import type { Step } from "./checkpoint.ts";
import type { GgufTensor } from "./gguf.ts";
import type { SafetensorsDtype } from "./header.ts";
import type { StoredQuantType } from "./huggingface.ts";
import { ggufPieces, type Pieces, plainPieces, runLength, storedPieces, wholePiece } from "./pieces.ts";
import type { SafetensorsTensor, SafetensorsValues } from "./safetensors.ts";
import { floatDtypes, isOurs, type StorageDtype, type Stored, specsBlockwise, specsInt8 } from "./state.ts";
import { fromStateDict, toStateDict } from "./statedict.ts";
import { transposed } from "./transpose.ts";
import type { TensorSource } from "./writer.ts";

/** A float weight that can be had as a tensor, from whatever it is stored as. */
export interface Source {
  readonly name: string;
  readonly shape: readonly number[];
  /** The dtype that `load` gives. */
  readonly dtype: FloatDType;
  /** How it is stored, for people: `BF16`, `Q4_K`, `nf4`. */
  readonly format: string;
  readonly inputBytes: number;
  /** A tensor of the weight; the caller disposes of it. */
  load(): Tensor<FloatDType>;
  /** The same in pieces, unless it can only be had whole. */
  readonly pieces?: Pieces | undefined;
}

/** The library's dtype for a safetensors one, where there is one for weights. */
export function floatDtypeOf(dtype: SafetensorsDtype): FloatDType | undefined {
  return (Object.keys(floatDtypes) as FloatDType[]).find((name) => floatDtypes[name] === dtype);
}

/** A float tensor of a checkpoint. */
export function fromSafetensors(tensor: SafetensorsTensor): Source {
  const dtype = floatDtypeOf(tensor.dtype);
  if (dtype === undefined) {
    throw new BnbError(`${tensor.name} is ${tensor.dtype}, expected F32, F16 or BF16.`, "unsupported");
  }
  const load = () => {
    const device = currentDevice();
    return tensor.load(dtype, tensor.shape, { device, mmap: true }); // it is not kept, so it need not be copied
  };
  const { name, shape, byteLength: inputBytes } = tensor;
  return { name, shape, dtype, format: tensor.dtype, inputBytes, load, pieces: plainPieces(tensor, dtype) };
}

function upload(values: SafetensorsValues, shape: readonly number[], dtype: FloatDType): Tensor<FloatDType> {
  return Tensor.from(values as Float32Array, shape, { dtype });
}

/** A tensor of a GGUF file, expanded to a dtype. */
export function fromGguf(tensor: GgufTensor, dtype: FloatDType): Source {
  const { name, shape, format } = tensor;
  const load = () => {
    const device = currentDevice();
    if (tensor.plain === dtype) return tensor.load({ device, mmap: true });
    const bytes = tensor.read();
    const blocks = [bytes, size(bytes.length), dtypes[dtype]] as const;
    const pointer = native.bnb_tensor_from_gguf(device.pointer, tensor.type, ...matrixOf(shape), ...blocks);
    const made = new Tensor(new Signature(name).made(pointer), dtype, shape, device);
    tensor.release(bytes);
    return made;
  };
  return { name, shape, dtype, format, inputBytes: tensor.byteLength, load, pieces: ggufPieces(tensor, dtype) };
}

/**
 * A quantised weight of a checkpoint, dequantised: to the dtype that it had, of which int8 keeps no record, or float16.
 */
export function fromStored(stored: Stored, dtype?: FloatDType): Source {
  const inputBytes = stored.parts.reduce((sum, part) => sum + part.byteLength, 0);
  const { name, format } = stored;
  if (stored.format === "int8") {
    const to = dtype ?? "float16";
    const load = () => {
      using w = fromStateDict(stored);
      return w.dequantize({ dtype: to });
    };
    return { name, shape: stored.codes.shape, dtype: to, format, inputBytes, load, pieces: storedPieces(stored, to) };
  }
  const to = dtype ?? stored.state.dtype;
  const load = () => {
    using q = fromStateDict(stored);
    return dequantizeBlockwise(q, { dtype: to });
  };
  const { shape } = stored.state;
  const pieces = isOurs(stored) ? storedPieces(stored, to) : wholePiece(shape, load);
  return { name, shape, dtype: to, format, inputBytes, load, pieces };
}

/** A matrix that is stored by columns, as one by rows, or the other way round. */
export function transposedSource(source: Source): Source {
  const [rows, columns] = matrixOf(source.shape) as readonly [number, number];
  const load = () => {
    using tensor = source.load();
    return upload(
      transposed(tensor.read() as Float32Array, [Number(rows), Number(columns)]),
      [columns, rows],
      source.dtype,
    );
  };
  return { ...source, shape: [columns, rows], load, pieces: undefined };
}

const elements = (shape: readonly number[]) => shape.reduce((product, extent) => product * extent, 1);

/** Writes a tensor as it is. */
export function copyStep(tensor: SafetensorsTensor): Step {
  const { name, dtype, shape, byteLength } = tensor;
  const parameters = floatDtypeOf(dtype) ? elements(shape) : 0;
  const run: Step["run"] = (write) => {
    write(name, tensor.bytes);
    tensor.release();
  };
  return { name, specs: [{ name, dtype, shape }], inputBytes: byteLength, parameters, run };
}

/** Writes a weight in a float dtype. */
export function castStep(source: Source, dtype: FloatDType): Step {
  const { name, shape, inputBytes } = source;
  const run: Step["run"] = (write) => {
    using tensor = loadAs(source, dtype);
    write(name, tensor.read());
  };
  return { name, specs: [{ name, dtype: floatDtypes[dtype], shape }], inputBytes, parameters: elements(shape), run };
}

/**
 * Writes a tensor as it is, or, where it holds floats and a dtype is wanted, in that dtype. What float16 would make
 * infinities of, as of GPT-NeoX's masks of -1e9, stays as it is.
 */
export function keepStep(tensor: SafetensorsTensor, dtype: FloatDType | undefined): Step {
  const held = floatDtypeOf(tensor.dtype);
  if (held === undefined || dtype === undefined || held === dtype || tensor.byteLength === 0) return copyStep(tensor);
  if (dtype === "float16" && isBeyondHalf(tensor, held)) return { ...copyStep(tensor), isBeyondHalf: true };
  return castStep(fromSafetensors(tensor), dtype);
}

function isBeyondHalf(tensor: SafetensorsTensor, held: FloatDType): boolean {
  const pieces = plainPieces(tensor, held);
  for (const piece of pieces.runs(runLength(pieces))) {
    using wide = piece;
    using half = wide.cast("float16");
    if (compare(wide, half).nonFinite > compare(wide, wide).nonFinite) return true;
  }
  return false;
}

export interface QuantizeStepOptions {
  readonly quantType: Exclude<StoredQuantType, "int8">;
  readonly blocksize: number;
  readonly doubleQuant: boolean;
  readonly scales: NonNullable<ScalesOptions["scales"]>;
  readonly storage: StorageDtype;
}

/** Writes a weight as the tensors of a codebook's state, having rounded it to a dtype first, as transformers does. */
export function quantizeBlockwiseStep(source: Source, dtype: FloatDType, options: QuantizeStepOptions): Step {
  const { name, shape, inputBytes } = source;
  const { blocksize, doubleQuant, scales, storage } = options;
  const code = codebookOf(options.quantType);
  const quantType = options.quantType === "nf4" || options.quantType === "fp4" ? options.quantType : "blockwise";
  const nestedBlocksize = doubleQuant ? 256 : 0;
  const specs = specsBlockwise(name, shape, { quantType, bits: code.bits, blocksize, storage, nestedBlocksize });
  const run: Step["run"] = (write) => {
    using tensor = loadAs(source, dtype);
    using q = quantizeBlockwise(tensor, { code, blocksize, nested: doubleQuant, scales });
    writeParts(toStateDict(name, q, { quantStorage: storage }), write);
  };
  return { name, specs, inputBytes, parameters: elements(shape), run };
}

let sevenBits: Codebook | undefined;

/** The codebook of a format; of 7 bits, which no name is kept for, the normal float. */
function codebookOf(quantType: Exclude<StoredQuantType, "int8">): Codebook {
  if (quantType !== "nf7") return Codebook.named(quantType);
  sevenBits ??= createNormalMap(undefined, true, 7);
  return sevenBits;
}

/**
 * Writes a weight as the tensors of int8, having rounded it to a dtype first, and then to float16, as transformers
 * does.
 */
export function quantizeInt8Step(source: Source, dtype: FloatDType): Step {
  const { name, shape, inputBytes } = source;
  const run: Step["run"] = (write) => {
    using tensor = loadAs(source, dtype);
    using w = Int8Weight.quantize(tensor);
    writeParts(toStateDict(name, w), write);
  };
  return { name, specs: specsInt8(name, shape), inputBytes, parameters: elements(shape), run };
}

/** In the file's order, because a part whose length is open until it is written goes before what follows it. */
function writeParts(parts: TensorSource[], write: Parameters<Step["run"]>[0]): void {
  parts.sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
  for (const part of parts) write(part.name, part.bytes as ArrayBufferView);
}

/** The source's tensor in a dtype; errors name the tensor. */
function loadAs(source: Source, dtype: FloatDType): Tensor<FloatDType> {
  const loaded = source.load();
  if (loaded.dtype === dtype) return loaded;
  using wide = loaded;
  return wide.cast(dtype);
}
