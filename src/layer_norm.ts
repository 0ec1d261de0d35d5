// Layer normalisation and its gradients. Checks, kernels and fallbacks are in csrc/ops/layer_norm.c.
import type { FloatDType } from "./dtype.ts";
import { noRows } from "./matmul.ts";
import { biasGradient } from "./matmul_backward.ts";
import { native } from "./native.ts";
import { format, type Shape, sameShape, sizeOf } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** What is added to the variance where nothing else is said: torch's default. */
export const defaultEps = 1e-5;

/**
 * Layer normalisation over the last dimension: (x − mean) / √(variance + eps) · weight + bias (Ba et al. 2016).
 * Upstream: `torch.nn.functional.layer_norm`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([1, 2, 3], [1, 3]);
 * using weight = Tensor.from([1, 1, 1]);
 * using bias = Tensor.from([0, 0, 10]);
 * using y = layerNorm(x, weight, bias);
 * y.read(); // → [-1.22, 0, 11.22]
 * ```
 *
 * @param x [..., n], float32, float16 or bfloat16; the result has its shape and dtype
 * @param weight [n], any float dtype
 * @param bias [n], any float dtype
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function layerNorm<D extends FloatDType>(
  x: Tensor<D>,
  weight: Tensor,
  bias: Tensor,
  options: { eps?: number } = {},
): Tensor<D> {
  const me = signatures.forward;
  return normalize(me, x, weight, bias, me.options(options));
}

/** @internal {@link layerNorm} under another function's name. */
export function normalize<D extends FloatDType>(
  me: Signature,
  x: Tensor<D>,
  weight: Tensor,
  bias: Tensor,
  { eps = defaultEps }: { eps?: number },
): Tensor<D> {
  const [input, factor, addend] = [me.batch(x, "x"), me.tensor(weight, "weight"), me.tensor(bias, "bias")];
  const shape = x.shape;
  checkAffine(me, weight.shape, shape, "weight");
  checkAffine(me, bias.shape, shape, "bias");
  if (sizeOf(shape) === 0) return noRows(me, x, shape, () => me.notNegative(eps, "eps"));
  const pointer = native.bnb_layer_norm(input, factor, addend, me.notNegative(eps, "eps"));
  return new Tensor(me.made(pointer), x.dtype, shape, x.device);
}

/** What {@link layerNormBackward} returns. */
export interface LayerNormGradients<D extends FloatDType> {
  /** The gradient of the input, in dy's dtype. */
  dx: Tensor<D>;
  /** float32 [n] */
  dWeight: Tensor<"float32">;
  /** float32 [n] */
  dBias: Tensor<"float32">;
}

/**
 * The gradients of {@link layerNorm} with respect to its input, weight and bias.
 *
 * @example
 * ```ts
 * using x = Tensor.from([1, 2, 3], [1, 3]);
 * using weight = Tensor.from([1, 1, 1]);
 * using dy = Tensor.from([1, 0, 0], [1, 3]);
 * const { dx, dWeight, dBias } = layerNormBackward(dy, x, weight);
 * dx.read(); // → [0.2, -0.41, 0.2]
 * dWeight.read(); // → [-1.22, 0, 0]
 * dBias.read(); // → [1, 0, 0]
 * ```
 *
 * @param dy of x's shape, any float dtype
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function layerNormBackward<D extends FloatDType>(
  dy: Tensor<D>,
  x: Tensor,
  weight: Tensor,
  options: { eps?: number } = {},
): LayerNormGradients<D> {
  const me = signatures.backward;
  return normalizeBackward(me, dy, x, weight, me.options(options));
}

/** @internal {@link layerNormBackward} under another function's name. */
export function normalizeBackward<D extends FloatDType>(
  me: Signature,
  dy: Tensor<D>,
  x: Tensor,
  weight: Tensor,
  { eps = defaultEps }: { eps?: number },
): LayerNormGradients<D> {
  me.notNegative(eps, "eps");
  const [gradient, input, factor] = [me.batch(dy, "dy"), me.batch(x, "x"), me.tensor(weight, "weight")];
  const shape = x.shape;
  checkAffine(me, weight.shape, shape, "weight");
  if (!sameShape(dy.shape, shape))
    throw me.fail(`dy is ${format(dy.shape)} and x is ${format(shape)}: they must match.`);
  if (sizeOf(shape) === 0) {
    const zeros = () => Tensor.zeros([shape.at(-1)!], { device: dy.device });
    return { dx: noRows(me, dy, shape), dWeight: zeros(), dBias: zeros() };
  }
  const dx = new Tensor(
    me.made(native.bnb_layer_norm_backward(gradient, input, factor, eps)),
    dy.dtype,
    shape,
    dy.device,
  );
  const weightPointer = me.made(native.bnb_layer_norm_backward_weight(gradient, input, eps));
  const dWeight = new Tensor(weightPointer, "float32", [shape.at(-1)!], dy.device);
  return { dx, dWeight, dBias: biasGradient(me, dy, { dtype: "float32" }) };
}

function checkAffine(me: Signature, shape: Shape, x: Shape, name: string): void {
  if (x.length === 0 || shape.length !== 1 || shape[0] !== x.at(-1))
    throw me.fail(
      `${name} is ${format(shape)} and x is ${format(x)}: ${name} needs an element for each of x's columns.`,
    );
}

const signatures = {
  forward: new Signature("layerNorm", { options: ["eps"] }),
  backward: new Signature("layerNormBackward", { options: ["eps"] }),
};
