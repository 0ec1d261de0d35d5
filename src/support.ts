// The support table: what a device does itself, found by trying it and looking at what the library counted.

import { createLinearMap } from "./codebook.ts";
import { compare } from "./compare.ts";
import type { Device } from "./device.ts";
import type { FloatDType } from "./dtype.ts";
import { add, exp, mul, sigmoid, softmax } from "./elementwise.ts";
import { embedding, embeddingBackward } from "./embedding.ts";
import { BnbError } from "./error.ts";
import { int8DoubleQuant } from "./int8.ts";
import { Int8Weight, matmul8bit, matmul8bitFp } from "./int8_weight.ts";
import { layerNorm, layerNormBackward } from "./layer_norm.ts";
import { linear, matmul4bit, matmulBlockwise } from "./matmul.ts";
import {
  linearBackward,
  linearBackwardWeight,
  matmul4bitBackward,
  matmulBlockwiseBackward,
} from "./matmul_backward.ts";
import { AdEMAMix8bit, AdEMAMix32bit, LAMB8bit, type Optimizer, type OptimizerClass } from "./optim/index.ts";
import { Parameter } from "./parameter.ts";
import { dequantize4bit, dequantizeBlockwise, quantize4bit, quantizeBlockwise } from "./quantize.ts";
import type { QuantizedTensor } from "./quantized.ts";
import { Tensor } from "./tensor.ts";

/** Who does the work: the device itself, the CPU on the device's memory, or nobody. */
export type Support = "yes" | "on the CPU" | "no";

/** A small weight whose rows straddle blocks, and an activation for it. */
const columns = 160;

type Probe = (on: {
  w: Tensor<"float32">;
  x: Tensor<"float32">;
  batch: Tensor<"float32">;
  rows: Tensor<"int32">;
}) => Disposable | object;

/** Each format, as all ways to quantise that it stands for. */
const quantizers: Readonly<Record<string, readonly ((w: Tensor) => QuantizedTensor)[]>> = {
  "nf4, fp4, af4": (["nf4", "fp4", "af4"] as const).map((quantType) => (w) => quantize4bit(w, { quantType })),
  "4-bit, any codebook": [(w) => quantizeBlockwise(w, { code: createLinearMap(true, 4, false) })],
  "8-bit blockwise": [(w) => quantizeBlockwise(w, { blocksize: 256 })],
  "2, 3, 5, 6, 7 bits": [2, 3, 5, 6, 7].map(
    (bits) => (w) => quantizeBlockwise(w, { code: createLinearMap(true, bits) }),
  ),
};

function probesOfFormat(format: string): [operation: string, format: string, probe: Probe][] {
  const each = (w: Tensor, use: (q: QuantizedTensor) => unknown) =>
    quantizers[format]!.map((quantize) => use(quantize(w)));
  return [
    ["quantise", format, ({ w }) => each(w, (q) => q)],
    ["dequantise", format, ({ w }) => each(w, dequantizeBlockwise)],
    ["matmul, one row", format, ({ w, x }) => each(w, (q) => matmulBlockwise(x, q))],
    ["matmul, many rows", format, ({ w, batch }) => each(w, (q) => matmulBlockwise(batch, q))],
    ["matmul, gradient of x", format, ({ w, batch }) => each(w, (q) => matmulBlockwiseBackward(linear(batch, w), q))],
    ["embedding", format, ({ w, rows }) => each(w, (q) => embedding(rows, q))],
  ];
}

const nested = (w: Tensor) => quantize4bit(w, { compressStatistics: true });

const leastSquares = (w: Tensor) =>
  [2, 3, 4, 5, 6, 7, 8].map((bits) =>
    quantizeBlockwise(w, { code: createLinearMap(true, bits), blocksize: 64, scales: "leastSquares" }),
  );

