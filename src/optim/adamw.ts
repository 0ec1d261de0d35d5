// AdamW (Loshchilov and Hutter 2019), in 32 and in 8 bits, and under the names of paged states.
import { type AdamOptions, adam } from "./adam.ts";
import { type BitsOption, type Family, ofAnyBits, ofBits } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

const adamw: Family = { ...adam, defaults: { ...adam.defaults, weightDecay: 0.01 } };

/**
 * AdamW (Loshchilov and Hutter 2019): Adam with a weight decay of 0.01 by default.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1, 2]));
 * p.grad = Tensor.from([0.5, -0.5]);
 * using optimizer = new optim.AdamW([p], { lr: 0.01, weightDecay: 0.1, optimBits: 8 });
 * optimizer.step();
 * p.data.read(); // → [0.989, 2.008]
 * ```
 */
export class AdamW extends Optimizer {
  constructor(params: Params<AdamOptions & BitsOption>, options: AdamOptions & BitsOption = {}) {
    super("AdamW", ofAnyBits(adamw), params, options);
  }
}

/**
 * {@link AdamW} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.AdamW8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.AdamW8bit = new optim.AdamW8bit([p], { lr: 1e-3 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class AdamW8bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("AdamW8bit", ofBits(adamw, 8), params, options);
  }
}

/**
 * {@link AdamW} with 32-bit states. Upstream: `optim.AdamW32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.AdamW32bit = new optim.AdamW32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class AdamW32bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("AdamW32bit", ofBits(adamw, 32), params, options);
  }
}

/**
 * {@link AdamW}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the same
 * here. Upstream: `optim.PagedAdamW`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdamW = new optim.PagedAdamW([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdamW extends Optimizer {
  constructor(params: Params<AdamOptions & BitsOption>, options: AdamOptions & BitsOption = {}) {
    super("PagedAdamW", ofAnyBits(adamw), params, options);
  }
}

/**
 * {@link AdamW8bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the
 * same here. Upstream: `optim.PagedAdamW8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdamW8bit = new optim.PagedAdamW8bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdamW8bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("PagedAdamW8bit", ofBits(adamw, 8), params, options);
  }
}

/**
 * {@link AdamW32bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the
 * same here. Upstream: `optim.PagedAdamW32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdamW32bit = new optim.PagedAdamW32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdamW32bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("PagedAdamW32bit", ofBits(adamw, 32), params, options);
  }
}
