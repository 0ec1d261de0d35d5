// RMSprop (Tieleman and Hinton 2012), in 32 and in 8 bits.
import { type BitsOption, type CommonOptions, type Family, ofAnyBits, ofBits } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

/** Options of {@link RMSprop}. `alpha` is the decay rate of the mean of squares. */
export interface RMSpropOptions extends CommonOptions {
  alpha?: number;
  eps?: number;
  momentum?: 0;
  centered?: false;
}

const rmsprop: Family = {
  kind: "rmsprop",
  defaults: { lr: 0.01, betas: [0.99, 0], eps: 1e-8 },
  settings: ["eps"],
  beta1: "alpha",
  only: { momentum: 0, centered: false },
};

/**
 * RMSprop (Tieleman and Hinton 2012).
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1]));
 * p.grad = Tensor.from([1]);
 * using optimizer = new optim.RMSprop([p], { lr: 0.01, alpha: 0.99 });
 * optimizer.step();
 * p.data.read(); // → [0.9]
 * ```
 */
export class RMSprop extends Optimizer {
  constructor(params: Params<RMSpropOptions & BitsOption>, options: RMSpropOptions & BitsOption = {}) {
    super("RMSprop", ofAnyBits(rmsprop), params, options);
  }
}

/**
 * {@link RMSprop} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.RMSprop8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.RMSprop8bit = new optim.RMSprop8bit([p], { lr: 1e-3 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class RMSprop8bit extends Optimizer {
  constructor(params: Params<RMSpropOptions>, options: RMSpropOptions = {}) {
    super("RMSprop8bit", ofBits(rmsprop, 8), params, options);
  }
}

/**
 * {@link RMSprop} with 32-bit states. Upstream: `optim.RMSprop32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.RMSprop32bit = new optim.RMSprop32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class RMSprop32bit extends Optimizer {
  constructor(params: Params<RMSpropOptions>, options: RMSpropOptions = {}) {
    super("RMSprop32bit", ofBits(rmsprop, 32), params, options);
  }
}
