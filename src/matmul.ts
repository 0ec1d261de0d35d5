// Owns matrix products with quantised and dense weights. Checks, kernels and fallbacks are in csrc/ops/matmul.c.
import type { FloatDType } from "./dtype.ts";
import { BnbError } from "./error.ts";
import { type NativePointer, native, type Precision, precisions } from "./native.ts";
import type { QuantizedTensor } from "./quantized.ts";
import { format, type Shape } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/** Options of the products. */
export interface MatmulOptions {
  /** Added to every row of the product: one element for each row of the weight, any float dtype. */
  bias?: Tensor | undefined;
  /**
   * How exact the product is at least; less is faster on a CPU. What it may be off by, as the root mean square of the
   * error over that of the result, with normally distributed activations and 4-bit weights:
   *
   * - `"highest"`: products in fp32, 2e-7 to 1e-6.
   * - `"high"`: activations, in runs of 64, and codebook as int16: 2e-4, and 1e-4 where x has up to six rows.
   * - `"medium"`: the same as int8: 1e-2.
   *
   * Activations that integers can't stand for (an infinity, NaN, or a run whose largest is below 1e-25), blocks or rows
   * that are no multiple of 64, and weights of other than 4 bits are multiplied in fp32 whatever this says.
   */
  precision?: Precision | undefined;
}

/**
 * `x · wᵀ + bias` with a 4-bit weight, which is never written out whole. Upstream: `bitsandbytes.matmul_4bit`.
 *
 * @example
 * ```ts
 * using w = quantize4bit(Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]));
 * using x = Tensor.from(new Float32Array(2 * 64).fill(1), [2, 64]);
 * using y = matmul4bit(x, w);
 * y.shape; // → [2, 128]
 * y.read()[0]; // → 6.4
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; the result is [..., n] in the same dtype
 * @param w [n, k]
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmul4bit<D extends FloatDType>(
  x: Tensor<D>,
  w: QuantizedTensor,
  options: MatmulOptions = {},
): Tensor<D> {
  if (w.bits !== 4) throw new BnbError(`matmul4bit: w holds ${w.bits}-bit codes: use matmulBlockwise.`);
  return matmulQuantized(x, w, options, "matmul4bit");
}

/**
 * `x · wᵀ + bias` with a quantised weight of any width, which is never written out whole.
 *
 * @example
 * ```ts
 * using w = quantizeBlockwise(Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]), { blocksize: 256 });
 * using x = Tensor.from(new Float32Array(64).fill(1), [1, 64]);
 * using bias = Tensor.from(new Float32Array(128).fill(0.6));
 * using y = matmulBlockwise(x, w, { bias });
 * y.read()[0]; // → 7
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; the result is [..., n] in the same dtype
 * @param w [n, k]
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmulBlockwise<D extends FloatDType>(
  x: Tensor<D>,
  w: QuantizedTensor,
  options: MatmulOptions = {},
): Tensor<D> {
  return matmulQuantized(x, w, options, "matmulBlockwise");
}

/**
 * `x · wᵀ + bias` with a dense weight of any float dtype. Upstream: `torch.nn.functional.linear`.
 *
 * @example
 * ```ts
 * using w = Tensor.from([1, 0, 0, 1, 1, 1], [3, 2]);
 * using x = Tensor.from([3, 4], [1, 2]);
 * using y = linear(x, w);
 * y.read(); // → [3, 4, 7]
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; the result is [..., n] in the same dtype
 * @param w [n, k]
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function linear<D extends FloatDType>(x: Tensor<D>, w: Tensor, options: MatmulOptions = {}): Tensor<D> {
  const { bias, precision } = options;
  const shape = resultShape(x.shape, w.shape, "linear");
  const pointer = native.bnb_matmul(
    x.pointer,
    w.pointer,
    biasPointer(bias, w.shape, "linear"),
    precisionCode(precision, "linear"),
  );
  return new Tensor(pointer, x.dtype, shape, x.device);
}

function matmulQuantized<D extends FloatDType>(
  x: Tensor<D>,
  w: QuantizedTensor,
  options: MatmulOptions,
  what: string,
): Tensor<D> {
  const { bias, precision } = options;
  const shape = resultShape(x.shape, w.shape, what);
  const pointer = native.bnb_matmul_quantized(
    x.pointer,
    w.pointer,
    biasPointer(bias, w.shape, what),
    precisionCode(precision, what),
  );
  return new Tensor(pointer, x.dtype, shape, x.device);
}

function resultShape(x: Shape, w: Shape, what: string): Shape {
  if (w.length !== 2) throw new BnbError(`${what}: w is ${format(w)}, expected two dimensions, [n, k].`);
  const last = x.length - 1;
  if (last < 0 || x[last] !== w[1])
    throw new BnbError(`${what}: x is ${format(x)} and w is ${format(w)}: the last dimensions must match.`);
  const y = x.slice();
  y[last] = w[0]!;
  return y;
}

function biasPointer(bias: Tensor | undefined, w: Shape, what: string): NativePointer | null {
  if (!bias) return null;
  if (bias.shape.length > 1 || bias.size !== w[0])
    throw new BnbError(`${what}: bias is ${format(bias.shape)}, expected [${w[0]}], an element for each row of w.`);
  return bias.pointer;
}

function precisionCode(precision: Precision | undefined, what: string): number {
  const code =
    precision === undefined
      ? precisions.default
      : Object.hasOwn(precisions, precision)
        ? precisions[precision]
        : undefined;
  if (code === undefined)
    throw new BnbError(`${what}: precision is ${JSON.stringify(precision)}, expected "highest", "high" or "medium".`);
  return code;
}
