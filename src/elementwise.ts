// What is done to each element by itself, and softmax. Checks, kernels and fallbacks are in csrc/ops/elementwise.c and
// softmax.c.
import type { FloatDType } from "./dtype.ts";
import { noRows } from "./matmul.ts";
import { floatDtypes, native } from "./native.ts";
import { format, sameShape, sizeOf } from "./shape.ts";
import { Signature } from "./signature.ts";
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
  const me = signatures.add;
  const { scale = 1 } = me.options(options);
  const [left, right] = [me.batch(a, "a"), me.batch(b, "b")];
  const shape = a.shape;
  if (!sameShape(shape, b.shape))
    throw me.fail(`a is ${format(shape)} and b is ${format(b.shape)}: the shapes must match.`);
  me.finite(scale, "scale");
  if (sizeOf(shape) === 0) return noRows(me, a, shape, () => me.code(b.dtype, "b's dtype", floatDtypes));
  return new Tensor(me.made(native.bnb_add(left, right, scale)), a.dtype, shape, a.device);
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
  const me = signatures.scale;
  // Of the one element that stands for none too.
  const pointer = native.bnb_add(null, me.batch(x, "x"), me.finite(factor, "factor"));
  return new Tensor(me.made(pointer), x.dtype, x.shape, x.device);
}

/**
 * `a · b`, element by element, in a's dtype. Upstream: `torch.mul`.
 *
 * @example
 * ```ts
 * using a = Tensor.from([1, 2, 3]);
 * using b = Tensor.from([10, 10, 0.5]);
 * mul(a, b).read(); // → [10, 20, 1.5]
 * ```
 *
 * @param b of a's shape, any float dtype
 * @throws BnbError if shapes, dtypes or devices do not fit
 */
export function mul<D extends FloatDType>(a: Tensor<D>, b: Tensor): Tensor<D> {
  const me = signatures.mul;
  const [left, right] = [me.batch(a, "a"), me.batch(b, "b")];
  const shape = a.shape;
  if (!sameShape(shape, b.shape))
    throw me.fail(`a is ${format(shape)} and b is ${format(b.shape)}: the shapes must match.`);
  return new Tensor(me.made(native.bnb_mul(left, right)), a.dtype, shape, a.device);
}

/**
 * e to the power of each element, in x's dtype: within 2 ulp in fp32, then rounded once. Upstream: `torch.exp`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([0, 1, -1]);
 * exp(x).read(); // → [1, 2.718, 0.368]
 * ```
 *
 * @throws BnbError for an integer tensor
 */
export function exp<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  const me = signatures.exp;
  return new Tensor(me.made(native.bnb_exp(me.batch(x, "x"))), x.dtype, x.shape, x.device);
}

/**
 * 1 / (1 + e⁻ˣ) for each element, in x's dtype: within 4 ulp in fp32, then rounded once. Upstream: `torch.sigmoid`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([0, 2, -100]);
 * sigmoid(x).read(); // → [0.5, 0.881, 0]
 * ```
 *
 * @throws BnbError for an integer tensor
 */
export function sigmoid<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  const me = signatures.sigmoid;
  return new Tensor(me.made(native.bnb_sigmoid(me.batch(x, "x"))), x.dtype, x.shape, x.device);
}

/**
 * Softmax along the last dimension, in x's dtype. Upstream: `torch.softmax(x, -1)`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([[1, 1], [1000, 0]]);
 * softmax(x).read(); // → [0.5, 0.5, 1, 0]
 * ```
 *
 * @param x [..., n], float32, float16 or bfloat16
 * @throws BnbError for an integer tensor
 */
export function softmax<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
  const me = signatures.softmax;
  const pointer = me.batch(x, "x");
  const shape = x.shape;
  if (sizeOf(shape) === 0) return noRows(me, x, shape);
  return new Tensor(me.made(native.bnb_softmax(pointer)), x.dtype, shape, x.device);
}

const signatures = {
  mul: new Signature("mul"),
  exp: new Signature("exp"),
  sigmoid: new Signature("sigmoid"),
  softmax: new Signature("softmax"),
  add: new Signature("add", { options: ["scale"] }),
  scale: new Signature("scale", { native: { b: "x", scale: "factor" } }),
};
