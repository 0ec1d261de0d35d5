// LARS (You et al. 2017), in 32 and in 8 bits.

import { type BitsOption, type Family, ofAnyBits, ofBits } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";
import { type SGDOptions, sgd } from "./sgd.ts";

/** Options of {@link LARS}. */
export interface LARSOptions extends SGDOptions {
  maxUnorm?: number;
}

const lars: Family = { ...sgd, defaults: { maxUnorm: 0.02 }, settings: ["maxUnorm"] };

/**
 * LARS (You et al. 2017): momentum with a trust ratio, which the 8-bit form has too.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([3, 4]));
 * p.grad = Tensor.from([30, 40]);
 * using optimizer = new optim.LARS([p], { lr: 1, momentum: 0.9, maxUnorm: 0.02 });
 * optimizer.step();
 * p.data.read(); // → [2.94, 3.92]
 * ```
 */
export class LARS extends Optimizer {
  constructor(params: Params<LARSOptions & BitsOption>, options: LARSOptions & BitsOption) {
    super("LARS", ofAnyBits(lars), params, options);
  }
}

/**
 * {@link LARS} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.LARS8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.LARS8bit = new optim.LARS8bit([p], { lr: 0.1 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class LARS8bit extends Optimizer {
  constructor(params: Params<LARSOptions>, options: LARSOptions) {
    super("LARS8bit", ofBits(lars, 8), params, options);
  }
}

/**
 * {@link LARS} with 32-bit states. Upstream: `optim.LARS32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.LARS32bit = new optim.LARS32bit([p], { lr: 0.1 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class LARS32bit extends Optimizer {
  constructor(params: Params<LARSOptions>, options: LARSOptions) {
    super("LARS32bit", ofBits(lars, 32), params, options);
  }
}
