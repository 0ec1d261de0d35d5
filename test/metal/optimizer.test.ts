// The test of the optimizer's kernels by themselves, on the simulator: every rule at ragged sizes, fast and with
// every access checked, 32-bit states against float64 and 8-bit states against the codes of 32-bit ones.
import { describe, expect, test } from "bun:test";
import { createDynamicMap } from "../../src/index.ts";
import { normal, wave } from "../cases.ts";
import { optimizerStep, quantize, type ReferenceRule, relativeError } from "../reference.ts";
import { kernelCodes, Store, wide } from "./arguments.ts";
import { launch, type Run, runs } from "./launch.ts";

const maps = [createDynamicMap(true).values, createDynamicMap(false).values] as const;
const codes = maps.map((values) => kernelCodes(values));
const rules = { adam: 0, ademamix: 1, momentum: 2, lion: 3, rmsprop: 4, adagrad: 5 } as const;
const kinds = Object.keys(rules) as (keyof typeof rules)[];
const [none, measure, apply] = [0, 1, 2];

/** The hyperparameters of every test, and the step that they are at. */
const t = 2;
const rule = { lr: 0.01, betas: [0.9, 0.95, 0.99], alpha: 5, eps: 1e-8, weightDecay: 0.1 } as const;
const ruleOf = (kind: keyof typeof rules, maxUnorm: number): ReferenceRule => ({ kind, ...rule, maxUnorm });

/** Words of struct optimizer_args. */
function argumentsOf(kind: keyof typeof rules, count: number, groups: number, maxUnorm: number): number[] {
  const [b1, b2, b3] = rule.betas;
  const [c1, c2] = [1 - b1 ** t, Math.sqrt(1 - b2 ** t)];
  const twoMoments = kind === "adam" || kind === "ademamix";
  const decoupled = twoMoments || kind === "lion";
  const [keep, take] = { momentum: [b1, 1], adagrad: [1, 1] }[kind as string] ?? [b1, 1 - b1];
  const numbers = [
    ...[keep, take, b2, 1 - b2, b3, 1 - b3],
    ...[c2 / c1, rule.alpha * c2, rule.eps * (twoMoments ? c2 : 1), -rule.lr * (kind === "adam" ? c2 / c1 : 1)],
    ...[decoupled ? 1 - rule.lr * rule.weightDecay : 1, decoupled ? 0 : rule.weightDecay, 1, 0, 1e18],
  ] as number[];
  return [
    ...wide(count),
    groups,
    ...new Uint32Array(Float32Array.of(maxUnorm, kind === "adam" ? c2 / c1 : 1, ...numbers).buffer),
  ];
}

type Moments = Float32Array<ArrayBuffer> | Uint8Array<ArrayBuffer>;

interface States {
  state1: Moments;
  absmax1: Float32Array<ArrayBuffer>;
  state2: Moments;
  absmax2: Float32Array<ArrayBuffer>;
}

/** One step of p in place, the states too. Gives the norm of the direction where there is a trust ratio. */
function step(
  run: Run,
  kind: keyof typeof rules,
  p: Float32Array<ArrayBuffer>,
  g: Float32Array<ArrayBuffer>,
  states: States,
  maxUnorm = 0,
): number {
  const groups = 2;
  const sums = new Float32Array(2 * (1 + groups));
  const unorm = new Float32Array(1);
  const shared = { ...run, family: "optimizer", args: argumentsOf(kind, p.length, groups, maxUnorm), group: 256 };
  const stored = states.state1 instanceof Uint8Array ? Store.codes(8) : Store.float32;
  const stepWith = (trust: number) => {
    const constants = [rules[kind], Store.float32, Store.float32, stored, trust];
    const { state1, absmax1, state2, absmax2 } = states;
    const buffers = [p, g, state1, absmax1, codes[0]!, state2, absmax2, codes[1]!, sums];
    launch({ ...shared, kernel: "optimizer", constants, buffers, grid: [groups, 1, 1] }, 0);
  };
  if (maxUnorm === 0) stepWith(none);
  else {
    stepWith(measure);
    launch({ ...shared, kernel: "optimizer_trust", constants: [], buffers: [sums, unorm], grid: [1, 1, 1] });
    stepWith(apply);
  }
  return unorm[0]!;
}

