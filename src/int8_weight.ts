// Owns a weight in int8 and the products with it. Checks, kernels and fallbacks are in csrc/ops/int8_matmul.c.

import { Codebook } from "./codebook.ts";
import type { Device } from "./device.ts";
import type { FloatDType } from "./dtype.ts";
import { BnbError } from "./error.ts";
import { type Int8QuantOptions, int8VectorwiseDequant, int8VectorwiseQuant, productShape } from "./int8.ts";
import { type MatmulOptions, matmulBlockwise } from "./matmul.ts";
import { native } from "./native.ts";
import type { DequantizeOptions } from "./quantize.ts";
import { QuantizedTensor } from "./quantized.ts";
import { format, type Shape } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/**
 * A weight in int8 with a scale a row, under the names of bitsandbytes' `Int8Params` and state dict. It owns its two
 * tensors: disposing of it disposes of both.
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
    if (CB.dtype !== "int8" || CB.shape.length !== 2)
      throw new BnbError(`Int8Weight: CB is ${CB.dtype} ${format(CB.shape)}, expected int8 [n, k].`);
    if (SCB.dtype !== "float32" || SCB.shape.length !== 1 || SCB.size !== CB.shape[0])
      throw new BnbError(`Int8Weight: SCB is ${SCB.dtype} ${format(SCB.shape)}, expected float32 [${CB.shape[0]}].`);
    this.CB = CB;
    this.SCB = SCB;
  }

  /**
   * Quantises a weight [n, k] as bitsandbytes does: rounded to float16 first, so that the bytes are those of its
   * checkpoints.
   *
   * @throws BnbError for an integer tensor, one that has not two dimensions, or a NaN, an infinity or a magnitude beyond
   *   float16's 65,504 (the message says where)
   */
  static quantize(w: Tensor): Int8Weight {
    if (w.shape.length !== 2) throw new BnbError(`Int8Weight.quantize: w is ${format(w.shape)}, expected [n, k].`);
    using half = w.cast("float16");
    const { quantized, rowStats } = int8VectorwiseQuant(half);
    return new Int8Weight(quantized, rowStats);
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
    return int8VectorwiseDequant(this.CB, this.SCB, { dtype: options.dtype ?? ("float16" as D) });
  }

  /**
   * The same weight as a {@link QuantizedTensor} whose blocks are its rows, for what multiplies or looks up with activations in
   * floating point: `matmulBlockwise`, `dequantizeBlockwise`. It shares the memory, and goes when this weight does.
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
}

/**
 * `x · wᵀ + bias` by LLM.int8(): rows of `x` become int8 too, the sums are exact, and columns of `x` that hold a magnitude of
 * at least `threshold` are multiplied in floating point. One native call. Upstream: `bitsandbytes.matmul`.
 *
 * @example
 * ```ts
 * using w = Int8Weight.quantize(Tensor.from([0.5, -0.5, 1, 0], [2, 2]));
 * using x = Tensor.from([1, 2], [1, 2]);
 * using y = matmul8bit(x, w, { threshold: 6 });
 * y.read(); // → [-0.5, 1]
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; the result is [..., n] in the same dtype. Upstream rounds x to float16
 *   first; here it is quantised as it is, so that large bfloat16 values survive
 * @param options `threshold` is 0 by default, no outliers; transformers uses 6
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmul8bit<D extends FloatDType>(
  x: Tensor<D>,
  w: Int8Weight,
  options: Int8QuantOptions & { bias?: Tensor | undefined } = {},
): Tensor<D> {
  const { threshold = 0, bias } = options;
  const shape = productShape(x, w.CB, "matmul8bit");
  const pointer = native.bnb_int8_matmul(x.pointer, w.CB.pointer, w.SCB.pointer, threshold, bias?.pointer ?? null);
  return new Tensor(pointer, x.dtype, shape, x.device);
}

/**
 * `x · wᵀ + bias` with `x` as it is and only the weight in int8, which is never written out whole: what bitsandbytes trains
 * with, and the more exact product. Upstream: `MatMul8bitFp`.
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
  return matmulBlockwise(x, w.blockwise, options);
}
