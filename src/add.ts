// Owns the sum of two tensors. Checks, kernels and fallbacks are in csrc/ops/add.c.
import type { FloatDType } from "./dtype.ts";
import { BnbError } from "./error.ts";
import { native } from "./native.ts";
import { format } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/**
 * `a + scale · b`, in a's dtype. Upstream: `torch.add` with its `alpha`.
 *
 * @example
 * ```ts
 * using a = Tensor.from([1, 2, 3]);
 * using b = Tensor.from([10, 10, 10]);
 * using sum = add(a, b, { scale: 0.5 });
 * sum.read(); // → [6, 7, 8]
 * ```
 *
 * @param b of a's shape, any float dtype
 * @throws BnbError if shapes, dtypes or devices do not fit, or `scale` is not finite
 */
export function add<D extends FloatDType>(a: Tensor<D>, b: Tensor, options: { scale?: number } = {}): Tensor<D> {
  if (format(a.shape) !== format(b.shape))
    throw new BnbError(`add: a is ${format(a.shape)} and b is ${format(b.shape)}: the shapes must match.`);
  return new Tensor(native.bnb_add(a.pointer, b.pointer, options.scale ?? 1), a.dtype, a.shape, a.device);
}

/**
 * `factor · x`, in x's dtype.
 *
 * @example
 * ```ts
 * using x = Tensor.from([1, 2, 3]);
 * using doubled = scale(x, 2);
 * doubled.read(); // → [2, 4, 6]
 * ```
 *
 * @throws BnbError for an integer tensor or a factor that is not finite
 */
export function scale<D extends FloatDType>(x: Tensor<D>, factor: number): Tensor<D> {
  return new Tensor(native.bnb_add(null, x.pointer, factor), x.dtype, x.shape, x.device);
}