/** Every operation with every format that makes a difference to it. */
const probes: [operation: string, format: string, probe: Probe][] = [
  ...Object.keys(quantizers).flatMap(probesOfFormat),
  ["least-squares scales", "2 to 8 bits", ({ w }) => leastSquares(w)],
  ["quantise", "nested scales", ({ w }) => nested(w)],
  ["dequantise", "nested scales", ({ w }) => dequantize4bit(nested(w))],
  ["matmul, one row", "nested scales", ({ w, x }) => matmul4bit(x, nested(w))],
  ["matmul, many rows", "nested scales", ({ w, batch }) => matmul4bit(batch, nested(w))],
  ["matmul, gradient of x", "nested scales", ({ w, batch }) => matmul4bitBackward(linear(batch, w), nested(w))],
  ["embedding", "nested scales", ({ w, rows }) => embedding(rows, nested(w))],
  ["matmul, one row", "dense", ({ w, x }) => linear(x, w)],
  ["matmul, many rows", "dense", ({ w, batch }) => linear(batch, w)],
  ["matmul, gradient of x", "dense", ({ w, batch }) => linearBackward(linear(batch, w), w)],
  ["matmul, gradient of w", "dense", ({ w, batch }) => linearBackwardWeight(linear(batch, w), batch)],
  ["embedding", "dense", ({ w, rows }) => embedding(rows, w)],
  ["embedding, gradient", "dense", ({ x, rows }) => embeddingBackward(x, rows, 48)],
  ["layer norm", "dense", ({ w, x }) => layerNorm(w, x.reshape([columns]), x.reshape([columns]))],
  ["layer norm, gradients", "dense", ({ w, x }) => layerNormBackward(w, w, x.reshape([columns])).dx],
  ["add", "dense", ({ w }) => add(w, w)],
  ["multiply elements", "dense", ({ w }) => mul(w, w)],
  ["exp", "dense", ({ w }) => exp(w)],
  ["sigmoid", "dense", ({ w }) => sigmoid(w)],
  ["transpose", "dense", ({ w }) => w.transpose()],
  ["softmax", "dense", ({ w }) => softmax(w)],
  ["quantise", "LLM.int8()", ({ w }) => int8DoubleQuant(w, { threshold: 0.99 })],
  ["dequantise", "LLM.int8()", ({ w }) => Int8Weight.quantize(w).dequantize()],
  ["matmul, one row", "LLM.int8()", ({ w, x }) => matmul8bit(x, Int8Weight.quantize(w), { threshold: 0.99 })],
  ["matmul, many rows", "LLM.int8()", ({ w, batch }) => matmul8bit(batch, Int8Weight.quantize(w), { threshold: 0.99 })],
  ["matmul, one row", "int8 weights", ({ w, x }) => matmul8bitFp(x, Int8Weight.quantize(w))],
  ["matmul, many rows", "int8 weights", ({ w, batch }) => matmul8bitFp(batch, Int8Weight.quantize(w))],
  ["cast", "float32, float16, bfloat16", ({ w }) => castAll(w)],
  ["compare", "dense", ({ w }) => compare(w, w)],
  ["optimizer step", "32-bit states", ({ w }) => stepped(AdEMAMix32bit, w)],
  ["optimizer step", "8-bit states", ({ w }) => stepped(AdEMAMix8bit, w)],
  ["optimizer step", "trust ratio", ({ w }) => stepped(LAMB8bit, w)],
];

function castAll(w: Tensor): Tensor {
  const dtypes: FloatDType[] = ["float16", "bfloat16", "float32"];
  return dtypes.reduce<Tensor>((tensor, dtype) => tensor.cast(dtype), w);
}

function stepped(Class: OptimizerClass<{ lr?: number }>, w: Tensor): Optimizer {
  const parameter = new Parameter(w);
  parameter.grad = w;
  const optimizer = new Class([parameter], { lr: 0 });
  optimizer.step();
  return optimizer;
}

/** One row of the support table. */
export interface SupportRow {
  readonly operation: string;
  readonly format: string;
  readonly support: Support;
}

/** What a device does, operation by operation and format by format, tried out on small tensors. */
export function support(device: Device): SupportRow[] {
  const wave = (length: number) => Float32Array.from({ length }, (_, i) => Math.sin(i));
  const on = {
    w: Tensor.from(wave(48 * columns), [48, columns], { device }),
    x: Tensor.from(wave(columns), [1, columns], { device }),
    batch: Tensor.from(wave(40 * columns), [40, columns], { device }),
    rows: Tensor.from(Int32Array.of(47), [1], { device }),
  };
  return probes.map(([operation, format, probe]) => ({
    operation,
    format,
    support: supportOf(() => probe(on), device),
  }));
}

function supportOf(action: () => unknown, device: Device): Support {
  const before = device.counters.fallbacks;
  try {
    action();
  } catch (error) {
    if (error instanceof BnbError && error.code === "unsupported") return "no";
    throw error;
  }
  return device.counters.fallbacks > before ? "on the CPU" : "yes";
}
