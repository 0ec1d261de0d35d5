// The optimizer that every class of optim is: parameter groups, steps and state dicts. The step is
// csrc/ops/optimizer.c.
import { type Device, type DeviceName, deviceOf } from "../device.ts";
import { hyperparameters, native, optimizers } from "../native.ts";
import { Parameter } from "../parameter.ts";
import { isIterable, isOptions, Signature, show } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import { applyOptions, type Config, checkConfig, defaultsOf, type Family } from "./config.ts";
import { GlobalOptimManager, listOf } from "./manager.ts";
import { ParameterState, type StateEntry } from "./state.ts";

/** Parameters with settings in common. Schedulers may write to the settings between steps. */
export interface ParamGroup extends Config {
  readonly params: readonly Parameter[];
}

/** Parameters, or groups of parameters with options of their own, which replace the optimizer's. */
export type Params<Options> = Iterable<Parameter> | Iterable<{ params: Iterable<Parameter> } & Partial<Options>>;

/** The settings of a group in a state dict, under bitsandbytes' names; `params` numbers its parameters in order. */
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

/** An optimizer's state in the layout of bitsandbytes and torch. */
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
 * The base of all optimizers. A step updates parameters and states in place, on their device, in one pass.
 *
 * An element whose gradient is NaN, infinite or beyond 1e18 is left as it is, and so are its states: one bad gradient
 * never reaches another element. A zero gradient without history leaves a parameter exactly as it is.
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
    const me = new Signature(name);
    const defaults = applyOptions(name, family, defaultsOf(family), options);
    this.paramGroups = groupsOf(me, params).map(({ params, ...own }) => ({
      ...applyOptions(name, family, defaults, own),
      params: listOf(me, params, "params"),
    }));
    const all = this.#parameters();
    if (all.length === 0) throw me.fail("params is empty, expected at least one Parameter.");
    if (new Set(all).size !== all.length) throw me.fail("params holds a parameter twice.");
  }

  /**
   * Updates every parameter that has a gradient and requires one.
   *
   * @throws BnbError if a gradient does not fit its parameter, or a group's settings are illegal; what stands before it
   * has been updated then
   */
  step(options: StepOptions = {}): void {
    const me = new Signature(`${this.#name}.step`, stepWords);
    const { gnormScale = 1 } = me.options(options);
    me.notNegative(gnormScale, "gnormScale");
    const manager = GlobalOptimManager.getInstance();
    for (const group of this.paramGroups)
      for (const parameter of group.params) {
        if (!parameter.grad || !parameter.requiresGrad) continue;
        const { params, ...settings } = group;
        const config = { ...settings, ...manager.overridesOf(parameter) };
        checkConfig(this.#name, config);
        this.#update(me, parameter, parameter.grad, config, gnormScale);
      }
  }

  #update(me: Signature, parameter: Parameter, grad: Tensor, config: Config, gnormScale: number): void {
    let state = this.#states.get(parameter);
    if (!state) {
      state = ParameterState.zeros(this.#family, parameter, config);
      this.#states.set(parameter, state);
    }
    state.to(parameter.data.device);
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
    me.check(
      native.bnb_optimizer_step(
        optimizers[this.#family.kind],
        this.#hyperparameters,
        me.tensor(parameter.data, "data"),
        me.tensor(grad, "grad"),
        me.tensorIf(first?.state, "state1"),
        me.tensorIf(first?.absmax, "absmax1"),
        first?.code ? me.codebook(first.code, "qmap1") : null,
        me.tensorIf(second?.state, "state2"),
        me.tensorIf(second?.absmax, "absmax2"),
        second?.code ? me.codebook(second.code, "qmap2") : null,
        me.tensorIf(unorm, "unorm_vec"),
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
   * The states and settings under bitsandbytes' names. The states' tensors are the optimizer's own, as torch's are:
   * they change with the next step and go with the optimizer; `tensor.to(device)` copies one.
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
    const me = new Signature(`${this.#name}.loadStateDict`);
    const saved = savedGroups(me, dict);
    const fits =
      saved.length === paramGroups.length &&
      saved.every(({ params }, index) => params.length === paramGroups[index]!.params.length);
    if (!fits) {
      const sizes = (groups: readonly { params: readonly unknown[] }[]) => groups.map(({ params }) => params.length);
      throw me.fail(
        `dict has groups of [${sizes(saved).join(", ")}] parameters, expected [${sizes(paramGroups).join(", ")}].`,
      );
    }
    const settings = saved.map(settingsOf);
    for (const config of settings) checkConfig(`${me.name}: dict`, config);

    const numbers = saved.flatMap(({ params }) => params);
    const states = this.#parameters().flatMap((parameter, index) => {
      const number = numbers[index]!;
      const entry = dict.state[number];
      const what = `${me.name}: dict's state ${number}`;
      return entry ? [[parameter, ParameterState.fromEntry(this.#family, parameter, entry, what)] as const] : [];
    });
    this.dispose();
    for (const [parameter, state] of states) this.#states.set(parameter, state);
    for (const [index, group] of paramGroups.entries()) Object.assign(group, settings[index]);
  }

  /**
   * Moves the states to another device. A step moves a parameter's state after it by itself; this is for moving all at
   * once, before memory is short.
   */
  to(device: Device | DeviceName): this {
    const target = deviceOf(new Signature(`${this.#name}.to`), device);
    for (const state of this.#states.values()) state.to(target);
    return this;
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

function groupsOf(me: Signature, params: Params<object>): GroupOptions[] {
  if (!isIterable(params)) throw me.wrong("params", params, "Parameters in an array, or groups { params, … }");
  const all: unknown[] = [...params];
  const groups = all.filter((one) => !Parameter.is(one));
  if (groups.length === 0) return [{ params: all as Parameter[] }];
  const wrong = groups.findIndex((one) => typeof one !== "object" || one === null || !("params" in one));
  if (wrong >= 0) throw me.fail(`params holds ${show(groups[wrong])}, expected Parameters, or groups { params, … }.`);
  if (groups.length < all.length) throw me.fail("params holds both parameters and groups, expected all of one kind.");
  return groups as GroupOptions[];
}

/** The groups of a state dict that has the form of one. */
function savedGroups(me: Signature, dict: OptimizerStateDict): SavedGroup[] {
  if (!isOptions(dict)) throw me.wrong("dict", dict, "a state dict { state, param_groups }");
  if (!isOptions(dict.state)) throw me.wrong("dict.state", dict.state, "states by the numbers of parameters");
  if (!Array.isArray(dict.param_groups)) throw me.wrong("dict.param_groups", dict.param_groups, "an array of groups");
  for (const group of dict.param_groups)
    if (!isOptions(group) || !Array.isArray(group.params))
      throw me.wrong("dict.param_groups", dict.param_groups, "groups { params, lr, … }");
  return dict.param_groups;
}

/** The words of a step: what the C library calls the parameter's parts. */
const stepWords = {
  options: ["gnormScale"],
  native: { p: "data", g: "grad", gnorm_scale: "gnormScale", max_unorm: "maxUnorm", weight_decay: "weightDecay" },
};

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

/** The class of an optimizer. Options may be omitted unless one of them is required. */
export type OptimizerClass<Options> = new (
  params: Params<Options>,
  ...options: object extends Options ? [options?: Options] : [options: Options]
) => Optimizer;
