// The cases that tests and benchmarks share: formats, block sizes, shapes, dtypes, and the devices to run them on.
import {
  Codebook,
  createDynamicMap,
  createFp8Map,
  createLinearMap,
  createNormalMap,
  Device,
  devices,
  type FloatDType,
  optim,
  type Parameter,
  Tensor,
} from "../src/index.ts";
import type { ReferenceRule } from "./reference.ts";

/** Every device that is here, or the one that BNB_DEVICE names; each with its name, for `describe.each`. */
export const testDevices: [kind: string, device: Device][] = (
  process.env.BNB_DEVICE
    ? [Device.open()]
    : devices().flatMap((report) => (report.available ? [Device.open(report.kind)] : []))
).map((device) => [device.kind, device]);

export const floatDTypes: readonly FloatDType[] = ["float32", "float16", "bfloat16"];

/** Sixteen values in no order, with a repeated one and no zero: what only a general quantiser gets right. */
export const unsorted16 = Codebook.from([
  0.5, -0.25, 1, -1, 0.125, 0.75, -0.5, -0.75, 0.3, 0.3, -0.05, 0.05, 0.9, -0.9, 0.6, -0.6,
]);

/** The codebooks that 4-bit operations are tested with. */
export const codebooks4: Readonly<Record<string, Codebook>> = {
  nf4: Codebook.named("nf4"),
  fp4: Codebook.named("fp4"),
  af4: Codebook.named("af4"),
  unsorted: unsorted16,
};

/** The codebooks that 8-bit operations are tested with. The last is coarse in the middle and dense at one end. */
export const codebooks8: Readonly<Record<string, Codebook>> = {
  dynamic: Codebook.named("dynamic"),
  dynamicUnsigned: Codebook.named("dynamic_unsigned"),
  linear: createLinearMap(),
  fp8: createFp8Map(true, 4, 3),
  normal: createNormalMap(undefined, true, 8),
  dense: Codebook.from(Float32Array.from({ length: 256 }, (_, i) => (i < 200 ? 1 - i / 20000 : -1 + (i - 200) / 28))),
};

/** Codebooks of every other width. One is in no order, and one goes beyond what a block can hold. */
export const codebooksOfOtherBits: Readonly<Record<string, Codebook>> = {
  "2 bits, normal": Codebook.named("nf2"),
  "2 bits, far": Codebook.from([4, -0.5, 0.5, -3]),
  "3 bits, linear": createLinearMap(true, 3),
  "5 bits, dynamic": createDynamicMap(true, 4, 5),
  "6 bits, unsorted": Codebook.from(Float32Array.from({ length: 64 }, (_, i) => Math.sin(i * i))),
  "7 bits, normal": createNormalMap(undefined, true, 7),
};

/** 4-bit block sizes that are legal. */
export const blocksizes4 = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096] as const;

/** 8-bit block sizes: upstream's, and some that only a general loop serves. */
export const blocksizes8 = [64, 256, 4096, 1, 7, 100] as const;

/** Shapes to quantise: aligned, ragged, odd, shorter than a block, one element, three dimensions. */
export const quantizeShapes: readonly (readonly number[])[] = [
  [64, 64],
  [3, 96],
  [5, 77],
  [1, 31],
  [1],
  [4, 48],
  [2, 3, 160],
  [1, 4099],
  [129, 130],
];

export interface MatmulShape {
  m: number;
  n: number;
  k: number;
}

/** Products: one row, a few, a tile and more; aligned and ragged in every dimension; rows that straddle blocks. */
export const matmulShapes: readonly MatmulShape[] = [
  { m: 1, n: 64, k: 64 },
  { m: 1, n: 7, k: 128 },
  { m: 1, n: 33, k: 1024 },
  { m: 1, n: 5, k: 4160 },
  { m: 1, n: 1, k: 1 },
  { m: 2, n: 17, k: 192 },
  { m: 3, n: 9, k: 96 },
  { m: 4, n: 12, k: 77 },
  { m: 5, n: 40, k: 320 },
  { m: 8, n: 31, k: 48 },
  { m: 13, n: 35, k: 1000 },
  { m: 33, n: 70, k: 256 },
  { m: 70, n: 34, k: 130 },
];

