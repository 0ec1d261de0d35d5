// Root mean square normalisation. Checks, kernels and fallbacks are in csrc/ops/rms_norm.c.
import type { FloatDType } from "./dtype.ts";
import { native } from "./native.ts";
import { format } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** Options of {@link rmsNorm}. */
export interface RmsNormOptions {
  /** Added to the mean of the squares; 1e-6 by default. */
  eps?: number | undefined;
  /**
   * Added to the weight: 1 where a checkpoint holds what the weight differs from one by, as Gemma's do. 0 by
   * default.
   */
  offset?: number | undefined;
  /** Of x's shape: `x` becomes `x + scale · residual` first, in place. */
  residual?: Tensor | undefined;
  /** 1 by default. */
  scale?: number | undefined;
}

/**
 * `x · weight / √(mean(x²) + eps)` (Zhang and Sennrich 2019). The mean is over runs of as many elements as the weight
 * has: whole rows, or the heads of a row. Computed in fp32 and rounded once. Upstream: `torch.nn.functional.rms_norm`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([3, 4, 6, 8], [1, 4]);
 * using weight = Tensor.from([1, 2]);
 * using y = rmsNorm(x, weight); // two runs
 * y.read(); // → [0.85, 2.26, 0.85, 2.26]
 * ```
 *
 * @param x [..., n], float32, float16 or bfloat16; the result has its shape and dtype
 * @param weight [d], any float dtype; d divides n
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function rmsNorm<D extends FloatDType>(x: Tensor<D>, weight: Tensor, options: RmsNormOptions = {}): Tensor<D> {
  const { eps = 1e-6, offset = 0, residual, scale = 1 } = me.options(options);
  const [input, factor, added] = [me.tensor(x, "x"), me.tensor(weight, "weight"), me.tensorIf(residual, "residual")];
  const { shape } = weight;
  if (shape.length !== 1) throw me.fail(`weight is ${format(shape)}, expected one dimension, [d].`);
  const pointer = native.bnb_rms_norm(
    input,
    added,
    me.finite(scale, "scale"),
    factor,
    me.finite(offset, "offset"),
    me.notNegative(eps, "eps"),
  );
  return new Tensor(me.made(pointer), x.dtype, x.shape, x.device);
}

const me = new Signature("rmsNorm", { options: ["eps", "offset", "residual", "scale"] });
