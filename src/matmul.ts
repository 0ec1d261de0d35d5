// Matrix products with quantised and dense weights. Checks, kernels and fallbacks are in csrc/ops/matmul.c.
import type { DType, FloatDType } from "./dtype.ts";
import { floatDtypes, type NativePointer, namedPrecisions, native, type Precision, precisions } from "./native.ts";
import type { QuantizedTensor } from "./quantized.ts";
import { format, type Shape, sizeOf } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** Options of the products. */
export interface MatmulOptions {
  /** Added to every row of the product: one element for each row of the weight, any float dtype. */
  bias?: Tensor | undefined;
  /**
   * How exact the product is at least; less is faster on a CPU. What it is off by, as the root mean square of the error
   * over that of the result, whatever the signs of activations are and however long their rows:
   *
   * - `"highest"`: products in fp32, 2e-7 to 1e-6.
   * - `"high"`: activations, in runs of 64, and codebook as int16: 2e-4, and up to 5e-4 where some activations are a
   *   hundred times as large as the rest, or weights far from normally distributed.
   * - `"medium"`: the same as int8: 1e-2, and up to 3e-2.
   *
   * Activations that integers can't stand for (an infinity, NaN, or a run whose largest is below 1e-25), blocks or rows
   * that are no multiple of 32, and weights of other than 4 bits are multiplied in fp32 whatever this says.
   */
  precision?: Precision | undefined;
}

/**
 * `x · wᵀ + bias` with a 4-bit weight, which is never dequantised as a whole. Upstream: `bitsandbytes.matmul_4bit`.
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
  const me = signatures.matmul4bit;
  me.quantized(w, "w");
  if (w.bits !== 4) throw me.fail(`w holds ${w.bits}-bit codes: use matmulBlockwise.`);
  return matmulQuantized(me, x, w, me.options(options));
}

/**
 * `x · wᵀ + bias` with a quantised weight of any width, which is never dequantised as a whole.
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
  const me = signatures.matmulBlockwise;
  return matmulQuantized(me, x, w, me.options(options));
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
  const me = signatures.linear;
  return matmulDense(me, x, w, me.options(options));
}

/** @internal The product with a dense weight, under the caller's name. */
export function matmulDense<D extends FloatDType>(
  me: Signature,
  x: Tensor<D>,
  w: Tensor,
  { bias, precision }: MatmulOptions,
): Tensor<D> {
  const [left, right] = [me.batch(x, "x"), me.tensor(w, "w")];
  const n = w.shape;
  const shape = resultShape(me, x.shape, n);
  if (sizeOf(shape) === 0) return noRows(me, x, shape, () => biasPointer(me, bias, n));
  const pointer = native.bnb_matmul(left, right, biasPointer(me, bias, n), precisionCode(me, precision));
  return new Tensor(me.made(pointer), x.dtype, shape, x.device);
}

/** @internal The product with a quantised weight, under the caller's name. */
export function matmulQuantized<D extends FloatDType>(
  me: Signature,
  x: Tensor<D>,
  w: QuantizedTensor,
  { bias, precision }: MatmulOptions,
): Tensor<D> {
  const [left, right] = [me.batch(x, "x"), me.quantized(w, "w")];
  const n = w.shape;
  const shape = resultShape(me, x.shape, n);
  if (sizeOf(shape) === 0) return noRows(me, x, shape, () => biasPointer(me, bias, n));
  const pointer = native.bnb_matmul_quantized(left, right, biasPointer(me, bias, n), precisionCode(me, precision));
  return new Tensor(me.made(pointer), x.dtype, shape, x.device);
}

/** @internal The result for a batch without rows, of a function that x and what else it takes would fit. */
export function noRows<D extends DType>(me: Signature, x: Tensor<D>, shape: Shape, check?: () => unknown): Tensor<D> {
  me.code(x.dtype, "the dtype of the batch", floatDtypes);
  check?.();
  return Tensor.empty(me, x.dtype, shape, x.device);
}

/** @internal [..., n], for x [..., k] and a weight [n, k]. */
export function resultShape(me: Signature, x: Shape, w: Shape, names = ["x", "w"]): Shape {
  const [left, right] = names;
  if (w.length !== 2) throw me.fail(`${right} is ${format(w)}, expected two dimensions, [n, k].`);
  const last = x.length - 1;
  if (last < 0 || x[last] !== w[1])
    throw me.fail(`${left} is ${format(x)} and ${right} is ${format(w)}: the last dimensions must match.`);
  const y = x.slice();
  y[last] = w[0]!;
  return y;
}

/** @internal The address of a bias for a weight [n, k]; null where there is none. */
export function biasPointer(me: Signature, bias: Tensor | undefined, w: Shape): NativePointer | null {
  const pointer = me.tensorIf(bias, "bias");
  if (bias && (bias.shape.length > 1 || bias.size !== w[0]))
    throw me.fail(`bias is ${format(bias.shape)}, expected [${w[0]}], an element for each row of w.`);
  return pointer;
}

function precisionCode(me: Signature, precision: Precision | undefined): number {
  return precision === undefined ? precisions.default : me.code(precision, "precision", namedPrecisions);
}

const options = ["bias", "precision"];
const signatures = {
  matmul4bit: new Signature("matmul4bit", { options }),
  matmulBlockwise: new Signature("matmulBlockwise", { options }),
  linear: new Signature("linear", { options }),
};
