// Checkpoints of GPTQ's and AWQ's: which tensors are a weight, and how it comes to a device as it is, integers
// with a scale and an offset a group.
import { currentDevice, type Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { mul } from "../elementwise.ts";
import { BnbError } from "../error.ts";
import { integers } from "../quantize_affine.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import { isObject } from "./json.ts";
import { inOurOrder } from "./mlx.ts";
import type { PyNumber, PyValue } from "./pyjson.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import { floatDtypes } from "./state.ts";
import { transposed } from "./transpose.ts";

/** The format of one GPTQ or AWQ weight, as config.json says. */
export interface StateGptq {
  /** Bits of a code: 2, 3, 4 or 8; always 4 in AWQ. */
  readonly bits: number;
  /** Elements that share a scale. Where no group is of a power of two, each is stored as several blocks. */
  readonly blocksize: number;
  readonly shape: readonly [rows: number, columns: number];
  /** That of the scales. */
  readonly dtype: FloatDType;
  /** What is added to a zero as it is stored: GPTQ's first version has them less one. */
  readonly zerosLess: 0 | 1;
}

/** A weight of a GPTQ or AWQ checkpoint: its format, and its tensors. */
export interface StoredGptq {
  readonly format: "gptq" | "awq";
  /** As the module's weight is called elsewhere: no tensor has this name. */
  readonly name: string;
  readonly state: StateGptq;
  readonly codes: SafetensorsTensor;
  readonly scales: SafetensorsTensor;
  readonly zeros: SafetensorsTensor;
  readonly parts: readonly SafetensorsTensor[];
}

type Tensors = ReadonlyMap<string, SafetensorsTensor>;
type Said = Readonly<Record<string, PyValue>>;

/** The weights of a checkpoint of GPTQ's or AWQ's. @throws BnbError naming the weight and what can't be read of it */
export function findGptq(tensors: Tensors, config: Said | undefined): Map<string, StoredGptq> {
  const found = new Map<string, StoredGptq>();
  const said = config?.quantization_config;
  if (!isObject(said) || (said.quant_method !== "gptq" && said.quant_method !== "awq")) return found;
  const { quant_method: format } = said;
  for (const [key, codes] of tensors) {
    const module = /^(.*)\.qweight$/.exec(key)?.[1];
    if (module === undefined) continue;
    if (found.size === 0) checkSaid(format, said as Said);
    found.set(`${module}.weight`, storedOf(module, format, said as Said, codes, tensors));
  }
  return found;
}

/** @throws BnbError for a variant of the format whose codes lie otherwise */
function checkSaid(format: "gptq" | "awq", said: Said): void {
  const refuse = (key: string, known: string) =>
    new BnbError(
      `quantization_config: ${key} is ${JSON.stringify(said[key])}; of ${format}, ${known} is read.`,
      "unsupported",
    );
  if (format === "awq" && !["gemm", undefined].includes(textOf(said.version)?.toLowerCase()))
    throw refuse("version", '"gemm"');
  if (format === "gptq" && !["gptq", "gptq_v2", undefined].includes(textOf(said.checkpoint_format)))
    throw refuse("checkpoint_format", '"gptq" or "gptq_v2"');
  if (isObject(said.dynamic) && Object.keys(said.dynamic).length > 0) throw refuse("dynamic", "one width for all");
  if (!["int32", undefined].includes(textOf(said.pack_dtype))) throw refuse("pack_dtype", '"int32"');
}

/** A text, or nothing; what is of another kind is none of those that are known. */
const textOf = (value: PyValue | undefined) =>
  value === undefined || value === null ? undefined : typeof value === "string" ? value : "";

const numberOf = (value: PyValue | undefined) => Number((value as PyNumber | undefined)?.source ?? value);

function storedOf(
  module: string,
  format: "gptq" | "awq",
  said: Said,
  codes: SafetensorsTensor,
  tensors: Tensors,
): StoredGptq {
  const part = (name: string) => {
    const tensor = tensors.get(`${module}.${name}`);
    if (tensor) return tensor;
    throw new BnbError(`${module}.${name} is missing beside ${module}.qweight; fetch the model again.`);
  };
  const [scales, zeros] = [part("scales"), part("qzeros")];
  const order = tensors.get(`${module}.g_idx`);
  const bits = numberOf(said.bits);
  const widths = format === "awq" ? [4] : [2, 3, 4, 8];
  if (!widths.includes(bits))
    throw new BnbError(`${module}: bits is ${bits}; of ${format}, ${widths.join(", ")} can be read.`, "unsupported");
  const [first = 0, second = 0] = codes.shape;
  const [columns, rows] = format === "awq" ? [first, (second * 32) / bits] : [(first * 32) / bits, second];
  const wanted = numberOf(said.group_size ?? -1);
  const group = wanted === -1 ? columns : wanted;
  const groups = columns / group;
  const dtype = (Object.keys(floatDtypes) as FloatDType[]).find((name) => floatDtypes[name] === scales.dtype);
  const is = (tensor: SafetensorsTensor, ...shape: number[]) => String(tensor.shape) === String(shape);
  const what = `${module}.qweight is ${codes.dtype} [${codes.shape.join(", ")}] of ${bits} bits in groups of ${group}`;
  const isWhole = codes.shape.length === 2 && Number.isInteger(columns / 8) && Number.isInteger(groups) && columns > 0;
  const fits = is(scales, groups, rows) && is(zeros, groups, (rows * bits) / 32);
  if (!isWhole || !fits || codes.dtype !== "I32" || zeros.dtype !== "I32" || dtype === undefined)
    throw new BnbError(`${what}, which its scales [${scales.shape}] and qzeros [${zeros.shape}] do not fit.`);
  if (order) checkOrder(order, columns, group);
  else if (said.desc_act === true) throw actOrder(`${module}.qweight`);
  const blocksize = blockOf(group);
  if (blocksize < 16) throw new BnbError(`${what}; groups of a multiple of 16 can be read.`, "unsupported");
  const zerosLess = format === "gptq" && textOf(said.checkpoint_format) !== "gptq_v2" ? 1 : 0;
  const state: StateGptq = { bits, blocksize, shape: [rows, columns], dtype, zerosLess };
  const parts = [codes, scales, zeros, ...(order ? [order] : [])];
  return { format, name: `${module}.weight`, state, codes, scales, zeros, parts };
}

/** The largest power of two, of those that a block may have, in a group. */
function blockOf(group: number): number {
  let block = 4096;
  while (block > 1 && group % block !== 0) block /= 2;
  return block;
}

const actOrder = (name: string) =>
  new BnbError(
    `${name}: act-order (desc_act, g_idx) gives each column a group of its own, for which there is no format; take a model without it.`,
    "unsupported",
  );

/** @throws BnbError where columns don't follow their groups */
function checkOrder(order: SafetensorsTensor, columns: number, group: number): void {
  if (order.dtype !== "I32" || String(order.shape) !== String([columns]))
    throw new BnbError(`${order.name} is ${order.dtype} [${order.shape}], expected I32 [${columns}].`);
  const isInOrder = (order.values as Int32Array).every((place, i) => place === Math.floor(i / group));
  order.release();
  if (!isInOrder) throw actOrder(order.name);
}

/** The weight on a device, with its own values: (code - zero) · scale, exactly, in fp32. */
export function fromGptq(stored: StoredGptq, device: Device = currentDevice()): QuantizedTensor {
  const { format, state, codes, scales } = stored;
  const { bits, blocksize, shape, dtype } = state;
  const [rows, columns] = shape;
  const [groups = 0] = scales.shape;
  const packed = format === "awq" ? awqCodes(codes, rows, columns) : gptqCodes(codes, bits);
  codes.release();
  using held = Tensor.from(packed, undefined, { device }) as Tensor<"uint8">;
  const times = columns / groups / blocksize;
  const blocks = [rows * groups * times];
  using absmax = Tensor.from(spread(scales.values as Float32Array, rows, groups, times), blocks, { dtype, device });
  scales.release();
  using zeros = Tensor.from(spread(zerosOf(stored, groups), rows, groups, times), blocks, { device });
  using wide = absmax.cast("float32");
  using offsets = mul(zeros, wide); // a zero has 8 bits and a scale 11 at most: the product is exact
  return QuantizedTensor.fromParts({ codes: held, absmax, offsets, code: integers(bits), blocksize, shape, dtype });
}

/** [groups, rows] as a value for each block, by rows; a group may be several blocks. */
function spread(values: Float32Array, rows: number, groups: number, times: number): Float32Array {
  const into = new (values.constructor as typeof Float32Array)(values.length * times);
  let to = 0;
  for (let row = 0; row < rows; row++)
    for (let group = 0; group < groups; group++)
      for (let i = 0; i < times; i++) into[to++] = values[group * rows + row]!;
  return into;
}

/** A column of words is the codes of a row of the weight as one string of bits, the lowest first. */
function gptqCodes(codes: SafetensorsTensor, bits: number): Uint8Array {
  const [words = 0, rows = 0] = codes.shape;
  const { buffer, byteOffset, length } = codes.values as Int32Array;
  const turned = transposed(new Uint32Array(buffer, byteOffset, length), [words, rows]);
  return inOurOrder(new Uint8Array(turned.buffer), bits);
}

/** Where the nibbles of a word belong, the lowest first. */
const awqOrder = [0, 2, 4, 6, 1, 3, 5, 7];

/** A word has eight neighbouring rows' codes of one column. */
function awqCodes(codes: SafetensorsTensor, rows: number, columns: number): Uint8Array {
  const values = codes.values as Int32Array;
  const packed = new Uint8Array((rows * columns) / 2);
  const words = rows / 8;
  for (let column = 0; column < columns; column++) {
    const shift = column & 1 ? 0 : 4;
    for (let word = 0; word < words; word++) {
      const value = values[column * words + word]!;
      for (let i = 0; i < 8; i++) {
        const row = 8 * word + awqOrder[i]!;
        packed[(row * columns + column) >> 1]! |= ((value >>> (4 * i)) & 15) << shift;
      }
    }
  }
  return packed;
}

/** What a code is less, below 0, of each group and row. */
function zerosOf({ format, zeros, state }: StoredGptq, groups: number): Float32Array {
  const { bits, shape, zerosLess } = state;
  const [rows] = shape;
  const values = zeros.values as Int32Array;
  const words = values.length / groups;
  const found = new Float32Array(groups * rows);
  const mask = 2 ** bits - 1;
  for (let group = 0; group < groups; group++) {
    for (let i = 0; i < rows; i++) {
      const at = i * bits;
      const word = values[group * words + (at >> 5)]! >>> (at & 31);
      const rest = (at & 31) + bits > 32 ? values[group * words + (at >> 5) + 1]! << (32 - (at & 31)) : 0;
      const zero = (((word | rest) & mask) + zerosLess) & mask;
      const row = format === "awq" ? 8 * (i >> 3) + awqOrder[i & 7]! : i;
      found[group * rows + row] = -zero;
    }
  }
  zeros.release();
  return found;
}
