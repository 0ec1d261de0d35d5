// AdEMAMix (Pagliardini et al. 2024), in 32 and in 8 bits, and under the names of paged states.
import { type BitsOption, type CommonOptions, type Family, ofAnyBits, ofBits, type PagedOption } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

/** Options of {@link AdEMAMix}; {@link Config} describes `tAlpha` and `tBeta3`. */
export interface AdEMAMixOptions extends CommonOptions, PagedOption {
  betas?: readonly [number, number, number];
  eps?: number;
  alpha?: number;
  tAlpha?: number | null;
  tBeta3?: number | null;
}

const ademamix: Family = {
  kind: "ademamix",
  defaults: { lr: 1e-3, betas: [0.9, 0.999, 0.9999], eps: 1e-8, alpha: 5, weightDecay: 0.01 },
  settings: ["betas", "eps", "alpha", "tAlpha", "tBeta3"],
  paged: true,
};

/**
 * AdEMAMix (Pagliardini et al. 2024): Adam with a fast and a slow average.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1]));
 * p.grad = Tensor.from([0.5]);
 * using optimizer = new optim.AdEMAMix([p], { lr: 0.01, alpha: 5, tAlpha: 1000, tBeta3: 1000 });
 * optimizer.step();
 * p.data.read(); // → [0.99]
 * ```
 */
export class AdEMAMix extends Optimizer {
  constructor(params: Params<AdEMAMixOptions & BitsOption>, options: AdEMAMixOptions & BitsOption = {}) {
    super("AdEMAMix", ofAnyBits(ademamix), params, options);
  }
}

/**
 * {@link AdEMAMix} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.AdEMAMix8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.AdEMAMix8bit = new optim.AdEMAMix8bit([p], { lr: 1e-3 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class AdEMAMix8bit extends Optimizer {
  constructor(params: Params<AdEMAMixOptions>, options: AdEMAMixOptions = {}) {
    super("AdEMAMix8bit", ofBits(ademamix, 8), params, options);
  }
}

/**
 * {@link AdEMAMix} with 32-bit states. Upstream: `optim.AdEMAMix32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.AdEMAMix32bit = new optim.AdEMAMix32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class AdEMAMix32bit extends Optimizer {
  constructor(params: Params<AdEMAMixOptions>, options: AdEMAMixOptions = {}) {
    super("AdEMAMix32bit", ofBits(ademamix, 32), params, options);
  }
}

/**
 * {@link AdEMAMix}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the same
 * here. Upstream: `optim.PagedAdEMAMix`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdEMAMix = new optim.PagedAdEMAMix([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdEMAMix extends Optimizer {
  constructor(params: Params<AdEMAMixOptions & BitsOption>, options: AdEMAMixOptions & BitsOption = {}) {
    super("PagedAdEMAMix", ofAnyBits(ademamix), params, options);
  }
}

/**
 * {@link AdEMAMix8bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the
 * same here. Upstream: `optim.PagedAdEMAMix8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdEMAMix8bit = new optim.PagedAdEMAMix8bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdEMAMix8bit extends Optimizer {
  constructor(params: Params<AdEMAMixOptions>, options: AdEMAMixOptions = {}) {
    super("PagedAdEMAMix8bit", ofBits(ademamix, 8), params, options);
  }
}

/**
 * {@link AdEMAMix32bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the
 * same here. Upstream: `optim.PagedAdEMAMix32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdEMAMix32bit = new optim.PagedAdEMAMix32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdEMAMix32bit extends Optimizer {
  constructor(params: Params<AdEMAMixOptions>, options: AdEMAMixOptions = {}) {
    super("PagedAdEMAMix32bit", ofBits(ademamix, 32), params, options);
  }
}