/** Weights [n, k] of real models, which benches time. */
export const layerShapes: Readonly<Record<string, { readonly n: number; readonly k: number }>> = {
  "MiniLM, attention": { n: 384, k: 384 },
  "MiniLM, down": { n: 384, k: 1536 },
  "SmolLM2-135M, attention": { n: 576, k: 576 },
  "Llama-3.2-1B, up": { n: 8192, k: 2048 },
  "Llama-2-7B, attention": { n: 4096, k: 4096 },
  "Llama-2-7B, up": { n: 11008, k: 4096 },
  "Llama-2-7B, down": { n: 4096, k: 11008 },
  "Llama-3-8B, up": { n: 14336, k: 4096 },
};

/** Numbers that are the same on every machine: a sine whose frequency drifts, in about [-1, 1]. */
export function wave(length: number, seed = 1, scale = 1): Float32Array<ArrayBuffer> {
  const numbers = new Float32Array(length);
  for (let i = 0; i < length; i++)
    numbers[i] = scale * Math.sin(0.37 * seed * i + 0.0011 * i * i) * Math.cos(0.013 * i);
  return numbers;
}

/** Normally distributed numbers from a seed (Box and Muller 1958, over Marsaglia's xorshift). */
export function normal(length: number, seed = 1, deviation = 1): Float32Array<ArrayBuffer> {
  let state = seed * 2654435761;
  const uniform = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) + 0.5) / 2 ** 32;
  };
  const numbers = new Float32Array(length);
  for (let i = 0; i < length; i++)
    numbers[i] = deviation * Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return numbers;
}

/** Makes tensors of such numbers on a device: of a shape, by a seed. */
export const normalTensors =
  (device: Device) =>
  (shape: number[], seed = 1, deviation = 1): Tensor<"float32"> =>
    Tensor.from(
      normal(
        shape.reduce((a, b) => a * b, 1),
        seed,
        deviation,
      ),
      shape,
      { device },
    );

/** Sizes of parameters: one element, less than a block of 256 and more, whole blocks, and many blocks with a rest. */
export const parameterSizes = [1, 31, 256, 257, 2048, 5003] as const;

/** Every optimizer: how it is made, and the rule and settings that the reference follows for it. */
export const optimizerCases: Readonly<
  Record<string, { make: (params: Iterable<Parameter>, optimBits: 8 | 32) => optim.Optimizer; rule: ReferenceRule }>
> = {
  adam: { make: (p, optimBits) => new optim.Adam(p, { optimBits }), rule: { kind: "adam", lr: 1e-3 } },
  adamw: {
    make: (p, optimBits) => new optim.AdamW(p, { optimBits, weightDecay: 0.1 }),
    rule: { kind: "adam", lr: 1e-3, weightDecay: 0.1 },
  },
  ademamix: {
    make: (p, optimBits) => new optim.AdEMAMix(p, { optimBits }),
    rule: { kind: "ademamix", lr: 1e-3, betas: [0.9, 0.999, 0.9999], alpha: 5, weightDecay: 0.01 },
  },
  lion: {
    make: (p, optimBits) => new optim.Lion(p, { optimBits, lr: 1e-3, weightDecay: 0.1 }),
    rule: { kind: "lion", lr: 1e-3, betas: [0.9, 0.99], weightDecay: 0.1 },
  },
  sgd: {
    make: (p, optimBits) => new optim.SGD(p, { optimBits, lr: 1e-2, momentum: 0.9, weightDecay: 0.01 }),
    rule: { kind: "momentum", lr: 1e-2, weightDecay: 0.01 },
  },
  rmsprop: {
    make: (p, optimBits) => new optim.RMSprop(p, { optimBits, lr: 1e-3, weightDecay: 0.01 }),
    rule: { kind: "rmsprop", lr: 1e-3, betas: [0.99, 0], weightDecay: 0.01 },
  },
  adagrad: {
    make: (p, optimBits) => new optim.Adagrad(p, { optimBits, weightDecay: 0.01 }),
    rule: { kind: "adagrad", lr: 1e-2, eps: 1e-10, weightDecay: 0.01 },
  },
  lamb: {
    make: (p, optimBits) => new optim.LAMB(p, { optimBits, weightDecay: 0.01 }),
    rule: { kind: "adam", lr: 1e-3, weightDecay: 0.01, maxUnorm: 1 },
  },
  lars: {
    make: (p, optimBits) => new optim.LARS(p, { optimBits, lr: 1e-2, momentum: 0.9, weightDecay: 0.01 }),
    rule: { kind: "momentum", lr: 1e-2, weightDecay: 0.01, maxUnorm: 0.02 },
  },
};
