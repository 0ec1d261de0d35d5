// Owns the optimizer that every class of optim is: parameter groups, steps and state dicts. The step is csrc/ops/optimizer.c.
import type { Codebook } from "../codebook.ts";
import { BnbError } from "../error.ts";
import { check, hyperparameters, native, optimizers } from "../native.ts";
import { Parameter } from "../parameter.ts";
import type { Tensor } from "../tensor.ts";
import { applyOptions, type Config, checkConfig, defaultsOf, type Family } from "./config.ts";
import { GlobalOptimManager } from "./manager.ts";
import { ParameterState, type StateEntry } from "./state.ts";

/** Parameters with settings in common. Schedulers may write to the settings between steps. */
export interface ParamGroup extends Config {
  readonly params: readonly Parameter[];
}

/** Parameters, or groups of them with options of their own in place of the optimizer's. */
export type Params<Options> = Iterable<Parameter> | Iterable<{ params: Iterable<Parameter> } & Partial<Options>>;

/** The settings of a group in a state dict, under bitsandbytes' names; `params` are numbers of parameters in order. */
export interface SavedGroup {
  params: number[];
  lr: number;
  betas: readonly number[];
  eps: number;
  weight_decay: number;
  alpha?: number;
  t_alpha?: number | null;
  t_beta3?: number | null;
}

/** An optimizer's state as bitsandbytes and torch lay it out. */
export interface OptimizerStateDict {
  state: Record<number, StateEntry>;
  param_groups: SavedGroup[];
}

/** Options of {@link Optimizer.step}. */
export interface StepOptions {
  /** What gradients are multiplied by first, such as 1 / the loss's scale; 1 by default. */
  gnormScale?: number;
}

/**
 * An optimizer. Parameters and states are updated in place, on their device, in one pass.
 *
 * An element whose gradient is NaN, infinite or beyond 1e18 is left as it is, parameter and states: one bad gradient
 * never reaches another element. A gradient of zero and no history leaves a parameter exactly where it is.
 *
 * The states are the optimizer's to free: `using optimizer = …`, or `dispose()`, or the collector.
 *
 * @example
 * ```ts
 * using weight = new Parameter(Tensor.from(new Float32Array(4096).fill(1)));
 * using bias = new Parameter(Tensor.from([1]));
 * const groups = [{ params: [weight] }, { params: [bias], weightDecay: 0 }];
 * using optimizer: optim.Optimizer = new optim.AdamW8bit(groups, { lr: 0.1 });
 * weight.grad = Tensor.from(new Float32Array(4096).fill(3));
 * optimizer.step({ gnormScale: 0.5 });
 * weight.data.read()[0]; // → 0.899
 * optimizer.stateDict().state[0]?.step; // → 1
 * optimizer.zeroGrad();
 * ```
 */
export class Optimizer implements Disposable {
  /** Settings stand here, and schedulers write to them. */
  readonly paramGroups: readonly ParamGroup[];
  readonly #name: string;
  readonly #family: Family;
  readonly #states = new Map<Parameter, ParameterState>();
  readonly #hyperparameters = new Float64Array(hyperparameters.length);

  /** @internal The classes of optim are made by optim/index.ts. */
  constructor(name: string, family: Family, params: Params<object>, options: object) {
    this.#name = name;
    this.#family = family;
    const defaults = applyOptions(name, family, defaultsOf(family), options);
    this.paramGroups = groupsOf(name, params).map(({ params, ...own }) => ({
      ...applyOptions(name, family, defaults, own),
      params: [...params],
    }));
    const all = this.#parameters();
    if (all.length === 0) throw new BnbError(`${name}: params is empty, expected at least one Parameter.`);
    if (new Set(all).size !== all.length) throw new BnbError(`${name}: a parameter stands in params twice.`);
    for (const parameter of all)
      if (!(parameter instanceof Parameter))
        throw new BnbError(`${name}: params holds ${String(parameter)}, expected Parameters, or groups { params, … }.`);
  }

