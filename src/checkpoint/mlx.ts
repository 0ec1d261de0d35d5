// MLX's quantised weights in safetensors: which there are, by config.json, and their codes in this library's order.
import { Codebook } from "../codebook.ts";
import { currentDevice, type Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { integers } from "../quantize_affine.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import { isObject } from "./json.ts";
import type { PyNumber, PyValue } from "./pyjson.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import { floatDtypes } from "./state.ts";

/**
 * How MLX's codes become values: `"affine"`: integers with a scale and an offset for each group; all others: small
 * floats with a scale.
 */
export type MlxMode = "affine" | "mxfp4" | "mxfp8" | "nvfp4";

/** The format of one MLX weight, as config.json says. */
export interface StateMlx {
  readonly mode: MlxMode;
  /** Bits of a code. */
  readonly bits: number;
  /** Elements that share a scale. */
  readonly blocksize: number;
  readonly shape: readonly [rows: number, columns: number];
  /** That of the scales, where they are floats. */
  readonly dtype: FloatDType;
}

/** A weight of an MLX checkpoint: its format, and its tensors. */
export interface StoredMlx {
  readonly format: "mlx";
  readonly name: string;
  readonly state: StateMlx;
  readonly codes: SafetensorsTensor;
  readonly scales: SafetensorsTensor;
  /** Only of affine weights: what is added to the elements of each group. */
  readonly biases: SafetensorsTensor | undefined;
  readonly parts: readonly SafetensorsTensor[];
}

type Tensors = ReadonlyMap<string, SafetensorsTensor>;

interface Settings {
  readonly mode: MlxMode;
  readonly bits: number;
  readonly groupSize: number;
}

const defaults: Readonly<Record<MlxMode, Omit<Settings, "mode">>> = {
  affine: { bits: 4, groupSize: 64 },
  mxfp4: { bits: 4, groupSize: 32 },
  mxfp8: { bits: 8, groupSize: 32 },
  nvfp4: { bits: 4, groupSize: 16 },
};

/** The weights of a checkpoint that MLX quantised. @throws BnbError naming the weight and what can't be read of it */
export function findMlx(
  tensors: Tensors,
  config: { readonly [key: string]: PyValue } | undefined,
): Map<string, StoredMlx> {
  const found = new Map<string, StoredMlx>();
  const said = isObject(config?.quantization) ? config.quantization : config?.quantization_config;
  if (!isObject(said) || said.quant_method !== undefined) return found;
  for (const [key, scales] of tensors) {
    const module = /^(.*)\.scales$/.exec(key)?.[1];
    const codes = module === undefined ? undefined : tensors.get(`${module}.weight`);
    if (module === undefined || codes?.dtype !== "U32") continue;
    const own = said[module];
    const settings = settingsOf(module, isObject(own) ? { ...said, ...own } : said);
    found.set(codes.name, storedMlx(module, settings, codes, scales, tensors.get(`${module}.biases`)));
  }
  return found;
}

function settingsOf(module: string, said: Readonly<Record<string, unknown>>): Settings {
  const mode = (said.mode ?? "affine") as MlxMode;
  if (typeof mode !== "string" || !Object.hasOwn(defaults, mode)) {
    const known = Object.keys(defaults).join(", ");
    throw new BnbError(`${module}: MLX's mode ${JSON.stringify(mode)} is not known; ${known} are read.`, "unsupported");
  }
  const number = (value: unknown, otherwise: number) =>
    value === undefined ? otherwise : Number((value as PyNumber).source ?? value);
  const bits = number(said.bits, defaults[mode].bits);
  const groupSize = number(said.group_size, defaults[mode].groupSize);
  const widths = mode === "affine" ? [2, 3, 4, 5, 6, 8] : [defaults[mode].bits];
  const groups = mode === "affine" ? [32, 64, 128] : [defaults[mode].groupSize];
  const refuse = (key: string, value: number, known: readonly number[]) =>
    new BnbError(`${module}: ${key} is ${value}; of MLX's ${mode}, ${known.join(", ")} can be read.`, "unsupported");
  if (!widths.includes(bits)) throw refuse("bits", bits, widths);
  if (!groups.includes(groupSize)) throw refuse("group_size", groupSize, groups);
  return { mode, bits, groupSize };
}

function storedMlx(
  module: string,
  { mode, bits, groupSize }: Settings,
  codes: SafetensorsTensor,
  scales: SafetensorsTensor,
  biases: SafetensorsTensor | undefined,
): StoredMlx {
  const [rows = 0, words = 0] = codes.shape;
  const columns = (words * 32) / bits;
  const dtype = (Object.keys(floatDtypes) as FloatDType[]).find((name) => floatDtypes[name] === scales.dtype);
  const fits = (part: SafetensorsTensor | undefined) =>
    part?.shape.length === 2 && part.shape[0] === rows && part.shape[1] === columns / groupSize;
  const what = `${module}.weight is [${codes.shape.join(", ")}] of ${bits} bits in groups of ${groupSize}`;
  if (codes.shape.length !== 2 || !Number.isInteger(columns / groupSize) || !fits(scales))
    throw new BnbError(`${what}, which its scales [${scales.shape.join(", ")}] do not fit; convert the model again.`);
  const isAffine = mode === "affine";
  if (isAffine ? dtype === undefined || !fits(biases) || biases!.dtype !== scales.dtype : scales.dtype !== "U8")
    throw new BnbError(`${what}, and its scales and biases are not what ${mode} has; convert the model again.`);
  const state: StateMlx = { mode, bits, blocksize: groupSize, shape: [rows, columns], dtype: dtype ?? "bfloat16" };
  const parts = [codes, scales, ...(isAffine ? [biases!] : [])];
  return { format: "mlx", name: codes.name, state, codes, scales, biases: isAffine ? biases : undefined, parts };
}

/** The weight on a device, with MLX's own values: code × scale + bias in fp32. */
export function fromMlx(stored: StoredMlx, device: Device = currentDevice()): QuantizedTensor {
  const { state, scales, biases } = stored;
  const { mode, bits, blocksize, shape, dtype } = state;
  const packed = stored.codes.bytes;
  using codes = Tensor.from(inOurOrder(packed, bits), undefined, { device }) as Tensor<"uint8">;
  stored.codes.release();
  const part = (tensor: SafetensorsTensor) => {
    const made = Tensor.from(tensor.values as Float32Array, [tensor.values.length], {
      dtype: dtype as "float32",
      device,
    });
    tensor.release();
    return made as Tensor<FloatDType>;
  };
  const common = { codes, blocksize, shape, dtype };
  if (mode === "affine") {
    using absmax = part(scales);
    using offsets = part(biases!);
    return QuantizedTensor.fromParts({ ...common, absmax, offsets, code: integers(bits) });
  }
  const bytes = scales.bytes;
  if (mode !== "nvfp4" && bytes.includes(255)) throw new BnbError(`${scales.name} has a scale that is NaN (255).`);
  const groups = bytes.length; // a released view has none
  using absmax = Tensor.from(bytes, [groups], { device }) as Tensor<"uint8">;
  scales.release();
  using one = Tensor.from(Float32Array.of(1), [1], { device });
  const nested = { absmax: one, code: mode === "nvfp4" ? e4m3() : powersOfTwo(), blocksize: groups, offset: 0 };
  return QuantizedTensor.fromParts({ ...common, absmax, nested, code: mode === "mxfp8" ? e4m3() : e2m1() });
}

/**
 * Codes as one string of bits whose first is the highest of a byte; MLX's first is the lowest of the lowest byte. Eight
 * codes fill as many bytes as one has bits, so a run of them is turned around by itself.
 */
export function inOurOrder(packed: Uint8Array, bits: number): Uint8Array {
  if (bits === 8) return packed.slice();
  const ordered = new Uint8Array(packed.length);
  if (bits === 4) {
    for (let i = 0; i < packed.length; i++) ordered[i] = (packed[i]! << 4) | (packed[i]! >> 4);
    return ordered;
  }
  const mask = 2 ** bits - 1;
  for (let start = 0; start < packed.length; start += bits) {
    let [low, lowBits, high, highBits, to] = [0, 0, 0, 0, start];
    for (let from = start; from < start + bits; from++) {
      low |= packed[from]! << lowBits;
      for (lowBits += 8; lowBits >= bits; lowBits -= bits, low >>>= bits) {
        high = (high << bits) | (low & mask);
        for (highBits += bits; highBits >= 8; highBits -= 8) ordered[to++] = high >>> (highBits - 8);
        high &= 2 ** highBits - 1;
      }
    }
  }
  return ordered;
}

/** The inverse of {@link inOurOrder}. */
export function inMlxOrder(ordered: Uint8Array, bits: number): Uint8Array {
  if (bits === 8) return ordered;
  const packed = new Uint8Array(ordered.length);
  const mask = 2 ** bits - 1;
  for (let start = 0; start < ordered.length; start += bits) {
    let [high, highBits, low, lowBits, to] = [0, 0, 0, 0, start];
    for (let from = start; from < start + bits; from++) {
      high = (high << 8) | ordered[from]!;
      for (highBits += 8; highBits >= bits; ) {
        highBits -= bits;
        low |= ((high >>> highBits) & mask) << lowBits;
        for (lowBits += bits; lowBits >= 8; lowBits -= 8, low >>>= 8) packed[to++] = low;
      }
      high &= 2 ** highBits - 1;
    }
  }
  return packed;
}

const made = new Map<string, Codebook>();

/** A codebook that is made once. */
function once(name: string, values: () => number[]): Codebook {
  const before = made.get(name);
  if (before) return before;
  const codebook = Codebook.from(values());
  made.set(name, codebook);
  return codebook;
}

const halves = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
const e2m1 = () => once("E2M1", () => [...halves, ...halves.map((value) => -value)]);

/** 2^(s - 127); the last, which stands for NaN, is none. */
const powersOfTwo = () => once("E8M0", () => Array.from({ length: 256 }, (_, s) => (s === 255 ? 0 : 2 ** (s - 127))));

/** A sign, four bits of an exponent, three of a mantissa; the two that stand for NaN are 0. */
const e4m3 = () =>
  once("E4M3", () =>
    Array.from({ length: 256 }, (_, bits) => {
      const [sign, exponent, mantissa] = [bits & 128 ? -1 : 1, (bits >> 3) & 15, bits & 7];
      if (exponent === 15 && mantissa === 7) return 0;
      return sign * (exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10));
    }),
  );
