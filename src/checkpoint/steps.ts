// Owns the pieces of work that checkpoints are made by: where a weight comes from, and what is written for it.
import { currentDevice } from "../device.ts";
import { dtypeCode, type FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { native, size } from "../native.ts";
import { dequantize4bit, quantize4bit } from "../quantize.ts";
import { matrixOf } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import type { Step } from "./checkpoint.ts";
import type { GgufTensor } from "./gguf.ts";
import type { SafetensorsDtype } from "./header.ts";
import type { SafetensorsTensor, SafetensorsValues } from "./safetensors.ts";
import { floatDtypes, type QuantType4bit, type StorageDtype, type Stored, specs4bit } from "./state.ts";
import { fromStateDict, toStateDict } from "./statedict.ts";

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
    const made = upload(tensor.values, tensor.shape, dtype);
    tensor.release();
    return made;
  };
  return { name: tensor.name, shape: tensor.shape, dtype, format: tensor.dtype, inputBytes: tensor.byteLength, load };
}

function upload(values: SafetensorsValues, shape: readonly number[], dtype: FloatDType): Tensor<FloatDType> {
  return Tensor.from(values as Float32Array, shape, { dtype });
}

/** A tensor of a GGUF file, expanded to a dtype. */
export function fromGguf(tensor: GgufTensor, dtype: FloatDType): Source {
  const { name, shape, format } = tensor;
  const load = () => {
    const device = currentDevice();
    const bytes = tensor.read();
    const blocks = [bytes, size(bytes.length), dtypeCode(dtype, name)] as const;
    const pointer = native.bnb_tensor_from_gguf(device.pointer, tensor.type, ...matrixOf(shape), ...blocks);
    const made = new Tensor(pointer, dtype, shape, device);
    tensor.release(bytes);
    return made;
  };
  return { name, shape, dtype, format, inputBytes: tensor.byteLength, load };
}

/** A quantised weight of a checkpoint, dequantised. */
export function fromStored(stored: Stored, dtype?: FloatDType): Source {
  const inputBytes = stored.parts.reduce((sum, part) => sum + part.byteLength, 0);
  const { name, format } = stored;
  if (stored.format === "int8") throw new BnbError(`${name} is int8, which is not supported yet.`, "unsupported");
  const load = () => {
    using q = fromStateDict(stored);
    return dequantize4bit(q, { dtype: dtype ?? stored.state.dtype });
  };
  return { name, shape: stored.state.shape, dtype: dtype ?? stored.state.dtype, format, inputBytes, load };
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

/** Writes a tensor as it is, or, where it holds floats and a dtype is wanted, in that dtype. */
export function keepStep(tensor: SafetensorsTensor, dtype: FloatDType | undefined): Step {
  const held = floatDtypeOf(tensor.dtype);
  if (held === undefined || dtype === undefined || held === dtype || tensor.byteLength === 0) return copyStep(tensor);
  return castStep(fromSafetensors(tensor), dtype);
}

export interface Quantize4bitStepOptions {
  readonly quantType: QuantType4bit;
  readonly blocksize: number;
  readonly doubleQuant: boolean;
  readonly storage: StorageDtype;
}

/** Writes a weight as the tensors of a 4-bit state, having rounded it to a dtype first, as transformers does. */
export function quantize4bitStep(source: Source, dtype: FloatDType, options: Quantize4bitStepOptions): Step {
  const { name, shape, inputBytes } = source;
  const { quantType, blocksize, doubleQuant, storage } = options;
  const specs = specs4bit(name, shape, { quantType, blocksize, storage, nestedBlocksize: doubleQuant ? 256 : 0 });
  const run: Step["run"] = (write) => {
    using tensor = loadAs(source, dtype);
    using q = quantize4bit(tensor, { quantType, blocksize, compressStatistics: doubleQuant });
    const parts = toStateDict(name, q, { quantStorage: storage });
    // The state's length is open until it is written, so it goes before what follows it in the file.
    parts.sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
    for (const part of parts) write(part.name, part.bytes as ArrayBufferView);
  };
  return { name, specs, inputBytes, parameters: elements(shape), run };
}

/** The source's tensor in a dtype; errors name the tensor. */
function loadAs(source: Source, dtype: FloatDType): Tensor<FloatDType> {
  const loaded = source.load();
  if (loaded.dtype === dtype) return loaded;
  using wide = loaded;
  return wide.cast(dtype);
}
