// Settings that hold for single parameters, whichever optimizer and group they are in.
import { Parameter } from "../parameter.ts";
import { isIterable, Signature } from "../signature.ts";
import { type Config, checkConfig } from "./config.ts";

/**
 * Overrides optimizers' settings for single parameters. Upstream: `optim.GlobalOptimManager`.
 *
 * Parameters need not be registered first, as upstream requires: they stay the same objects on every device. An
 * override applies from the next step on; `optimBits` and `min8bitSize` apply when a parameter's states are made.
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
    checkConfig(me.name, config);
    const each = Parameter.is(parameters) ? [parameters] : listOf(me, parameters, "parameters");
    if (each.length === 0) throw me.fail("parameters is empty, expected at least one Parameter.");
    const own = { ...config };
    for (const parameter of each) this.#overrides.set(parameter, { ...this.#overrides.get(parameter), ...own });
  }

  /** What holds for a parameter; undefined where nothing was overridden. */
  overridesOf(parameter: Parameter): Partial<Config> | undefined {
    return this.#overrides.get(of.object(parameter, "parameter", Parameter));
  }
}

const me = new Signature("GlobalOptimManager.overrideConfig");
const of = new Signature("GlobalOptimManager.overridesOf");

/** Parameters as a list. @throws BnbError if it is no iterable, or holds something else */
export function listOf(me: Signature, parameters: Iterable<Parameter>, argument: string): Parameter[] {
  if (!isIterable(parameters)) throw me.wrong(argument, parameters, "Parameters in an array");
  const list = [...parameters];
  for (const [index, parameter] of list.entries()) me.object(parameter, `${argument}[${index}]`, Parameter);
  return list;
}
