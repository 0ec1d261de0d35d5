// Adagrad (Duchi et al. 2011), in 32 and in 8 bits.
import { type BitsOption, type CommonOptions, type Family, ofAnyBits, ofBits } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

/** Options of {@link Adagrad}. */
export interface AdagradOptions extends CommonOptions {
  eps?: number;
  lrDecay?: 0;
  initialAccumulatorValue?: 0;
}

const adagrad: Family = {
  kind: "adagrad",
  defaults: { lr: 0.01, eps: 1e-10 },
  settings: ["eps"],
  only: { lrDecay: 0, initialAccumulatorValue: 0 },
};

/**
 * Adagrad (Duchi et al. 2011).
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1]));
 * p.grad = Tensor.from([4]);
 * using optimizer = new optim.Adagrad([p], { lr: 0.1 });
 * optimizer.step();
 * p.data.read(); // → [0.9]
 * ```
 */
export class Adagrad extends Optimizer {
  constructor(params: Params<AdagradOptions & BitsOption>, options: AdagradOptions & BitsOption = {}) {
    super("Adagrad", ofAnyBits(adagrad), params, options);
  }
}

/**
 * {@link Adagrad} with 8-bit states and a scale for every 256 elements (Dettmers et al. 2022, 8-bit Optimizers via
 * Block-wise Quantization). Parameters with fewer than `min8bitSize` elements keep 32-bit states. Upstream:
 * `optim.Adagrad8bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer: optim.Adagrad8bit = new optim.Adagrad8bit([p], { lr: 1e-3 });
 * optimizer.step();
 * optimizer.paramGroups[0]?.optimBits; // → 8
 * ```
 */
export class Adagrad8bit extends Optimizer {
  constructor(params: Params<AdagradOptions>, options: AdagradOptions = {}) {
    super("Adagrad8bit", ofBits(adagrad, 8), params, options);
  }
}

/**
 * {@link Adagrad} with 32-bit states. Upstream: `optim.Adagrad32bit`.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer: optim.Adagrad32bit = new optim.Adagrad32bit([p], { lr: 1e-3 });
 * optimizer.paramGroups[0]?.optimBits; // → 32
 * ```
 */
export class Adagrad32bit extends Optimizer {
  constructor(params: Params<AdagradOptions>, options: AdagradOptions = {}) {
    super("Adagrad32bit", ofBits(adagrad, 32), params, options);
  }
}
