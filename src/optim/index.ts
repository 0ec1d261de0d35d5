// Owns bitsandbytes' optimizer classes: a row for each family, of which every class in 8 and 32 bits follows.
import type { Config, Family } from "./config.ts";
import { Optimizer, type Params } from "./optimizer.ts";

export type { Config } from "./config.ts";
export { GlobalOptimManager } from "./manager.ts";
export {
  Optimizer,
  type OptimizerStateDict,
  type ParamGroup,
  type Params,
  type SavedGroup,
  type StepOptions,
} from "./optimizer.ts";
export type { StateEntry, StateTensors } from "./state.ts";

/** Options of every optimizer, of the whole or of a group; {@link Config} says what each is. */
export type CommonOptions = Partial<Pick<Config, "lr" | "weightDecay" | "min8bitSize" | "skipZeros">>;

/** The option of the classes that have no bits in their name: 8 or 32, which is the default. */
export type BitsOption = Partial<Pick<Config, "optimBits">>;

/**
 * The option of the classes that bitsandbytes can page: it and the Paged classes are taken, and nothing needs to be done.
 * Paging moves states out of a GPU's own memory and back. Here states lie in memory that GPU and CPU share, which the
 * operating system pages already.
 */
export interface PagedOption {
  isPaged?: boolean;
}

/** Options of {@link Adam} and {@link AdamW}. */
export interface AdamOptions extends CommonOptions, PagedOption {
  betas?: readonly [number, number];
  eps?: number;
  amsgrad?: false;
}

/** Options of {@link AdEMAMix}; {@link Config} says what `tAlpha` and `tBeta3` schedule. */
export interface AdEMAMixOptions extends CommonOptions, PagedOption {
  betas?: readonly [number, number, number];
  eps?: number;
  alpha?: number;
  tAlpha?: number | null;
  tBeta3?: number | null;
}

/** Options of {@link Lion}. */
export interface LionOptions extends CommonOptions, PagedOption {
  betas?: readonly [number, number];
}

/** `lr` has no default. Without momentum the state is the gradient. */
export interface SGDOptions extends CommonOptions {
  lr: number;
  momentum?: number;
  dampening?: 0;
  nesterov?: false;
}

/** `alpha` is what the mean of squares keeps of itself. */
export interface RMSpropOptions extends CommonOptions {
  alpha?: number;
  eps?: number;
  momentum?: 0;
  centered?: false;
}

/** Options of {@link Adagrad}. */
export interface AdagradOptions extends CommonOptions {
  eps?: number;
  lrDecay?: 0;
  initialAccumulatorValue?: 0;
}

/** Options of {@link LAMB}. */
export interface LAMBOptions extends CommonOptions {
  betas?: readonly [number, number];
  eps?: number;
  maxUnorm?: number;
  amsgrad?: false;
  biasCorrection?: true;
  adamWMode?: true;
}

/** Options of {@link LARS}. */
export interface LARSOptions extends SGDOptions {
  maxUnorm?: number;
}

/** A class of optimizers. Options may be left out where none is required. */
export type OptimizerClass<Options> = new (
  params: Params<Options>,
  ...options: object extends Options ? [options?: Options] : [options: Options]
) => Optimizer;

/** The classes of a family, by name. */
type Classes<Name extends string, Options> = { [N in Name]: OptimizerClass<Options & BitsOption> } & {
  [N in `${Name}8bit` | `${Name}32bit`]: OptimizerClass<Options>;
};

function classesOf<Name extends string, Options>(name: Name, family: Family): Classes<Name, Options> {
  const classOf = (full: string, of: Family) => ({
    [full]: class extends Optimizer {
      constructor(params: Params<object>, options: object = {}) {
        super(full, of, params, options);
      }
    },
  });
  const withBits = (optimBits: 8 | 32): Family => ({ ...family, defaults: { ...family.defaults, optimBits } });
  return {
    ...classOf(name, { ...family, settings: [...family.settings, "optimBits"] }),
    ...classOf(`${name}8bit`, withBits(8)),
    ...classOf(`${name}32bit`, withBits(32)),
  } as unknown as Classes<Name, Options>;
}

const adam: Family = {
  kind: "adam",
  defaults: { lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8 },
  settings: ["betas", "eps"],
  only: { amsgrad: false },
  paged: true,
};
const adamw: Family = { ...adam, defaults: { ...adam.defaults, weightDecay: 0.01 } };
const ademamix: Family = {
  kind: "ademamix",
  defaults: { lr: 1e-3, betas: [0.9, 0.999, 0.9999], eps: 1e-8, alpha: 5, weightDecay: 0.01 },
  settings: ["betas", "eps", "alpha", "tAlpha", "tBeta3"],
  paged: true,
};
const lion: Family = { kind: "lion", defaults: { lr: 1e-4, betas: [0.9, 0.99] }, settings: ["betas"], paged: true };
const sgd: Family = {
  kind: "momentum",
  defaults: {},
  settings: [],
  beta1: "momentum",
  only: { dampening: 0, nesterov: false },
};
const rmsprop: Family = {
  kind: "rmsprop",
  defaults: { lr: 0.01, betas: [0.99, 0], eps: 1e-8 },
  settings: ["eps"],
  beta1: "alpha",
  only: { momentum: 0, centered: false },
};
const adagrad: Family = {
  kind: "adagrad",
  defaults: { lr: 0.01, eps: 1e-10 },
  settings: ["eps"],
  only: { lrDecay: 0, initialAccumulatorValue: 0 },
};
const lamb: Family = {
  kind: "adam",
  defaults: { ...adam.defaults, maxUnorm: 1 },
  settings: ["betas", "eps", "maxUnorm"],
  only: { amsgrad: false, biasCorrection: true, adamWMode: true },
};
const lars: Family = { ...sgd, defaults: { maxUnorm: 0.02 }, settings: ["maxUnorm"] };