  /**
   * Updates every parameter that has a gradient and requires one.
   *
   * @throws BnbError if a gradient does not fit its parameter, or a group's settings are illegal; what stands before it
   * has been updated then
   */
  step(options: StepOptions = {}): void {
    const { gnormScale = 1 } = options;
    const manager = GlobalOptimManager.getInstance();
    for (const group of this.paramGroups)
      for (const parameter of group.params) {
        if (!parameter.grad || !parameter.requiresGrad) continue;
        const { params, ...settings } = group;
        const config = { ...settings, ...manager.overridesOf(parameter) };
        checkConfig(this.#name, config);
        this.#update(parameter, parameter.grad, config, gnormScale);
      }
  }

  #update(parameter: Parameter, grad: Tensor, config: Config, gnormScale: number): void {
    let state = this.#states.get(parameter);
    if (!state) {
      state = ParameterState.zeros(this.#family, parameter, config);
      this.#states.set(parameter, state);
    }
    const [beta1 = 0, beta2 = 0, beta3 = 0] = config.betas;
    const step = state.step + 1;
    const values: Record<(typeof hyperparameters)[number], number> = {
      ...config,
      ...scheduled(config, beta1, beta3, step),
      beta1,
      beta2,
      gnormScale,
      skipZeros: Number(config.skipZeros),
      step,
    };
    for (const [index, name] of hyperparameters.entries()) this.#hyperparameters[index] = values[name];

    const [first, second] = state.moments;
    const unorm = config.maxUnorm > 0 ? state.unorm(parameter.data.device) : undefined;
    check(
      native.bnb_optimizer_step(
        optimizers[this.#family.kind],
        this.#hyperparameters,
        parameter.data.pointer,
        grad.pointer,
        pointerOf(first?.state),
        pointerOf(first?.absmax),
        pointerOf(first?.code),
        pointerOf(second?.state),
        pointerOf(second?.absmax),
        pointerOf(second?.code),
        pointerOf(unorm),
      ),
    );
    state.step = step;
  }

  /** Drops every gradient and frees its memory. */
  zeroGrad(): void {
    for (const parameter of this.#parameters()) {
      parameter.grad?.dispose();
      parameter.grad = null;
    }
  }

  /**
   * The states and settings under bitsandbytes' names. The states' tensors are the optimizer's own, as torch's are: they
   * change with the next step and go with the optimizer; `tensor.to(device)` copies one.
   */
  stateDict(): OptimizerStateDict {
    const numbers = new Map(this.#parameters().map((parameter, number) => [parameter, number]));
    const state: OptimizerStateDict["state"] = {};
    for (const [parameter, number] of numbers) {
      const held = this.#states.get(parameter);
      if (held) state[number] = held.toEntry();
    }
    const twoStates = this.#family.kind === "adam" || this.#family.kind === "ademamix";
    const param_groups = this.paramGroups.map(({ params, lr, betas, eps, weightDecay, alpha, tAlpha, tBeta3 }) => ({
      lr,
      betas: [...betas],
      eps,
      weight_decay: weightDecay,
      ...(twoStates ? { alpha, t_alpha: tAlpha, t_beta3: tBeta3 } : {}),
      params: params.map((parameter) => numbers.get(parameter)!),
    }));
    return { state, param_groups };
  }

  /**
   * Takes over copies of the states and the settings of a state dict, from this library or from bitsandbytes.
   *
   * @throws BnbError if its groups or tensors do not fit; the optimizer is as before then
   */
  loadStateDict(dict: OptimizerStateDict): void {
    const { paramGroups } = this;
    const fits =
      dict.param_groups.length === paramGroups.length &&
      dict.param_groups.every((saved, index) => saved.params.length === paramGroups[index]!.params.length);
    if (!fits) {
      const sizes = (groups: readonly { params: readonly unknown[] }[]) => groups.map(({ params }) => params.length);
      throw new BnbError(
        `${this.#name}: the state dict has groups of [${sizes(dict.param_groups).join(", ")}] parameters, ` +
          `expected [${sizes(paramGroups).join(", ")}].`,
      );
    }
    const settings = dict.param_groups.map(settingsOf);
    for (const config of settings) checkConfig(`${this.#name}, state dict`, config);

    const numbers = dict.param_groups.flatMap(({ params }) => params);
    const states = this.#parameters().flatMap((parameter, index) => {
      const number = numbers[index]!;
      const entry = dict.state[number];
      const what = `${this.#name}: state ${number} of the state dict`;
      return entry ? [[parameter, ParameterState.fromEntry(this.#family, parameter, entry, what)] as const] : [];
    });
    this.dispose();
    for (const [parameter, state] of states) this.#states.set(parameter, state);
    for (const [index, group] of paramGroups.entries()) Object.assign(group, settings[index]);
  }

  /** Frees the states. A step after that starts afresh. */
  dispose(): void {
    for (const state of this.#states.values()) state.dispose();
    this.#states.clear();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #parameters(): Parameter[] {
    return this.paramGroups.flatMap(({ params }) => params);
  }
}

type GroupOptions = { params: Iterable<Parameter> };

function groupsOf(name: string, params: Params<object>): GroupOptions[] {
  const all = [...params] as (Parameter | GroupOptions)[];
  if (all.every((one): one is GroupOptions => "params" in one)) return all;
  if (all.some((one) => "params" in one))
    throw new BnbError(`${name}: params holds both parameters and groups, expected all of one kind.`);
  return [{ params: all as Parameter[] }];
}

/** AdEMAMix's schedules (Pagliardini et al. 2024, §3): alpha rises evenly, beta3 so that its half-life does. */
function scheduled({ alpha, tAlpha, tBeta3 }: Config, beta1: number, beta3: number, step: number) {
  if (tAlpha !== null) alpha = Math.min((step * alpha) / tAlpha, alpha);
  if (tBeta3 === null || beta1 === 0 || beta3 === 0) return { alpha, beta3 };
  const [log1, log3, done] = [Math.log(beta1), Math.log(beta3), step / tBeta3];
  return { alpha, beta3: Math.min(Math.exp((log1 * log3) / ((1 - done) * log3 + done * log1)), beta3) };
}

function settingsOf(saved: SavedGroup): Partial<Config> {
  const { lr, betas, eps, weight_decay: weightDecay, alpha, t_alpha: tAlpha, t_beta3: tBeta3 } = saved;
  const given = { lr, betas, eps, weightDecay, alpha, tAlpha, tBeta3 };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}

function pointerOf(handle: Tensor | Codebook | undefined) {
  return handle?.pointer ?? null;
}
