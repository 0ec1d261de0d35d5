// Lion (Chen et al. 2023), in 32 and in 8 bits, and under the names of paged states.
import { type BitsOption, type CommonOptions, type Family, ofAnyBits, ofBits, type PagedOption } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

/** Options of {@link Lion}. */
export interface LionOptions extends CommonOptions, PagedOption {
  betas?: readonly [number, number];
}

const lion: Family = { kind: "lion", defaults: { lr: 1e-4, betas: [0.9, 0.99] }, settings: ["betas"], paged: true };

/**
 * Lion (Chen et al. 2023): each step is the sign of a moving average of the gradient.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1, 1]));
 * p.grad = Tensor.from([0.5, -100]);
 * using optimizer = new optim.Lion([p], { lr: 0.01 });
 * optimizer.step();
 * p.data.read(); // → [0.99, 1.01]
 * ```
 */
export class Lion extends Optimizer {
  constructor(params: Params<LionOptions & BitsOption>, options: LionOptions & BitsOption = {}) {
    super("Lion", ofAnyBits(lion), params, options);
  }
}

/**
 * {@link Lion} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.Lion8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.Lion8bit = new optim.Lion8bit([p], { lr: 1e-3 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class Lion8bit extends Optimizer {
  constructor(params: Params<LionOptions>, options: LionOptions = {}) {
    super("Lion8bit", ofBits(lion, 8), params, options);
  }
}

/**
 * {@link Lion} with 32-bit states. Upstream: `optim.Lion32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.Lion32bit = new optim.Lion32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class Lion32bit extends Optimizer {
  constructor(params: Params<LionOptions>, options: LionOptions = {}) {
    super("Lion32bit", ofBits(lion, 32), params, options);
  }
}

/**
 * {@link Lion}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the same
 * here. Upstream: `optim.PagedLion`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedLion = new optim.PagedLion([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedLion extends Optimizer {
  constructor(params: Params<LionOptions & BitsOption>, options: LionOptions & BitsOption = {}) {
    super("PagedLion", ofAnyBits(lion), params, options);
  }
}

/**
 * {@link Lion8bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the same
 * here. Upstream: `optim.PagedLion8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedLion8bit = new optim.PagedLion8bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedLion8bit extends Optimizer {
  constructor(params: Params<LionOptions>, options: LionOptions = {}) {
    super("PagedLion8bit", ofBits(lion, 8), params, options);
  }
}

/**
 * {@link Lion32bit}, under the name of its paged form in bitsandbytes: {@link PagedOption} says why the two are the
 * same here. Upstream: `optim.PagedLion32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.PagedLion32bit = new optim.PagedLion32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.lr; // → 0.001
 * ```
 */
export class PagedLion32bit extends Optimizer {
  constructor(params: Params<LionOptions>, options: LionOptions = {}) {
    super("PagedLion32bit", ofBits(lion, 32), params, options);
  }
}
