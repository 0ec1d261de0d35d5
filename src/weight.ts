// Products with a weight of whatever kind: dense, quantised to any width, or in int8.
import type { FloatDType } from "./dtype.ts";
import { Int8Weight } from "./int8_weight.ts";
import { type MatmulOptions, matmulDense, matmulQuantized } from "./matmul.ts";
import { denseBackward, quantizedBackward } from "./matmul_backward.ts";
import type { QuantizedTensor } from "./quantized.ts";
import { Signature } from "./signature.ts";
import type { Tensor } from "./tensor.ts";

/** A weight [n, k] of any kind: what `checkpoint.loadWeight` gives. */
export type Weight = Tensor | QuantizedTensor | Int8Weight;

/** A weight as one of two kinds of handle: rows of int8 with a scale each are blocks of a row's length. */
export function handleOf(me: Signature, w: Weight): Tensor | QuantizedTensor {
  if (Int8Weight.is(w)) return w.blockwise;
  me.kind(w, "w", ["Tensor", "QuantizedTensor"], ["Int8Weight"]);
  return w;
}

const isQuantized = (w: Tensor | QuantizedTensor): w is QuantizedTensor => "bits" in w;

/**
 * `x · wᵀ + bias` with a weight of any kind, which is never dequantised as a whole. Activations stay in floating point:
 * for an int8 weight it is {@link matmul8bitFp}, and {@link matmul8bit} is the product whose activations become int8
 * too.
 *
 * @example
 * ```ts
 * using dense = Tensor.from([[1, 0], [0, 1], [1, 1]]);
 * using x = Tensor.from([[3, 4]]);
 * matmul(x, dense).read(); // → [3, 4, 7]
 * matmul(x, Int8Weight.quantize(dense)).read(); // → [3, 4, 7]
 * matmul(x, quantizeBlockwise(dense)).shape; // → [1, 3]
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; the result is [..., n] in the same dtype
 * @param w [n, k]
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmul<D extends FloatDType>(x: Tensor<D>, w: Weight, options: MatmulOptions = {}): Tensor<D> {
  const me = signatures.matmul;
  return product(me, x, w, me.options(options));
}

/** @internal {@link matmul} under another function's name. */
export function product<D extends FloatDType>(
  me: Signature,
  x: Tensor<D>,
  w: Weight,
  options: MatmulOptions,
): Tensor<D> {
  const handle = handleOf(me, w);
  return isQuantized(handle) ? matmulQuantized(me, x, handle, options) : matmulDense(me, x, handle, options);
}

/**
 * The gradient of {@link matmul} with respect to `x`: `dy · w`, with a weight of any kind.
 *
 * @example
 * ```ts
 * using w = Tensor.from([[1, 0], [0, 1], [1, 1]]);
 * using dy = Tensor.from([[1, 2, 3]]);
 * matmulBackward(dy, w).read(); // → [4, 5]
 * ```
 *
 * @param dy [..., n], float32, float16 or bfloat16
 * @param w [n, k]
 * @returns [..., k] in dy's dtype, summed in fp32
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmulBackward<D extends FloatDType>(dy: Tensor<D>, w: Weight): Tensor<D> {
  return productBackward(signatures.backward, dy, w);
}

/** @internal {@link matmulBackward} under another function's name. */
export function productBackward<D extends FloatDType>(me: Signature, dy: Tensor<D>, w: Weight): Tensor<D> {
  const handle = handleOf(me, w);
  return isQuantized(handle) ? quantizedBackward(me, dy, handle) : denseBackward(me, dy, handle);
}

const signatures = {
  matmul: new Signature("matmul", { options: ["bias", "precision"] }),
  backward: new Signature("matmulBackward"),
};
