// LAMB (You et al. 2020), in 32 and in 8 bits.
import { adam } from "./adam.ts";
import { type BitsOption, type CommonOptions, type Family, ofAnyBits, ofBits } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

/** Options of {@link LAMB}. */
export interface LAMBOptions extends CommonOptions {
  betas?: readonly [number, number];
  eps?: number;
  maxUnorm?: number;
  amsgrad?: false;
  biasCorrection?: true;
  adamWMode?: true;
}

const lamb: Family = {
  kind: "adam",
  defaults: { ...adam.defaults, maxUnorm: 1 },
  settings: ["betas", "eps", "maxUnorm"],
  only: { amsgrad: false, biasCorrection: true, adamWMode: true },
};

/**
 * LAMB (You et al. 2020): Adam with a trust ratio, computed from bias-corrected moments. The 8-bit form has it too;
 * bitsandbytes leaves it out there.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1, 1]));
 * p.grad = Tensor.from([1, -1]);
 * using optimizer = new optim.LAMB([p], { lr: 0.1, maxUnorm: 0.5 });
 * optimizer.step();
 * p.data.read(); // → [0.95, 1.05]
 * ```
 */
export class LAMB extends Optimizer {
  constructor(params: Params<LAMBOptions & BitsOption>, options: LAMBOptions & BitsOption = {}) {
    super("LAMB", ofAnyBits(lamb), params, options);
  }
}

/**
 * {@link LAMB} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.LAMB8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.LAMB8bit = new optim.LAMB8bit([p], { lr: 1e-3 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class LAMB8bit extends Optimizer {
  constructor(params: Params<LAMBOptions>, options: LAMBOptions = {}) {
    super("LAMB8bit", ofBits(lamb, 8), params, options);
  }
}

/**
 * {@link LAMB} with 32-bit states. Upstream: `optim.LAMB32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.LAMB32bit = new optim.LAMB32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class LAMB32bit extends Optimizer {
  constructor(params: Params<LAMBOptions>, options: LAMBOptions = {}) {
    super("LAMB32bit", ofBits(lamb, 32), params, options);
  }
}
