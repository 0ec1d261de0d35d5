// The way between quantised tensors and the tensors of a state dict.

import { Codebook, codebookNames } from "../codebook.ts";
import { currentDevice, type Device, type DeviceName, deviceOf } from "../device.ts";
import { type DType, dtypeBytes, type FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { Int8Weight } from "../int8_weight.ts";
import { defaultStores, QuantizedTensor } from "../quantized.ts";
import { isOptions, type Signature } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import { signatures } from "./arguments.ts";
import { Checkpoint, within } from "./checkpoint.ts";
import { fromGptq, type StoredGptq } from "./gptq.ts";
import type { SafetensorsDtype } from "./header.ts";
import type { Placement } from "./mapped.ts";
import { fromMlx, type StoredMlx } from "./mlx.ts";
import { blocksizes, packState } from "./packed_state.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import {
  isOurs,
  type StorageDtype,
  type Stored,
  type Stored4bit,
  type StoredBlockwise,
  type StoredInt8,
  specsBlockwise,
  specsInt8,
  stateKey,
  storageDtypes,
} from "./state.ts";
import type { TensorSource } from "./writer.ts";

/** Options of {@link toStateDict}. */
export interface StateDictOptions {
  /** The dtype that the codes are written as, upstream's `quant_storage`; `"uint8"` by default. */
  readonly quantStorage?: StorageDtype;
}

/**
 * The tensors that bitsandbytes' `Linear4bit` or `Linear8bitLt` saves for a weight, ready for `writeSafetensors`.
 * Weights that bitsandbytes has no format for (widths other than 4 bits, codebooks other than NF4 and FP4) have the
 * same tensors under a key of this library's own, and bitsandbytes does not load them.
 *
 * @example
 * ```ts
 * using w = quantize4bit(Tensor.from(new Float32Array(64 * 64).fill(0.1), [64, 64]));
 * const tensors = checkpoint.toStateDict("fc.weight", w);
 * tensors[1]?.name; // → "fc.weight.absmax"
 * await checkpoint.writeSafetensors("./layer.safetensors", tensors);
 * ```
 *
 * @param name the weight's name, such as `model.layers.0.mlp.up_proj.weight`
 * @throws BnbError if the codes are no whole number of `quantStorage` elements
 */
export function toStateDict(
  name: string,
  q: QuantizedTensor | Int8Weight,
  options: StateDictOptions = {},
): TensorSource[] {
  const me = signatures.toStateDict;
  me.text(name, "name");
  const { quantStorage: storage = "uint8" } = me.options(options);
  me.choice(storage, "quantStorage", Object.keys(storageDtypes));
  if (Int8Weight.is(q)) return int8ToStateDict(name, q);
  me.kind(q, "q", ["QuantizedTensor"], ["Int8Weight"]);
  const { bits, blocksize, dtype, shape, offset, nestedBlocksize, stores, state2 } = q;
  const quantType = stateTypeOf(q);
  const nested = state2 && { blocksize: nestedBlocksize, offset };
  const data: Record<string, ArrayBufferView> = {
    [name]: readAndDispose(q.codes),
    [`${name}.absmax`]: readAndDispose(q.absmax),
    [`${name}.quant_map`]: q.code,
    [stateKey(name, quantType)]: packState({ quantType, bits, blocksize, dtype, shape, nested, stores }),
  };
  const put = (part: string, tensor: Tensor | undefined) => {
    if (tensor) data[`${name}.${part}`] = readAndDispose(tensor);
  };
  put("offsets", q.offsets);
  if (state2) {
    put("nested_absmax", state2.absmax);
    put("nested_offsets", state2.offsets);
    put("offsets_absmax", state2.offsetsAbsmax);
    data[`${name}.nested_quant_map`] = state2.code;
  }
  return specsBlockwise(name, shape, { quantType, bits, blocksize, storage, nestedBlocksize, stores }).map((spec) => {
    const bytes = data[spec.name]!;
    return {
      name: spec.name,
      dtype: spec.dtype,
      shape: "atMost" in spec.shape ? [bytes.byteLength] : spec.shape,
      bytes,
    };
  });
}

