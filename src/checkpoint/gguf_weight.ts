// GGUF's weights as quantised tensors with the file's own codes and scales: nothing is lost, and nothing quantised
// again.

import { Codebook } from "../codebook.ts";
import { currentDevice, type Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { floatDtypes } from "../native.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import { signatures } from "./arguments.ts";
import type { GgufModel, GgufTensor } from "./gguf.ts";
import type { LoadWeightOptions } from "./statedict.ts";
import { fromGguf } from "./steps.ts";

/** What is taken out of a file's blocks. */
interface Parts {
  /** One code a byte, in the order of the elements; then as one string of bits. */
  readonly codes: Uint8Array;
  /** Halves, as they stand in the file: one a block or, where `steps` are given, one for each of GGML's blocks. */
  readonly scales: Uint16Array | Float32Array;
  /** What is added, likewise. */
  readonly offsets?: Uint16Array;
  /** Small codes of the scales, one a byte and a block. */
  readonly steps?: Uint8Array;
  /** The same of the offsets. */
  readonly offsetSteps?: Uint8Array;
}

interface Layout {
  readonly bits: number;
  /** Elements that share a scale. */
  readonly block: number;
  /** The values of codes. */
  readonly values: readonly number[];
  /** The values of steps, where scales are products of a float and a small code. */
  readonly steps?: readonly number[];
  take(bytes: Uint8Array, blocks: number): Parts;
}

const range = (from: number, count: number) => Array.from({ length: count }, (_, i) => from + i);
const signedBytes = Array.from({ length: 256 }, (_, i) => (i < 128 ? i : i - 256));
const iq4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const e2m1Twice = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/** A half at a place of a block, for every block. */
function halves(bytes: Uint8Array, blocks: number, size: number, at: number): Uint16Array {
  const found = new Uint16Array(blocks);
  for (let b = 0; b < blocks; b++) found[b] = bytes[b * size + at]! | (bytes[b * size + at + 1]! << 8);
  return found;
}

/** The same with the other sign: minima are taken off, offsets added. */
function negated(bytes: Uint8Array, blocks: number, size: number, at: number): Uint16Array {
  return halves(bytes, blocks, size, at).map((half) => half ^ 0x8000);
}

/** Blocks of 32 whose low nibbles are the first 16 elements; a fifth bit stands in 4 bytes before them. */
function nibbles(bytes: Uint8Array, blocks: number, size: number, at: number, highAt?: number): Uint8Array {
  const codes = new Uint8Array(32 * blocks);
  for (let b = 0; b < blocks; b++) {
    const from = b * size + at;
    for (let i = 0; i < 16; i++) {
      codes[32 * b + i] = bytes[from + i]! & 15;
      codes[32 * b + 16 + i] = bytes[from + i]! >> 4;
    }
    if (highAt === undefined) continue;
    for (let i = 0; i < 32; i++) codes[32 * b + i]! |= ((bytes[b * size + highAt + (i >> 3)]! >> (i % 8)) & 1) << 4;
  }
  return codes;
}

/** Q4_0 and its kin: a scale, a minimum or none, a fifth bit or none, then 16 bytes of nibbles. */
function simple(bits: 4 | 5, values: readonly number[], hasMinimum: boolean): Layout {
  const start = hasMinimum ? 4 : 2;
  const size = start + (bits === 5 ? 4 : 0) + 16;
  return {
    ...{ bits, block: 32, values },
    take: (bytes, blocks) => ({
      codes: nibbles(bytes, blocks, size, size - 16, bits === 5 ? start : undefined),
      scales: halves(bytes, blocks, size, 0),
      ...(hasMinimum && { offsets: halves(bytes, blocks, size, 2) }),
    }),
  };
}

/** Q4_K and Q5_K: 8 groups of 32 with 6-bit scales and minima of two halves. */
function kQuant(bits: 4 | 5): Layout {
  const size = bits === 4 ? 144 : 176;
  const take = (bytes: Uint8Array, blocks: number): Parts => {
    const codes = new Uint8Array(256 * blocks);
    const [steps, least] = [new Uint8Array(8 * blocks), new Uint8Array(8 * blocks)];
    for (let b = 0; b < blocks; b++) {
      const from = b * size;
      for (let group = 0; group < 8; group++) {
        [steps[8 * b + group], least[8 * b + group]] = groupScales(bytes, from + 4, group);
        const low = from + size - 128 + 32 * (group >> 1);
        for (let i = 0; i < 32; i++) {
          const nibble = group % 2 ? bytes[low + i]! >> 4 : bytes[low + i]! & 15;
          const high = bits === 5 ? ((bytes[from + 16 + i]! >> group) & 1) << 4 : 0;
          codes[256 * b + 32 * group + i] = nibble | high;
        }
      }
    }
    const [scales, offsets] = [halves(bytes, blocks, size, 0), negated(bytes, blocks, size, 2)];
    return { codes, scales, offsets, steps, offsetSteps: least };
  };
  return { bits, block: 32, values: range(0, 2 ** bits), steps: range(0, 64), take };
}

/** Twelve bytes with eight 6-bit scales and minima. */
function groupScales(bytes: Uint8Array, at: number, group: number): [scale: number, minimum: number] {
  const byte = (i: number) => bytes[at + i]!;
  if (group < 4) return [byte(group) & 63, byte(group + 4) & 63];
  const both = byte(group + 4);
  return [(both & 15) | ((byte(group - 4) >> 6) << 4), (both >> 4) | ((byte(group) >> 6) << 4)];
}

/** The two low bits of 256 codes: each of 32 bytes has one of every thirty-two, and so have the next 32 bytes. */
function pairs(bytes: Uint8Array, at: number, codes: Uint8Array, to: number): void {
  for (let i = 0; i < 256; i++) codes[to + i] = (bytes[at + ((i >> 7) << 5) + (i % 32)]! >> (2 * ((i % 128) >> 5))) & 3;
}

/** Q2_K: 16 groups of 16 with 4-bit scales and minima, two a byte. */
function q2k(bytes: Uint8Array, blocks: number): Parts {
  const codes = new Uint8Array(256 * blocks);
  const [steps, offsetSteps] = [new Uint8Array(16 * blocks), new Uint8Array(16 * blocks)];
  for (let b = 0; b < blocks; b++) {
    for (let group = 0; group < 16; group++) {
      steps[16 * b + group] = bytes[84 * b + group]! & 15;
      offsetSteps[16 * b + group] = bytes[84 * b + group]! >> 4;
    }
    pairs(bytes, 84 * b + 16, codes, 256 * b);
  }
  const [scales, offsets] = [halves(bytes, blocks, 84, 80), negated(bytes, blocks, 84, 82)];
  return { codes, scales, offsets, steps, offsetSteps };
}

/** Q3_K: 16 groups of 16 with 6-bit scales; the third bits of codes stand in 32 bytes before the others. */
function q3k(bytes: Uint8Array, blocks: number): Parts {
  const codes = new Uint8Array(256 * blocks);
  const steps = new Uint8Array(16 * blocks);
  for (let b = 0; b < blocks; b++) {
    const from = 110 * b;
    for (let group = 0; group < 16; group++) {
      const low = (bytes[from + 96 + (group % 8)]! >> (4 * (group >> 3))) & 15;
      const high = (bytes[from + 104 + (group % 4)]! >> (2 * (group >> 2))) & 3;
      steps[16 * b + group] = low | (high << 4);
    }
    pairs(bytes, from + 32, codes, 256 * b);
    for (let i = 0; i < 256; i++) codes[256 * b + i]! |= ((bytes[from + (i % 32)]! >> (i >> 5)) & 1) << 2;
  }
  return { codes, scales: halves(bytes, blocks, 110, 108), steps };
}

/** Q6_K: 16 groups of 16 with signed bytes as scales. */
function q6k(bytes: Uint8Array, blocks: number): Parts {
  const codes = new Uint8Array(256 * blocks);
  const steps = new Uint8Array(16 * blocks);
  for (let b = 0; b < blocks; b++) {
    const from = b * 210;
    steps.set(bytes.subarray(from + 192, from + 208), 16 * b);
    for (let i = 0; i < 256; i++) {
      const [half, group, lane] = [i >> 7, (i % 128) >> 5, i % 32];
      const low = bytes[from + half * 64 + (group % 2) * 32 + lane]!;
      const high = bytes[from + 128 + half * 32 + lane]!;
      codes[256 * b + i] = (group < 2 ? low & 15 : low >> 4) | (((high >> (2 * group)) & 3) << 4);
    }
  }
  return { codes, scales: halves(bytes, blocks, 210, 208), steps };
}

function iq4xs(bytes: Uint8Array, blocks: number): Parts {
  const codes = new Uint8Array(256 * blocks);
  const steps = new Uint8Array(8 * blocks);
  for (let b = 0; b < blocks; b++) {
    const from = b * 136;
    for (let group = 0; group < 8; group++) {
      const low = (bytes[from + 4 + (group >> 1)]! >> (4 * (group % 2))) & 15;
      const high = (bytes[from + 2 + (group >> 2)]! >> (2 * (group % 4))) & 3;
      steps[8 * b + group] = low | (high << 4);
    }
    codes.set(nibbles(bytes.subarray(from, from + 136), 8, 16, 8), 256 * b);
  }
  return { codes, scales: halves(bytes, blocks, 136, 0), steps };
}

/** By GGML's names of types. */
const layouts: Readonly<Record<string, Layout>> = {
  Q4_0: simple(4, range(-8, 16), false),
  Q4_1: simple(4, range(0, 16), true),
  Q5_0: simple(5, range(-16, 32), false),
  Q5_1: simple(5, range(0, 32), true),
  IQ4_NL: simple(4, iq4, false),
  Q8_0: {
    ...{ bits: 8, block: 32, values: signedBytes },
    take: (bytes, blocks) => {
      const codes = new Uint8Array(32 * blocks);
      for (let b = 0; b < blocks; b++) codes.set(bytes.subarray(b * 34 + 2, b * 34 + 34), 32 * b);
      return { codes, scales: halves(bytes, blocks, 34, 0) };
    },
  },
  Q2_K: { bits: 2, block: 16, values: range(0, 4), steps: range(0, 16), take: q2k },
  Q3_K: { bits: 3, block: 16, values: range(-4, 8), steps: range(-32, 64), take: q3k },
  Q4_K: kQuant(4),
  Q5_K: kQuant(5),
  Q6_K: { bits: 6, block: 16, values: [...range(-32, 64)], steps: signedBytes, take: q6k },
  IQ4_XS: { bits: 4, block: 32, values: iq4, steps: range(-32, 64), take: iq4xs },
  MXFP4: {
    ...{ bits: 4, block: 32, values: e2m1Twice, steps: range(0, 256).map((e) => 2 ** (e - 128)) },
    take: (bytes, blocks) => ({
      codes: nibbles(bytes, blocks, 17, 1),
      scales: Float32Array.of(1),
      steps: Uint8Array.from({ length: blocks }, (_, b) => bytes[b * 17]!),
    }),
  },
};

/** Codes, one a byte, as one string of bits whose first is the highest of a byte. */
function packed(codes: Uint8Array, bits: number): Uint8Array {
  if (bits === 8) return codes;
  const bytes = new Uint8Array((codes.length * bits) / 8);
  if (bits === 4) {
    for (let i = 0; i < bytes.length; i++) bytes[i] = (codes[2 * i]! << 4) | codes[2 * i + 1]!;
    return bytes;
  }
  let [held, count, to] = [0, 0, 0];
  // By index: an iterator over a model's codes takes longer than all the rest of loading it.
  for (let i = 0; i < codes.length; i++) {
    held = ((held << bits) | codes[i]!) & 0xffff;
    for (count += bits; count >= 8; count -= 8) bytes[to++] = held >> (count - 8);
  }
  return bytes;
}

const codebooks = new Map<readonly number[], Codebook>();

function codebookOf(values: readonly number[]): Codebook {
  const before = codebooks.get(values);
  if (before) return before;
  const codebook = Codebook.from(values);
  codebooks.set(values, codebook);
  return codebook;
}

/**
 * Loads a weight of a GGUF model to a device: quantised, with the file's own codes and scales, if its type can be held
 * exactly. Such types are Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS and MXFP4, and
 * they take as many bits as in the file. Other types become dense tensors.
 *
 * @example
 * ```ts
 * using model = await checkpoint.openGguf("./model.gguf");
 * using w = checkpoint.loadGguf(model, "model.layers.0.mlp.up_proj.weight");
 * w.shape; // → [96, 64]
 * ```
 *
 * @param dtype the dtype of dense tensors, and the one that a quantised weight is dequantised to by default; float32 if
 * omitted
 * @param mmap use the file's own pages in place of a copy, for dense tensors that the file holds in that dtype
 * @throws BnbError if the model has no such weight
 */
export function loadGguf(
  model: GgufModel,
  name: string,
  options: { device?: Device; dtype?: FloatDType } & LoadWeightOptions = {},
): Tensor<FloatDType> | QuantizedTensor {
  const me = signatures.loadGguf;
  const { device = currentDevice(), dtype = "float32", mmap = false } = me.options(options);
  me.device(device, "device");
  me.code(dtype, "dtype", floatDtypes);
  me.boolean(mmap, "mmap");
  me.text(name, "name");
  if (!Array.isArray((model as GgufModel | null | undefined)?.tensors))
    throw me.wrong("model", model, "what openGguf gives");
  const tensor = model.tensors.find((one) => one.name === name);
  if (!tensor) throw new BnbError(`${model.path} has no weight ${JSON.stringify(name)}.`);
  const layout =
    Object.hasOwn(layouts, tensor.format) && tensor.shape.length === 2 ? layouts[tensor.format] : undefined;
  if (layout) return asItIs(tensor, layout, device, dtype);
  if (tensor.plain === dtype) return tensor.load({ device, mmap });
  using dense = fromGguf(tensor, dtype).load();
  return dense.to(device) as Tensor<FloatDType>;
}

function asItIs(tensor: GgufTensor, layout: Layout, device: Device, dtype: FloatDType): QuantizedTensor {
  const { bits, block, values, steps } = layout;
  const elements = tensor.shape.reduce((product, extent) => product * extent, 1);
  const blocks = elements / (steps && tensor.format !== "MXFP4" ? 256 : 32);
  const bytes = tensor.read();
  const parts = layout.take(bytes, blocks);
  tensor.release(bytes);
  const bytesOf = (data: Uint8Array) => Tensor.from(data, undefined, { device }) as Tensor<"uint8">;
  const floatsOf = (data: Uint16Array | Float32Array) => {
    const array = data instanceof Uint16Array ? new Float16Array(data.buffer as ArrayBuffer) : data;
    return Tensor.from(array as Float32Array, [array.length], { device }) as Tensor<FloatDType>;
  };
  using codes = bytesOf(packed(parts.codes, bits));
  using scales = floatsOf(parts.scales);
  using offsets = parts.offsets && floatsOf(parts.offsets);
  const common = { codes, code: codebookOf(values), blocksize: block, shape: tensor.shape, dtype };
  if (!parts.steps) return QuantizedTensor.fromParts({ ...common, absmax: scales, offsets });
  const stepBits = Math.log2(steps!.length);
  using absmax = bytesOf(packed(parts.steps, stepBits));
  using offsetCodes = parts.offsetSteps && bytesOf(packed(parts.offsetSteps, stepBits));
  const nested = {
    absmax: scales,
    code: codebookOf(steps!),
    blocksize: parts.steps.length / parts.scales.length,
    offset: -0, // changes no bit of a scale, not even of -0
    offsetsAbsmax: offsets,
  };
  return QuantizedTensor.fromParts({ ...common, absmax, offsets: offsetCodes, nested });
}