describe.each(runs)("optimizer, $mode, seed $seed", (run) => {
  test.each(kinds)("%s, 32-bit states, with and without a trust ratio", (kind) => {
    for (const count of [1, 33, 256, 2049, 5003])
      for (const maxUnorm of [0, 0.02]) {
        const [p, g] = [wave(count, 3), normal(count, 2, 0.1)];
        const [first, second, slow] = [wave(count, 5, 0.1), wave(count, 7, 0.1), wave(count, 2, 0.1)];
        const squares = (kind === "rmsprop" || kind === "adagrad" ? first : second).map((x) => x * x);
        const state1 = Float32Array.of(...(kind === "rmsprop" || kind === "adagrad" ? squares : first), ...slow);
        const state2 = Float32Array.from(squares);
        const want = {
          p: Float64Array.from(p),
          states: [state1.slice(0, count), state2, slow].map((x) => Float64Array.from(x)),
        };
        optimizerStep(ruleOf(kind, maxUnorm), want.p, g, want.states, t);

        const states = { state1, absmax1: new Float32Array(1), state2, absmax2: new Float32Array(1) };
        step(run, kind, p, g, states, maxUnorm);
        expect(relativeError(p, want.p)).toBeLessThan(1e-6);
        expect(relativeError(state1.slice(0, count), want.states[0]!)).toBeLessThan(1e-6);
        if (kind === "adam" || kind === "ademamix") expect(relativeError(state2, want.states[1]!)).toBeLessThan(1e-6);
        if (kind === "ademamix") expect(relativeError(state1.slice(count), want.states[2]!)).toBeLessThan(1e-6);
        else expect(state1.slice(count)).toEqual(slow); // what does not belong stays untouched
      }
  });

  test.each(kinds)("%s, 8-bit states: the codes of a 32-bit step", (kind) => {
    for (const count of [1, 33, 256, 2049, 5003]) {
      const blocks = Math.ceil(count / 256);
      const averages = kind === "ademamix" ? 2 : 1;
      const coded: States = {
        state1: Uint8Array.from({ length: averages * count }, (_, i) => (i * 37 + 130) % 256),
        absmax1: wave(averages * blocks, 3).map(Math.abs),
        state2: Uint8Array.from({ length: count }, (_, i) => (i * 91) % 256),
        absmax2: wave(blocks, 4).map(Math.abs),
      };
      // From 0 on.
      if (kind === "rmsprop" || kind === "adagrad") coded.state1 = coded.state1.map((code) => 127 + (code >> 1));
      const decode = (state: ArrayLike<number>, absmax: Float32Array, values: Float32Array) =>
        Float32Array.from(
          state,
          (code, i) => values[code]! * absmax[Math.floor(i / count) * blocks + ((i % count) >> 8)]!,
        );
      const plain: States = {
        state1: decode(coded.state1, coded.absmax1, maps[0]),
        absmax1: new Float32Array(1),
        state2: decode(coded.state2, coded.absmax2, maps[1]),
        absmax2: new Float32Array(1),
      };
      const [a, b] = [wave(count, 3), wave(count, 3)];
      const g = normal(count, 2, 0.1);
      step(run, kind, a, g, coded);
      step(run, kind, b, g, plain);
      expect(a).toEqual(b);
      for (let average = 0; average < averages; average++) {
        const want = quantize(plain.state1.slice(average * count, (average + 1) * count), maps[0], 256);
        expect([...coded.state1.slice(average * count, (average + 1) * count)]).toEqual([...want.codes]);
        expect(coded.absmax1.slice(average * blocks, (average + 1) * blocks)).toEqual(want.absmax);
      }
      if (kind !== "adam" && kind !== "ademamix") continue;
      const want = quantize(plain.state2, maps[1], 256);
      expect(coded.state2 as Uint8Array).toEqual(want.codes);
      expect(coded.absmax2).toEqual(want.absmax);
    }
  });
});
