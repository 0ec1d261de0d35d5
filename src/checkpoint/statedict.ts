// Owns the way between quantised tensors and the tensors of a state dict.
import { Codebook } from "../codebook.ts";
import { currentDevice, type Device } from "../device.ts";
import type { DType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import type { Checkpoint } from "./checkpoint.ts";
import type { SafetensorsDtype } from "./header.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import { packState, type QuantType4bit, type StorageDtype, type Stored4bit, specs4bit, stateKey } from "./state.ts";
import type { TensorSource } from "./writer.ts";

export interface StateDictOptions {
  /** The dtype that the codes are written as, upstream's `quant_storage`; `"uint8"` by default. */
  readonly quantStorage?: StorageDtype;
}

/**
 * The tensors that bitsandbytes' `Linear4bit` saves for a weight, ready for `writeSafetensors`.
 *
 * @param name the weight's name, such as `model.layers.0.mlp.up_proj.weight`
 * @throws BnbError if `q` is not NF4 or FP4, which are all that bitsandbytes loads
 */
export function toStateDict(name: string, q: QuantizedTensor, options: StateDictOptions = {}): TensorSource[] {
  const { quantStorage: storage = "uint8" } = options;
  const quantType = quantTypeOf(name, q);
  const { blocksize, dtype, shape, offset, nestedBlocksize } = q;
  const { state2 } = q;
  const nested = state2 && { blocksize: nestedBlocksize, offset };
  const data: Record<string, ArrayBufferView> = {
    [name]: readAndDispose(q.codes),
    [`${name}.absmax`]: readAndDispose(q.absmax),
    [`${name}.quant_map`]: q.code,
    [stateKey(name, quantType)]: packState({ quantType, blocksize, dtype, shape, nested }),
  };
  if (state2) {
    data[`${name}.nested_absmax`] = readAndDispose(state2.absmax);
    data[`${name}.nested_quant_map`] = state2.code;
  }
  return specs4bit(name, shape, { quantType, blocksize, storage, nestedBlocksize }).map((spec) => {
    const bytes = data[spec.name]!;
    return {
      name: spec.name,
      dtype: spec.dtype,
      shape: "atMost" in spec.shape ? [bytes.byteLength] : spec.shape,
      bytes,
    };
  });
}

function quantTypeOf(name: string, q: QuantizedTensor): QuantType4bit {
  const { quantType } = q;
  if (quantType === "nf4" || quantType === "fp4") return quantType;
  throw new BnbError(`${name} is ${q}, expected NF4 or FP4: bitsandbytes loads no other.`, "unsupported");
}

/**
 * The quantised tensor that a checkpoint holds, copied to a device.
 *
 * @param stored what `findQuantized` found
 */
export function fromStateDict(stored: Stored4bit, device: Device = currentDevice()): QuantizedTensor {
  const { state } = stored;
  using codes = bytesToTensor(stored.codes, device);
  using absmax = state.nested ? bytesToTensor(stored.absmax, device) : floatsToTensor(stored.absmax, device);
  const code = codebookOf(stored.format, stored.code);
  if (!state.nested) {
    return QuantizedTensor.fromParts({ codes, absmax, code, ...shared(stored) });
  }
  using nestedAbsmax = floatsToTensor(stored.nestedAbsmax!, device);
  const nested = { ...state.nested, absmax: nestedAbsmax, code: codebookOf("dynamic", stored.nestedCode!) };
  return QuantizedTensor.fromParts({ codes, absmax, code, nested, ...shared(stored) });
}

/**
 * A weight of a checkpoint on a device: a quantised tensor where its state is beside it, else a tensor of its dtype.
 *
 * ```ts
 * using model = checkpoint.openCheckpoint("./Qwen2.5-0.5B-nf4");
 * using w = checkpoint.loadWeight(model, "model.layers.0.mlp.up_proj.weight");
 * ```
 *
 * @throws BnbError if the checkpoint has no such weight, its state is damaged, or its dtype is none of the library's
 */
export function loadWeight(checkpoint: Checkpoint, name: string, device = currentDevice()): Tensor | QuantizedTensor {
  const stored = checkpoint.quantized.get(name);
  if (stored) {
    if (stored.format === "int8") throw new BnbError(`${name} is int8, which is not supported yet.`, "unsupported");
    return fromStateDict(stored, device);
  }
  const tensor = checkpoint.tensors.get(name);
  if (!tensor) throw new BnbError(`${checkpoint.path} has no weight ${JSON.stringify(name)}.`);
  const dtype = dtypes[tensor.dtype];
  if (!dtype)
    throw new BnbError(`${name} is ${tensor.dtype}, expected ${Object.keys(dtypes).join(", ")}.`, "unsupported");
  const made = Tensor.from(tensor.values as Float32Array, tensor.shape, { dtype: dtype as "float32", device });
  tensor.release();
  return made;
}

const dtypes: Partial<Record<SafetensorsDtype, DType>> = {
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  I8: "int8",
  U8: "uint8",
  I32: "int32",
};

/** A dense tensor as one to write, read when its turn comes. */
export function tensorSource(name: string, tensor: Tensor): TensorSource {
  const dtype = (Object.keys(dtypes) as SafetensorsDtype[]).find((key) => dtypes[key] === tensor.dtype)!;
  return { name, dtype, shape: tensor.shape, bytes: () => tensor.read() };
}

const shared = ({ state: { blocksize, shape, dtype } }: Stored4bit) => ({ blocksize, shape, dtype });

/** The named codebook where the file has its values, as nearly always; else one of the file's own. */
function codebookOf(name: "nf4" | "fp4" | "dynamic", tensor: SafetensorsTensor): Codebook {
  const values = tensor.values as Float32Array;
  const named = Codebook.named(name);
  const codebook = values.every((value, index) => value === named.values[index]) ? named : Codebook.from(values);
  tensor.release();
  return codebook;
}

function bytesToTensor(tensor: SafetensorsTensor, device: Device): Tensor<"uint8"> {
  const made = Tensor.from(tensor.bytes, [tensor.byteLength], { device });
  tensor.release();
  return made as Tensor<"uint8">;
}

function floatsToTensor(tensor: SafetensorsTensor, device: Device): Tensor<"float32"> {
  const made = Tensor.from(tensor.values as Float32Array, undefined, { device });
  tensor.release();
  return made;
}

function readAndDispose(tensor: Tensor): ArrayBufferView {
  using t = tensor;
  return t.read();
}
