// A weight in int8 and the products with it. Checks, kernels and fallbacks are in csrc/ops/int8_matmul.c.

import { Codebook } from "./codebook.ts";
import { type Device, type DeviceName, deviceOf } from "./device.ts";
import type { FloatDType } from "./dtype.ts";
import { inspect } from "./inspect.ts";
import { dequantizeRows, type Int8QuantOptions, quantizeRows } from "./int8.ts";
import { biasPointer, type MatmulOptions, matmulQuantized, noRows, resultShape } from "./matmul.ts";
import { native } from "./native.ts";
import type { DequantizeOptions } from "./quantize.ts";
import { QuantizedTensor } from "./quantized.ts";
import { format, type Shape, sizeOf } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/**
 * An int8 weight with one scale a row. Its fields have the names of bitsandbytes' `Int8Params` and state dict. It owns
 * both tensors and disposes of them.
 *
 * @example
 * ```ts
 * using w = Int8Weight.quantize(Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]));
 * w.byteLength; // → 8704
 * using x = Tensor.from(new Float32Array(2 * 64).fill(1), [2, 64]);
 * using y = matmul8bit(x, w, { threshold: 6 });
 * y.shape; // → [2, 128]
 * ```
 */
export class Int8Weight implements Disposable {
  /** int8 [n, k]: the codes. */
  readonly CB: Tensor<"int8">;
  /** float32 [n]: the largest magnitude of each row. */
  readonly SCB: Tensor<"float32">;

  /** Takes over two tensors. @throws BnbError if their shapes or dtypes do not make a weight */
  constructor(CB: Tensor<"int8">, SCB: Tensor<"float32">) {
    const me = signatures.weight;
    me.tensor(CB, "CB");
    me.tensor(SCB, "SCB");
    if (CB.dtype !== "int8" || CB.shape.length !== 2)
      throw me.fail(`CB is ${CB.dtype} ${format(CB.shape)}, expected int8 [n, k].`);
    if (SCB.dtype !== "float32" || SCB.shape.length !== 1 || SCB.size !== CB.shape[0])
      throw me.fail(`SCB is ${SCB.dtype} ${format(SCB.shape)}, expected float32 [${CB.shape[0]}].`);
    this.CB = CB;
    this.SCB = SCB;
  }

  /**
   * Quantises a weight [n, k] as bitsandbytes does: rounded to float16 first, so that the bytes are those of its
   * checkpoints.
   *
   * @throws BnbError for an integer tensor, one that has not two dimensions, or a NaN, an infinity or a magnitude
   * beyond float16's 65,504 (the message says where)
   */
  static quantize(w: Tensor): Int8Weight {
    return Int8Weight.quantizeAs(signatures.quantize, w, "w");
  }

  /** @internal {@link quantize} under another function's name. */
  static quantizeAs(me: Signature, w: Tensor, argument: string): Int8Weight {
    me.tensor(w, argument);
    const shape = w.shape;
    if (shape.length !== 2) throw me.fail(`${argument} is ${format(shape)}, expected two dimensions, [n, k].`);
    const words = new Signature(me.name, { native: { x: argument } });
    using half = w.castAs(words, "float16");
    const { quantized, rowStats } = quantizeRows(words, half, {});
    return new Int8Weight(quantized, rowStats);
  }

  /** @internal Whether a value is a weight, by a private field. */
  static is(value: unknown): value is Int8Weight {
    return typeof value === "object" && value !== null && #blockwise in value;
  }

  /** [n, k] */
  get shape(): Shape {
    return this.CB.shape;
  }

  get device(): Device {
    return this.CB.device;
  }

  /** Bytes of codes and scales in memory. */
  get byteLength(): number {
    return this.CB.byteLength + this.SCB.byteLength;
  }

  /** The weight that the codes stand for, [n, k]; float16 by default, as it was before. */
  dequantize<D extends FloatDType = "float16">(options: DequantizeOptions<D> = {}): Tensor<D> {
    const me = signatures.dequantize;
    const { dtype = "float16" as D } = me.options(options);
    return dequantizeRows(me, this.CB, this.SCB, { dtype });
  }

  /** {@link matmul8bitFp} with this weight: `x · wᵀ + bias`, [..., n] of x [..., k]. */
  matmul<D extends FloatDType>(x: Tensor<D>, options: MatmulOptions = {}): Tensor<D> {
    const me = signatures.matmul;
    return matmulQuantized(me, x, this.blockwise, me.options(options));
  }

  /** A copy on another device. */
  to(device: Device | DeviceName): Int8Weight {
    const target = deviceOf(signatures.to, device);
    return new Int8Weight(this.CB.to(target), this.SCB.to(target));
  }

