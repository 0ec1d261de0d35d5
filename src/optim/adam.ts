// Adam (Kingma and Ba 2015), in 32 and in 8 bits, and under the names of paged states.
import { type BitsOption, type CommonOptions, type Family, ofAnyBits, ofBits, type PagedOption } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

/** Options of {@link Adam} and {@link AdamW}. */
export interface AdamOptions extends CommonOptions, PagedOption {
  betas?: readonly [number, number];
  eps?: number;
  amsgrad?: false;
}

/** @internal The rule, which others are made of. */
export const adam: Family = {
  kind: "adam",
  defaults: { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8 },
  settings: ["betas", "eps"],
  only: { amsgrad: false },
  paged: true,
};

/**
 * Adam (Kingma and Ba 2015). A weight decay is decoupled, as in AdamW.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer = new optim.Adam([p], { lr: 0.01 });
 * optimizer.step();
 * p.data.read()[0]; // → 0.99
 * ```
 */
export class Adam extends Optimizer {
  constructor(params: Params<AdamOptions & BitsOption>, options: AdamOptions & BitsOption = {}) {
    super("Adam", ofAnyBits(adam), params, options);
  }
}

/**
 * {@link Adam} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.Adam8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.Adam8bit = new optim.Adam8bit([p], { lr: 1e-3 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class Adam8bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("Adam8bit", ofBits(adam, 8), params, options);
  }
}

/**
 * {@link Adam} with 32-bit states. Upstream: `optim.Adam32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.Adam32bit = new optim.Adam32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class Adam32bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("Adam32bit", ofBits(adam, 32), params, options);
  }
}

/**
 * {@link Adam}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the same
 * here. Upstream: `optim.PagedAdam`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdam = new optim.PagedAdam([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdam extends Optimizer {
  constructor(params: Params<AdamOptions & BitsOption>, options: AdamOptions & BitsOption = {}) {
    super("PagedAdam", ofAnyBits(adam), params, options);
  }
}

/**
 * {@link Adam8bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the same
 * here. Upstream: `optim.PagedAdam8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdam8bit = new optim.PagedAdam8bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdam8bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("PagedAdam8bit", ofBits(adam, 8), params, options);
  }
}

/**
 * {@link Adam32bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the
 * same here. Upstream: `optim.PagedAdam32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedAdam32bit = new optim.PagedAdam32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedAdam32bit extends Optimizer {
  constructor(params: Params<AdamOptions>, options: AdamOptions = {}) {
    super("PagedAdam32bit", ofBits(adam, 32), params, options);
  }
}