/** Whose state a weight has: bitsandbytes', where that can say all of it. */
export function stateTypeOf(q: QuantizedTensor): "nf4" | "fp4" | "blockwise" {
  const { quantType, blocksize, stores, nested } = q;
  const theirs = blocksizes.includes(blocksize) && Bun.deepEquals(stores, defaultStores(nested));
  return theirs && (quantType === "nf4" || quantType === "fp4") ? quantType : "blockwise";
}

function int8ToStateDict(name: string, w: Int8Weight): TensorSource[] {
  const [codes, scales, format] = specsInt8(name, w.shape);
  return [
    { ...codes, bytes: w.CB.read() },
    { ...scales, bytes: w.SCB.read() },
    { ...format, bytes: Uint8Array.of(0) }, // rows as they are
  ];
}

/** Options of {@link loadWeight}. */
export interface LoadWeightOptions {
  /**
   * The file's own pages in place of a copy, wherever a weight's bytes are the file's: nothing is read before it is
   * used, and processes share what they have read. On the CPU; on Metal where the file has them at a multiple of 16
   * bytes; elsewhere a copy. The file must stay as it is while the weight lives: what is written into it shows, and
   * once it is cut short, whatever reads the weight throws. False by default.
   */
  readonly mmap?: boolean | undefined;
}

/**
 * Copies a quantised weight of a checkpoint to a device.
 *
 * @example
 * ```ts
 * using model = checkpoint.openCheckpoint("./model-nf4");
 * const stored = model.quantized.get("model.layers.0.mlp.up_proj.weight");
 * using w = checkpoint.fromStateDict(stored!);
 * w.shape; // → [128, 64]
 * ```
 *
 * @param stored one of the weights that `findQuantized` returned
 */
export function fromStateDict(
  stored: Stored4bit | StoredBlockwise | StoredMlx | StoredGptq,
  device?: Device,
  options?: LoadWeightOptions,
): QuantizedTensor;
export function fromStateDict(stored: StoredInt8, device?: Device, options?: LoadWeightOptions): Int8Weight;
export function fromStateDict(
  stored: Stored,
  device?: Device,
  options?: LoadWeightOptions,
): QuantizedTensor | Int8Weight;
export function fromStateDict(
  stored: Stored,
  device: Device = currentDevice(),
  options: LoadWeightOptions = {},
): QuantizedTensor | Int8Weight {
  const me = signatures.fromStateDict;
  if (!isOptions(stored) || typeof stored.format !== "string" || typeof stored.codes !== "object")
    throw me.wrong("stored", stored, "what findQuantized found");
  me.device(device, "device");
  const to = placement(me, device, options);
  if (stored.format === "int8") return int8FromStateDict(stored, to);
  if (stored.format === "mlx") return fromMlx(stored, device);
  if (!isOurs(stored)) return fromGptq(stored, device);
  const { state } = stored;
  using codes = bytesToTensor(stored.codes, to);
  using absmax = blocksToTensor(stored.absmax, to);
  using offsets = stored.offsets && blocksToTensor(stored.offsets, to);
  const common = { codes, absmax, offsets, code: storedCodebook(stored), ...shared(stored) };
  if (!state.nested) return QuantizedTensor.fromParts(common);
  using nestedAbsmax = floatsToTensor(stored.nestedAbsmax!, to);
  using nestedOffsets = stored.nestedOffsets && floatsToTensor(stored.nestedOffsets, to);
  using offsetsAbsmax = stored.offsetsAbsmax && floatsToTensor(stored.offsetsAbsmax, to);
  const nested = {
    ...{ ...state.nested, absmax: nestedAbsmax, code: codebookOf(stored.nestedCode!) },
    ...{ offsets: nestedOffsets as Tensor<"float32"> | undefined, offsetsAbsmax },
  };
  return QuantizedTensor.fromParts({ ...common, nested });
}

function placement(me: Signature, device: Device, options: LoadWeightOptions): Placement {
  const { mmap = false } = me.options(options);
  return { device, mmap: me.boolean(mmap, "mmap") };
}

function int8FromStateDict({ codes, absmax }: StoredInt8, to: Placement): Int8Weight {
  return new Int8Weight(codes.load("int8", codes.shape, to), floatsToTensor(absmax, to) as Tensor<"float32">);
}