  /**
   * The same weight as a {@link QuantizedTensor} whose blocks are its rows, for what multiplies or looks up with
   * activations in floating point: `matmulBlockwise`, `dequantizeBlockwise`. It shares the memory, and goes when this
   * weight does.
   */
  get blockwise(): QuantizedTensor {
    this.#blockwise ??= QuantizedTensor.fromParts({
      codes: this.CB,
      absmax: this.SCB,
      code: Codebook.named("int8"),
      blocksize: this.shape[1]!,
      shape: this.shape,
      dtype: "float16",
    });
    return this.#blockwise;
  }

  #blockwise: QuantizedTensor | undefined;

  /** Frees the memory; work that still uses it finishes first. Again is harmless. */
  dispose(): void {
    this.#blockwise?.dispose();
    this.CB.dispose();
    this.SCB.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  toString(): string {
    return `Int8Weight(${format(this.shape)} on ${this.device})`;
  }

  /** What console.log shows. */
  [inspect](): string {
    return String(this);
  }
}

/**
 * `x · wᵀ + bias` by LLM.int8(): rows of `x` become int8 too, the sums are exact, and columns of `x` that hold a
 * magnitude of at least `threshold` are multiplied in floating point. One native call. Upstream: `bitsandbytes.matmul`.
 *
 * @example
 * ```ts
 * using w = Int8Weight.quantize(Tensor.from([0.5, -0.5, 1, 0], [2, 2]));
 * using x = Tensor.from([1, 2], [1, 2]);
 * using y = matmul8bit(x, w, { threshold: 6 });
 * y.read(); // → [-0.5, 1]
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; the result is [..., n] in the same dtype. Upstream rounds x to
 * float16 first; here it is quantised as it is, so that large bfloat16 values survive
 * @param options `threshold` is 0 by default, no outliers; transformers uses 6
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmul8bit<D extends FloatDType>(
  x: Tensor<D>,
  w: Int8Weight,
  options: Int8QuantOptions & { bias?: Tensor | undefined } = {},
): Tensor<D> {
  const me = signatures.matmul8bit;
  return multiply(me, x, w, me.options(options));
}

/** @internal {@link matmul8bit} under another function's name. */
export function multiply<D extends FloatDType>(
  me: Signature,
  x: Tensor<D>,
  w: Int8Weight,
  { threshold = 0, bias }: Int8QuantOptions & { bias?: Tensor | undefined },
): Tensor<D> {
  const input = me.batch(x, "x");
  me.object(w, "w", Int8Weight);
  const [codes, scales] = [me.tensor(w.CB, "w.CB"), me.tensor(w.SCB, "w.SCB")];
  const n = w.CB.shape;
  const shape = resultShape(me, x.shape, n);
  me.notNegative(threshold, "threshold");
  if (sizeOf(shape) === 0) return noRows(me, x, shape, () => biasPointer(me, bias, n));
  const pointer = native.bnb_int8_matmul(input, codes, scales, threshold, biasPointer(me, bias, n));
  return new Tensor(me.made(pointer), x.dtype, shape, x.device);
}

/**
 * `x · wᵀ + bias` with `x` as it is and only the weight in int8: what bitsandbytes trains with, and the more exact
 * product. Upstream: `MatMul8bitFp`.
 *
 * @example
 * ```ts
 * using w = Int8Weight.quantize(Tensor.from([0.5, -0.5, 1, 0], [2, 2]));
 * using x = Tensor.from([0.01, 1000], [1, 2]); // both count: x is not quantised
 * using y = matmul8bitFp(x, w);
 * y.read(); // → [-499.995, 0.01]
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; the result is [..., n] in the same dtype
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmul8bitFp<D extends FloatDType>(
  x: Tensor<D>,
  w: Int8Weight,
  options: MatmulOptions = {},
): Tensor<D> {
  const me = signatures.matmul8bitFp;
  const weight = me.object(w, "w", Int8Weight).blockwise;
  return matmulQuantized(me, x, weight, me.options(options));
}

const signatures = {
  weight: new Signature("Int8Weight"),
  quantize: new Signature("Int8Weight.quantize"),
  dequantize: new Signature("Int8Weight.dequantize", { options: ["dtype"] }),
  matmul: new Signature("Int8Weight.matmul", { options: ["bias", "precision"] }),
  to: new Signature("Int8Weight.to"),
  matmul8bit: new Signature("matmul8bit", { options: ["threshold", "bias"] }),
  matmul8bitFp: new Signature("matmul8bitFp", { options: ["bias", "precision"] }),
};
