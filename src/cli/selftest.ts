// The self-test of a device: whether its results are what theory says, and how fast they come.
import { compare } from "../compare.ts";
import type { Device } from "../device.ts";
import { Int8Weight, matmul8bitFp } from "../int8_weight.ts";
import { linear, matmul4bit, matmulBlockwise } from "../matmul.ts";
import { dequantize4bit, dequantizeBlockwise, quantize4bit, quantizeBlockwise } from "../quantize.ts";
import type { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";

/** The weight's rows and columns, and the rows of the larger activation. */
const [n, k, many] = [1024, 1024, 32];

/** How long each product is timed at least: two products of three formats make a second, with the rest. */
const timedMs = 120;

/** The error may be off its expectation by this share: with a million weights chance makes far less of it. */
const errorTolerance = 0.02;

/** A product may differ from the dense product of the same dequantised weight by fp32's rounding only. */
const productErrorMax = 1e-5;

/** What the self-test found of one format on one device: figures, or that they would be the CPU's. */
export type SelfTest = { readonly format: string } & ({ readonly onCpu: true } | ({ readonly onCpu: false } & Figures));

export interface Figures {
  readonly sound: boolean;
  /** ‖w − ŵ‖ / ‖w‖ of a weight evenly spread over [-1, 1]. */
  readonly error: number;
  /** What that must be, worked out from the codebook. */
  readonly errorExpected: number;
  /** ‖x · ŵᵀ − product‖ / ‖x · ŵᵀ‖, against the dense product. */
  readonly productError: number;
  /** Of weight and activations that a product of one row reads and writes. */
  readonly gigabytesPerSecond: number;
  /** Of a product of 32 rows. */
  readonly gigaflops: number;
}

/** A weight in one format, and what is done with it. */
interface Subject extends Disposable {
  readonly byteLength: number;
  readonly code: Float32Array;
  readonly blocksize: number;
  dequantize(): Tensor<"float32">;
  multiply(x: Tensor<"float32">): Tensor<"float32">;
}

function blockwise(q: QuantizedTensor): Subject {
  const [dequantize, multiply] = q.bits === 4 ? [dequantize4bit, matmul4bit] : [dequantizeBlockwise, matmulBlockwise];
  return {
    byteLength: q.byteLength,
    code: q.code,
    blocksize: q.blocksize,
    dequantize: () => dequantize(q, { dtype: "float32" }),
    multiply: (x) => multiply(x, q, { precision: "highest" }),
    [Symbol.dispose]: () => q.dispose(),
  };
}

function int8(w: Int8Weight): Subject {
  const { code, blocksize } = w.blockwise;
  return {
    byteLength: w.byteLength,
    code,
    blocksize,
    dequantize: () => w.dequantize({ dtype: "float32" }),
    multiply: (x) => matmul8bitFp(x, w, { precision: "highest" }),
    [Symbol.dispose]: () => w.dispose(),
  };
}

const formats: [name: string, quantize: (w: Tensor) => Subject][] = [
  ["nf4", (w) => blockwise(quantize4bit(w))],
  ["8-bit dynamic", (w) => blockwise(quantizeBlockwise(w, { blocksize: 256 }))],
  ["int8", (w) => int8(Int8Weight.quantize(w))],
];

/**
 * Tests a device in about a second; what it leaves to the CPU has no figures of its own. @throws BnbError where an
 * operation fails on it
 */
export function selfTest(device: Device): SelfTest[] {
  const uniform = (length: number) => Float32Array.from({ length }, () => 2 * Math.random() - 1);
  using w = Tensor.from(uniform(n * k), [n, k], { device });
  using one = Tensor.from(uniform(k), [1, k], { device });
  using batch = Tensor.from(uniform(many * k), [many, k], { device });
  return formats.map(([format, quantize]) => {
    const { fallbacks } = device.counters;
    using subject = quantize(w);
    using back = subject.dequantize();
    using dense = linear(batch, back, { precision: "highest" });
    using product = subject.multiply(batch);
    const error = ratio(w, back);
    const errorExpected = expectedError(subject.code, subject.blocksize);
    const productError = ratio(dense, product);
    const sound = Math.abs(error / errorExpected - 1) < errorTolerance && productError < productErrorMax;
    const bytes = subject.byteLength + one.byteLength + n * 4;
    const gigabytesPerSecond = bytes / medianNs(() => subject.multiply(one), device);
    const gigaflops = (2 * many * n * k) / medianNs(() => subject.multiply(batch), device);
    if (device.counters.fallbacks > fallbacks) return { format, onCpu: true };
    return { format, onCpu: false, sound, error, errorExpected, productError, gigabytesPerSecond, gigaflops };
  });
}

function ratio(a: Tensor, b: Tensor): number {
  const { rms, rmsError, nonFinite } = compare(a, b);
  return nonFinite ? Number.NaN : rmsError / rms;
}

/**
 * The relative error of weights that are independent and evenly spread. In a block of b the largest magnitude m has
 * E[m²] = b / (b + 2) and no error; each of the others falls between two of the codebook's values that lie g apart with
 * a probability in proportion to g, and is off by m² · g² / 12 in the mean.
 */
function expectedError(code: Float32Array, b: number): number {
  const sorted = code.toSorted();
  const cubes = sorted.slice(1).reduce((sum, value, i) => sum + (value - sorted[i]!) ** 3, 0);
  return Math.sqrt((((b - 1) / (b + 2)) * cubes) / 8);
}

function medianNs(run: () => Tensor, device: Device): number {
  const times: number[] = [];
  const end = performance.now() + timedMs;
  do {
    const started = Bun.nanoseconds();
    run().dispose();
    device.wait();
    times.push(Bun.nanoseconds() - started);
  } while (performance.now() < end);
  return times.sort((a, b) => a - b)[times.length >> 1]!;
}
