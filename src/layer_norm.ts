// Owns layer normalisation and its gradients. Checks, kernels and fallbacks are in csrc/ops/layer_norm.c.
import type { FloatDType } from "./dtype.ts";
import { BnbError } from "./error.ts";
import { linearBackwardBias } from "./matmul_backward.ts";
import { native } from "./native.ts";
import { format, type Shape } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/** What is added to the variance where nothing else is said: torch's default. */
const defaultEps = 1e-5;

/**
 * Normalises over the last dimension: less the mean, by the standard deviation, times `weight`, plus `bias` (Ba et al.
 * 2016). Upstream: `torch.nn.functional.layer_norm`.
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
  checkAffine(weight.shape, x.shape, "weight");
  checkAffine(bias.shape, x.shape, "bias");
  const pointer = native.bnb_layer_norm(x.pointer, weight.pointer, bias.pointer, options.eps ?? defaultEps);
  return new Tensor(pointer, x.dtype, x.shape, x.device);
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
 * The gradients of {@link layerNorm} with respect to all that it takes.
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
  const { eps = defaultEps } = options;
  const n = x.shape.at(-1)!;
  checkAffine(weight.shape, x.shape, "weight");
  if (format(dy.shape) !== format(x.shape))
    throw new BnbError(`layerNormBackward: dy is ${format(dy.shape)} and x is ${format(x.shape)}: they must match.`);
  const pointer = native.bnb_layer_norm_backward(dy.pointer, x.pointer, weight.pointer, eps);
  const dx = new Tensor(pointer, dy.dtype, dy.shape, dy.device);
  const weightPointer = native.bnb_layer_norm_backward_weight(dy.pointer, x.pointer, eps);
  const dWeight = new Tensor(weightPointer, "float32", [n], dy.device);
  return { dx, dWeight, dBias: linearBackwardBias(dy, { dtype: "float32" }) };
}

function checkAffine(shape: Shape, x: Shape, name: string): void {
  if (x.length === 0 || shape.length !== 1 || shape[0] !== x.at(-1))
    throw new BnbError(
      `layerNorm: ${name} is ${format(shape)} and x is ${format(x)}: ${name} needs an element for each of x's columns.`,
    );
}
