// Stochastic gradient descent with momentum, in 32 and in 8 bits.
import { type BitsOption, type CommonOptions, type Family, ofAnyBits, ofBits } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

/** Options of {@link SGD}. `lr` has no default. Without momentum the state holds the last gradient. */
export interface SGDOptions extends CommonOptions {
  lr: number;
  momentum?: number;
  dampening?: 0;
  nesterov?: false;
}

/** @internal The rule, which others are made of. */
export const sgd: Family = {
  kind: "momentum",
  defaults: {},
  settings: [],
  beta1: "momentum",
  only: { dampening: 0, nesterov: false },
};

/**
 * Stochastic gradient descent with momentum.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1, 1]));
 * p.grad = Tensor.from([1, -2]);
 * using optimizer = new optim.SGD([p], { lr: 0.1, momentum: 0.9 });
 * optimizer.step();
 * optimizer.step();
 * p.data.read(); // → [0.71, 1.58]
 * ```
 */
export class SGD extends Optimizer {
  constructor(params: Params<SGDOptions & BitsOption>, options: SGDOptions & BitsOption) {
    super("SGD", ofAnyBits(sgd), params, options);
  }
}

/**
 * {@link SGD} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.SGD8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.SGD8bit = new optim.SGD8bit([p], { lr: 0.1 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class SGD8bit extends Optimizer {
  constructor(params: Params<SGDOptions>, options: SGDOptions) {
    super("SGD8bit", ofBits(sgd, 8), params, options);
  }
}

/**
 * {@link SGD} with 32-bit states. Upstream: `optim.SGD32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.SGD32bit = new optim.SGD32bit([p], { lr: 0.1 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class SGD32bit extends Optimizer {
  constructor(params: Params<SGDOptions>, options: SGDOptions) {
    super("SGD32bit", ofBits(sgd, 32), params, options);
  }
}