/**
 * Loads a weight of a checkpoint to a device: quantised if the checkpoint holds a quantisation state for it, else as a
 * tensor of its dtype.
 *
 * @example
 * ```ts
 * using model = checkpoint.openCheckpoint("./model-nf4");
 * using w = checkpoint.loadWeight(model, "model.layers.0.mlp.up_proj.weight");
 * if (w instanceof QuantizedTensor) w.quantType; // → "nf4"
 * ```
 *
 * @throws BnbError if the checkpoint has no such weight, its state is damaged, or its dtype is not supported
 */
export function loadWeight(
  checkpoint: Checkpoint,
  name: string,
  device: Device | DeviceName = currentDevice(),
  options: LoadWeightOptions = {},
): Tensor | QuantizedTensor | Int8Weight {
  const me = signatures.loadWeight;
  me.object(checkpoint, "checkpoint", Checkpoint);
  me.text(name, "name");
  const to = placement(me, deviceOf(me, device), options);
  const stored = checkpoint.quantized.get(name);
  if (stored) return within(checkpoint.path, () => fromStateDict(stored, to.device, options));
  const tensor = checkpoint.tensors.get(name);
  if (!tensor)
    throw me.fail(`name is ${JSON.stringify(name)}, and ${checkpoint.path} has no weight ${JSON.stringify(name)}.`);
  return within(checkpoint.path, () => dense(tensor, to));
}

function dense(tensor: SafetensorsTensor, to: Placement): Tensor {
  const { name } = tensor;
  const dtype = dtypes[tensor.dtype];
  if (!dtype)
    throw new BnbError(`${name} is ${tensor.dtype}, expected ${Object.keys(dtypes).join(", ")}.`, "unsupported");
  return tensor.load(dtype, tensor.shape, to);
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

const shared = ({ state: { blocksize, shape, dtype } }: Stored4bit | StoredBlockwise) => ({ blocksize, shape, dtype });

/** As much as torch's versions differ in the values of one codebook. */
const codeTolerance = 1e-6;

/**
 * The codebook of a stored weight, or of its scales.
 *
 * @throws BnbError where a 4-bit weight has another one than its type's: bitsandbytes does not look at it
 */
export function storedCodebook(stored: Stored4bit | StoredBlockwise, part = stored.code): Codebook {
  if (part !== stored.code || stored.format === "blockwise") return codebookOf(part);
  const named = Codebook.named(stored.format);
  const values = part.values as Float32Array;
  const isItself = named.values.every((value, i) => Math.abs(value - values[i]!) <= codeTolerance);
  part.release();
  if (isItself) return named;
  const advice = "bitsandbytes would read the weight by that all the same, and so as another: quantise the model again";
  throw new BnbError(`${part.name} is not the codebook of ${stored.format}; ${advice}.`);
}

/** The named codebook where the file has one's values, as nearly always; else one of the file's own. */
function codebookOf(tensor: SafetensorsTensor): Codebook {
  const values = tensor.values as Float32Array;
  const named = codebookNames.map(Codebook.named).find((codebook) => Bun.deepEquals(codebook.values, values));
  const codebook = named ?? Codebook.from(values);
  tensor.release();
  return codebook;
}

const bytesToTensor = (tensor: SafetensorsTensor, to: Placement) => tensor.load("uint8", [tensor.byteLength], to);

/** What blocks have: floats, or codes of them. */
const blocksToTensor = (tensor: SafetensorsTensor, to: Placement) =>
  tensor.dtype === "U8" ? bytesToTensor(tensor, to) : floatsToTensor(tensor, to);

function floatsToTensor(tensor: SafetensorsTensor, to: Placement): Tensor<FloatDType> {
  const dtype = floatDtypeOf(tensor);
  return tensor.load(dtype, [tensor.byteLength / dtypeBytes(dtype)], to);
}

function floatDtypeOf({ name, dtype }: SafetensorsTensor): FloatDType {
  const known = dtypes[dtype];
  if (known === "float32" || known === "float16" || known === "bfloat16") return known;
  throw new BnbError(`${name} is ${dtype}, expected F32, F16 or BF16.`);
}

function readAndDispose(tensor: Tensor): ArrayBufferView {
  using t = tensor;
  return t.read();
}