/**
 * Adam (Kingma and Ba 2015); a weight decay is decoupled, as AdamW's.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * p.grad = Tensor.from(new Float32Array(4096).fill(0.5));
 * using optimizer = new optim.Adam8bit([p], { lr: 0.01 }); // Adam and Adam32bit are used alike
 * optimizer.step();
 * p.data.read()[0]; // → 0.99
 * ```
 */
export const { Adam, Adam8bit, Adam32bit } = classesOf<"Adam", AdamOptions>("Adam", adam);
/**
 * {@link Adam}, under the name that bitsandbytes gives it where states are paged: {@link PagedOption} says why it is the same.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer = new optim.PagedAdam8bit([p], { lr: 1e-4 });
 * optimizer instanceof optim.Optimizer; // → true
 * ```
 */
export const { PagedAdam, PagedAdam8bit, PagedAdam32bit } = classesOf<"PagedAdam", AdamOptions>("PagedAdam", adam);

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
export const { AdamW, AdamW8bit, AdamW32bit } = classesOf<"AdamW", AdamOptions>("AdamW", adamw);
/**
 * {@link AdamW}, under the name that bitsandbytes gives it where states are paged: {@link PagedOption} says why it is the same.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer = new optim.PagedAdamW8bit([p], { lr: 1e-4 });
 * optimizer instanceof optim.Optimizer; // → true
 * ```
 */
export const { PagedAdamW, PagedAdamW8bit, PagedAdamW32bit } = classesOf<"PagedAdamW", AdamOptions>(
  "PagedAdamW",
  adamw,
);

/**
 * AdEMAMix (Pagliardini et al. 2024): Adam with a fast and a slow average.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1]));
 * p.grad = Tensor.from([0.5]);
 * using optimizer = new optim.AdEMAMix8bit([p], { lr: 0.01, alpha: 5, tAlpha: 1000, tBeta3: 1000 });
 * optimizer.step();
 * p.data.read(); // → [0.99]
 * ```
 */
export const { AdEMAMix, AdEMAMix8bit, AdEMAMix32bit } = classesOf<"AdEMAMix", AdEMAMixOptions>("AdEMAMix", ademamix);
/**
 * {@link AdEMAMix}, under the name that bitsandbytes gives it where states are paged: {@link PagedOption} says why it is the same.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer = new optim.PagedAdEMAMix8bit([p], { lr: 1e-4 });
 * optimizer instanceof optim.Optimizer; // → true
 * ```
 */
export const { PagedAdEMAMix, PagedAdEMAMix8bit, PagedAdEMAMix32bit } = classesOf<"PagedAdEMAMix", AdEMAMixOptions>(
  "PagedAdEMAMix",
  ademamix,
);

/**
 * Lion (Chen et al. 2023): the sign of an average.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1, 1]));
 * p.grad = Tensor.from([0.5, -100]);
 * using optimizer = new optim.Lion8bit([p], { lr: 0.01 });
 * optimizer.step();
 * p.data.read(); // → [0.99, 1.01]
 * ```
 */
export const { Lion, Lion8bit, Lion32bit } = classesOf<"Lion", LionOptions>("Lion", lion);
/**
 * {@link Lion}, under the name that bitsandbytes gives it where states are paged: {@link PagedOption} says why it is the same.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.zeros([64, 64]));
 * using optimizer = new optim.PagedLion8bit([p], { lr: 1e-4 });
 * optimizer instanceof optim.Optimizer; // → true
 * ```
 */
export const { PagedLion, PagedLion8bit, PagedLion32bit } = classesOf<"PagedLion", LionOptions>("PagedLion", lion);

/**
 * Stochastic gradient descent with momentum.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1, 1]));
 * p.grad = Tensor.from([1, -2]);
 * using optimizer = new optim.SGD8bit([p], { lr: 0.1, momentum: 0.9 });
 * optimizer.step();
 * optimizer.step();
 * p.data.read(); // → [0.71, 1.58]
 * ```
 */
export const { SGD, SGD8bit, SGD32bit } = classesOf<"SGD", SGDOptions>("SGD", sgd);

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
export const { RMSprop, RMSprop8bit, RMSprop32bit } = classesOf<"RMSprop", RMSpropOptions>("RMSprop", rmsprop);

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
export const { Adagrad, Adagrad8bit, Adagrad32bit } = classesOf<"Adagrad", AdagradOptions>("Adagrad", adagrad);

/**
 * LAMB (You et al. 2020): Adam with a trust ratio, that of the corrected direction, in 8 bits too (bitsandbytes leaves it
 * out there).
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([1, 1]));
 * p.grad = Tensor.from([1, -1]);
 * using optimizer = new optim.LAMB8bit([p], { lr: 0.1, maxUnorm: 0.5 });
 * optimizer.step();
 * p.data.read(); // → [0.95, 1.05]
 * ```
 */
export const { LAMB, LAMB8bit, LAMB32bit } = classesOf<"LAMB", LAMBOptions>("LAMB", lamb);

/**
 * LARS (You et al. 2017): momentum with a trust ratio, in 8 bits too.
 *
 * @example
 * ```ts
 * using p = new Parameter(Tensor.from([3, 4]));
 * p.grad = Tensor.from([30, 40]);
 * using optimizer = new optim.LARS8bit([p], { lr: 1, momentum: 0.9, maxUnorm: 0.02 });
 * optimizer.step();
 * p.data.read(); // → [2.94, 3.92]
 * ```
 */
export const { LARS, LARS8bit, LARS32bit } = classesOf<"LARS", LARSOptions>("LARS", lars);
