// Owns settings that hold for single parameters, whichever optimizer and group they are in.
import type { Parameter } from "../parameter.ts";
import { type Config, checkConfig } from "./config.ts";

/**
 * Overrides optimizers' settings for single parameters. Upstream: `optim.GlobalOptimManager`.
 *
 * Parameters need not be registered first, as upstream asks: they stay the same objects on every device. An override
 * holds from the next step on, but for `optimBits` and `min8bitSize`, which count when a parameter's states are made.
 *
 * @example
 * ```ts
 * using weight = new Parameter(Tensor.zeros([64, 64]));
 * const manager = optim.GlobalOptimManager.getInstance();
 * manager.overrideConfig(weight, { optimBits: 32 }); // whatever the optimizer's own bits are
 * using optimizer = new optim.Adam8bit([weight], { lr: 1e-3 });
 * manager.overridesOf(weight); // → { optimBits: 32 }
 * ```
 */
export class GlobalOptimManager {
  static readonly #instance = new GlobalOptimManager();
  readonly #overrides = new WeakMap<Parameter, Partial<Config>>();

  private constructor() {}

  /** The one manager. */
  static getInstance(): GlobalOptimManager {
    return GlobalOptimManager.#instance;
  }

  /** Adds settings to those that hold for one parameter, or for each of several. @throws BnbError for an illegal one */
  overrideConfig(parameters: Parameter | Iterable<Parameter>, config: Partial<Config>): void {
    checkConfig("overrideConfig", config);
    const each = Symbol.iterator in parameters ? parameters : [parameters];
    for (const parameter of each) this.#overrides.set(parameter, { ...this.overridesOf(parameter), ...config });
  }

  /** What holds for a parameter; undefined where nothing was overridden. */
  overridesOf(parameter: Parameter): Partial<Config> | undefined {
    return this.#overrides.get(parameter);
  }
}
