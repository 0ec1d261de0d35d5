// The tests of optimizers' steps: upstream's numbers, float64, and 8-bit states against their definition.
import { describe, expect, test } from "bun:test";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import {
  Codebook,
  dequantizeBlockwise,
  optim,
  Parameter,
  QuantizedTensor,
  quantizeBlockwise,
  type Shape,
  Tensor,
} from "../src/index.ts";
import { floatDTypes, normal, optimizerCases, parameterSizes, testDevices, wave } from "./cases.ts";
import { optimizerStep, relativeError } from "./reference.ts";

const golden = openSafetensors(`${import.meta.dir}/golden/optim_cpu.safetensors`);
const goldenFloats = (name: string) => golden.tensor(name).values as Float32Array;
const names = Object.keys(optimizerCases);
const both = [32, 8] as const;

const largest = (values: ArrayLike<number>) => Array.from(values).reduce((most, v) => Math.max(most, Math.abs(v)), 0);
const largestError = (got: ArrayLike<number>, want: ArrayLike<number>) =>
  largest(Array.from(want).map((v, i) => v - got[i]!));

/** The states of an optimizer's first parameter. */
function tensorsOf(optimizer: optim.Optimizer): optim.StateTensors {
  return optimizer.stateDict().state[0]!.__bnb_optimizer_quant_state__!;
}

describe.each(testDevices)("on %s", (_, device) => {
  const parameterOf = (values: Float32Array, shape: Shape = [values.length]) =>
    new Parameter(Tensor.from(values, shape, { device }));

  function step(optimizer: optim.Optimizer, parameter: Parameter, gradient: Float32Array): void {
    parameter.grad?.dispose();
    parameter.grad = Tensor.from(gradient, parameter.data.shape, { device });
    optimizer.step();
  }

  describe("upstream's numbers after five steps", () => {
    const n = 8192;
    const start = Float32Array.from({ length: n }, (_, i) => Math.sin(0.013 * i) * 0.1);
    const gradient = (k: number) =>
      Float32Array.from(
        { length: n },
        (_, i) => Math.cos(0.021 * (k + 1) * i) * 0.01 + Math.sin(0.0007 * i * i) * 0.002,
      );

    function run(name: string, bits: 8 | 32) {
      const parameter = parameterOf(start);
      const optimizer = optimizerCases[name]!.make([parameter], bits);
      for (let k = 0; k < 5; k++) step(optimizer, parameter, gradient(k));
      return { p: parameter.data.read() as Float32Array, tensors: tensorsOf(optimizer) };
    }

    /** Where upstream's CPU would be. Its LAMB takes the ratio of a direction that isn't corrected, against the paper
     * and its own
     * default backend, so lamb.32.p and lamb.32.unorm_vec are given up for float64. */
    function wanted(name: string, bits: 8 | 32): ArrayLike<number> {
      if (name !== "lamb") return goldenFloats(`${name}.${name === "lars" ? 32 : bits}.p`);
      const p = Float64Array.from(start);
      const states = [new Float64Array(n), new Float64Array(n)];
      for (let k = 0; k < 5; k++) optimizerStep(optimizerCases.lamb!.rule, p, gradient(k), states, k + 1);
      return p;
    }

    test.each(names)("%s, 32-bit", (name) => {
      const { p, tensors } = run(name, 32);
      expect(largestError(p, wanted(name, 32))).toBeLessThan(1e-7); // of numbers up to 0.1
      for (const state of ["state1", "state2", "unorm_vec"] as const) {
        expect(tensors[state] !== undefined).toBe(golden.tensors.has(`${name}.32.${state}`));
        if (!tensors[state] || (name === "lamb" && state === "unorm_vec")) continue;
        const want = goldenFloats(`${name}.32.${state}`);
        expect(largestError(tensors[state].read(), want)).toBeLessThan(1e-6 * largest(want));
      }
    });

    // Upstream leaves the trust ratio out of its 8-bit LAMB and LARS: those are held to its 32-bit ones.
    test.each(names)("%s, 8-bit, within upstream's own tolerances", (name) => {
      const { p, tensors } = run(name, 8);
      const trusts = name === "lamb" || name === "lars";
      const want = wanted(name, 8);
      const errors = p.map((value, i) => Math.abs(value - want[i]!));
      const mean = (values: Float32Array) => values.reduce((sum, value) => sum + value) / n;
      expect(mean(errors)).toBeLessThan(6e-5);
      expect(mean(errors.map((error, i) => error / (Math.abs(want[i]!) + 1e-9)))).toBeLessThan(6e-4);
      if (trusts) return;
      expect(relativeError(tensors.absmax1!.read(), goldenFloats(`${name}.8.absmax1`))).toBeLessThan(1e-3);
      if (tensors.absmax2)
        expect(relativeError(tensors.absmax2.read(), goldenFloats(`${name}.8.absmax2`))).toBeLessThan(1e-3);
    });
  });

  // You et al. 2020: of two steps with the same gradient each moves p by lr × ‖p‖, whatever the averages have gathered.
  test("LAMB's trust ratio is of the corrected direction", () => {
    const n = 512;
    const parameter = parameterOf(wave(n, 3, 0.1));
    const optimizer = new optim.LAMB32bit([parameter], { lr: 0.01, eps: 0 });
    for (let t = 0; t < 3; t++) {
      const before = parameter.data.read() as Float32Array;
      step(optimizer, parameter, new Float32Array(n).fill(0.3));
      const moved = (parameter.data.read() as Float32Array).map((v, i) => v - before[i]!);
      expect(Math.hypot(...moved) / Math.hypot(...before)).toBeCloseTo(0.01, 6);
      expect(tensorsOf(optimizer).unorm_vec!.read()[0]).toBeCloseTo(Math.sqrt(n), 4);
    }
  });

  test.each([32, 8] as const)("LARS moves p by lr × maxUnorm × ‖p‖ at most, %i-bit", (bits) => {
    const n = 8192;
    const parameter = parameterOf(wave(n, 3, 0.1));
    const Class = bits === 8 ? optim.LARS8bit : optim.LARS32bit;
    const optimizer = new Class([parameter], { lr: 0.5, momentum: 0.9, maxUnorm: 0.02 });
    for (const size of [100, 1e-9]) {
      const before = parameter.data.read() as Float32Array;
      step(optimizer, parameter, new Float32Array(n).fill(size));
      const moved = (parameter.data.read() as Float32Array).map((v, i) => v - before[i]!);
      expect(Math.hypot(...moved) / Math.hypot(...before)).toBeCloseTo(0.01, 5);
    }
  });

  describe.each(parameterSizes)("%d elements", (n) => {
    test.each(names)("%s, 32-bit, against float64", (name) => {
      const { make, rule } = optimizerCases[name]!;
      const parameter = parameterOf(wave(n, 3, 0.1));
      const optimizer = make([parameter], 32);
      const p = Float64Array.from(wave(n, 3, 0.1));
      const states = [0, 1, 2].map(() => new Float64Array(n));
      for (let t = 1; t <= 3; t++) {
        const g = normal(n, t, 0.01);
        step(optimizer, parameter, g);
        optimizerStep(rule, p, g, states, t);
      }
      expect(largestError(parameter.data.read(), p)).toBeLessThan(2e-7);
      const { state1, state2 } = tensorsOf(optimizer);
      const first = rule.kind === "ademamix" ? [...states[0]!, ...states[2]!] : states[0]!;
      expect(relativeError(state1!.read(), first)).toBeLessThan(1e-6);
      if (state2) expect(relativeError(state2.read(), states[1]!)).toBeLessThan(1e-6);
    });

    // An 8-bit step is a 32-bit step between decoding the states and coding them again, to the last bit.
    test.each(names.flatMap((name) => floatDTypes.map((dtype) => [name, dtype] as const)))(
      "%s, 8-bit states, %s: the codes of a 32-bit step",
      (name, dtype) => {
        const manager = optim.GlobalOptimManager.getInstance();
        const make = () => new Parameter(Tensor.from(wave(n, 3, 0.1), [n], { device, dtype }));
        const [coded, plain] = [make(), make()];
        manager.overrideConfig([coded, plain], { min8bitSize: 0 });
        const narrow = optimizerCases[name]!.make([coded], 8);
        const wide = optimizerCases[name]!.make([plain], 32);
        for (let t = 1; t <= 3; t++) {
          for (const parameter of [coded, plain])
            parameter.grad = Tensor.from(normal(n, t, 0.01), [n], { device, dtype });
          if (t > 1) wide.loadStateDict({ ...wide.stateDict(), state: { 0: decoded(narrow) } });
          narrow.step();
          wide.step();
          const [got, want] = [tensorsOf(narrow), tensorsOf(wide)];
          for (const i of [1, 2] as const)
            if (want[`state${i}`]) {
              const { codes, absmax } = quantized(want[`state${i}`]!, got[`qmap${i}`]!);
              expect(got[`absmax${i}`]!.read()).toEqual(absmax);
              expect(got[`state${i}`]!.read()).toEqual(codes);
            }
          expect(coded.data.read()).toEqual(plain.data.read());
        }
      },
    );

    /** Each average of a state by itself: AdEMAMix has two in one tensor. */
    function averagesOf(state: Tensor): Float32Array[] {
      const all = state.read() as Float32Array;
      return Array.from({ length: all.length / n }, (_, i) => all.slice(i * n, (i + 1) * n));
    }

    function quantized(state: Tensor, map: Tensor) {
      const code = Codebook.from(map.read() as Float32Array);
      const parts = averagesOf(state).map((average) =>
        quantizeBlockwise(Tensor.from(average, [n], { device }), { code, blocksize: 256 }),
      );
      return {
        codes: Uint8Array.from(parts.flatMap(({ codes }) => [...(codes.read() as Uint8Array)])),
        absmax: Float32Array.from(parts.flatMap(({ absmax }) => [...(absmax.read() as Float32Array)])),
      };
    }

    /** An 8-bit optimizer's state as a 32-bit one's. */
    function decoded(optimizer: optim.Optimizer): optim.StateEntry {
      const { step } = optimizer.stateDict().state[0]!;
      const { state1, state2, absmax1, absmax2, qmap1, qmap2, unorm_vec } = tensorsOf(optimizer);
      const entry: optim.StateEntry = { step };
      const floatsOf = (codes: Tensor, absmax: Tensor, map: Tensor) => {
        const blocks = Math.ceil(n / 256);
        const parts = Array.from({ length: codes.size / n }, (_, i) => {
          const q = QuantizedTensor.fromParts({
            codes: Tensor.from((codes.read() as Uint8Array).slice(i * n, (i + 1) * n), [n], { device }),
            absmax: Tensor.from((absmax.read() as Float32Array).slice(i * blocks, (i + 1) * blocks), [blocks], {
              device,
            }),
            code: Codebook.from(map.read() as Float32Array),
            blocksize: 256,
            shape: [n],
            dtype: "float32",
          });
          return [...(dequantizeBlockwise(q, { dtype: "float32" }).read() as Float32Array)];
        });
        return Tensor.from(Float32Array.from(parts.flat()), codes.shape, { device });
      };
      entry.state1 = floatsOf(state1!, absmax1!, qmap1!);
      if (state2) entry.state2 = floatsOf(state2, absmax2!, qmap2!);
      if (unorm_vec) entry.unorm_vec = unorm_vec;
      return entry;
    }
  });

  test.each(both)("parameters and gradients of any float dtypes, %d-bit: fp32 steps, rounded", (bits) => {
    for (const name of names)
      for (const dtype of floatDTypes)
        for (const gradientDType of floatDTypes) {
          const n = 4097;
          using narrow = Tensor.from(wave(n, 2), [n], { device, dtype });
          using wide = narrow.cast("float32");
          using gradient = Tensor.from(normal(n, 4), [n], { device, dtype: gradientDType });
          const parameters = [new Parameter(narrow), new Parameter(wide)];
          for (const parameter of parameters) parameter.grad = gradient;
          using optimizer = optimizerCases[name]!.make(parameters, bits);
          optimizer.step();
          using rounded = wide.cast(dtype);
          // The trust ratio's sums are over the same numbers.
          expect(narrow.read()).toEqual(rounded.read());
        }
  });

  describe.each(both)("%d-bit states", (bits) => {
    test.each(names)("%s: gradients of zero leave parameters exactly where they are", (name) => {
      const n = 8192 + 31;
      const start = wave(n, 5);
      const parameter = parameterOf(start);
      using optimizer = optimizerCases[name]!.make([parameter], bits);
      for (const group of optimizer.paramGroups) group.weightDecay = 0;
      for (let t = 0; t < 4; t++) step(optimizer, parameter, new Float32Array(n));
      expect(parameter.data.read() as Float32Array).toEqual(start);

      // Beside others that move, too: upstream's CPU codes 0 as 2e-5 of the block's largest.
      const sparse = normal(n, 2).map((value, i) => (i % 3 ? 0 : value));
      for (let t = 0; t < 4; t++) step(optimizer, parameter, sparse);
      const after = parameter.data.read() as Float32Array;
      expect(after.filter((value, i) => i % 3 && value !== start[i])).toEqual(new Float32Array(0));
      expect(after.filter((value, i) => i % 3 === 0 && value !== start[i]).length).toBeGreaterThan(n / 4);
    });

    test.each(names)("%s: an element with a gradient that is no number is left alone, and no other notices", (name) => {
      const n = 5003;
      const bad = {
        0: Number.NaN,
        77: 1e30,
        300: Number.POSITIVE_INFINITY,
        301: -Number.POSITIVE_INFINITY,
        5002: 3e38,
      };
      const spoilt = normal(n, 3);
      for (const [at, value] of Object.entries(bad)) spoilt[Number(at)] = value;
      const clean = spoilt.map((value) => (Math.abs(value) < 1e18 ? value : 0));
      const [a, b] = [parameterOf(wave(n, 5)), parameterOf(wave(n, 5))];
      using withBad = optimizerCases[name]!.make([a], bits);
      using withZeros = optimizerCases[name]!.make([b], bits);
      withZeros.paramGroups[0]!.skipZeros = true;
      for (let t = 0; t < 3; t++) {
        step(withBad, a, spoilt);
        step(withZeros, b, clean);
      }
      expect(a.data.read()).toEqual(b.data.read());
      expect(tensorsOf(withBad).state1!.read()).toEqual(tensorsOf(withZeros).state1!.read());
      const [start, after] = [wave(n, 5), a.data.read() as Float32Array];
      for (const at of Object.keys(bad)) expect(after[Number(at)]).toBe(start[Number(at)]!);
      expect(after.every(Number.isFinite)).toBe(true);
    });
  });

  test("skipZeros keeps the states of elements without a gradient", () => {
    const parameter = parameterOf(wave(300, 5));
    using optimizer = new optim.Adam([parameter], { skipZeros: true, weightDecay: 0.1 });
    step(optimizer, parameter, normal(300, 1));
    const before = { p: parameter.data.read(), m: tensorsOf(optimizer).state1!.read() };
    step(optimizer, parameter, new Float32Array(300));
    expect(parameter.data.read()).toEqual(before.p);
    expect(tensorsOf(optimizer).state1!.read()).toEqual(before.m);
    optimizer.paramGroups[0]!.skipZeros = false;
    step(optimizer, parameter, new Float32Array(300));
    expect(parameter.data.read()).not.toEqual(before.p);
    expect(tensorsOf(optimizer).state1!.read()).not.toEqual(before.m);
  });

  test("an eps of zero divides nothing by zero", () => {
    const parameter = parameterOf(wave(300, 5));
    using optimizer = new optim.Adam([parameter], { eps: 0 });
    step(optimizer, parameter, new Float32Array(300));
    expect(parameter.data.read() as Float32Array).toEqual(wave(300, 5));
  });

  test("gnormScale multiplies gradients", () => {
    const [a, b] = [parameterOf(wave(300, 5)), parameterOf(wave(300, 5))];
    using first = new optim.SGD([a], { lr: 0.1, momentum: 0.9 });
    using second = new optim.SGD([b], { lr: 0.1, momentum: 0.9 });
    a.grad = Tensor.from(wave(300, 2), [300], { device });
    b.grad = Tensor.from(
      wave(300, 2).map((g) => g * 4),
      [300],
      { device },
    );
    first.step();
    second.step({ gnormScale: 0.25 });
    expect(a.data.read()).toEqual(b.data.read());
  });

  test("8-bit training follows 32-bit training: a least-squares problem is solved as well", () => {
    const n = 4096;
    const [aim, start] = [normal(n, 1), normal(n, 2)];
    const losses = both.map((bits) => {
      const parameter = parameterOf(start);
      using optimizer = new optim.Adam([parameter], { lr: 0.05, optimBits: bits });
      for (let t = 0; t < 200; t++) {
        const p = parameter.data.read() as Float32Array;
        step(
          optimizer,
          parameter,
          p.map((value, i) => value - aim[i]!),
        );
      }
      return relativeError(parameter.data.read() as Float32Array, aim);
    });
    expect(losses[0]).toBeLessThan(0.05);
    expect(losses[1]).toBeLessThan(1.2 * losses[0]! + 0.01);
  });

  test("the device did all of it", () => {
    if (device.kind !== "cpu" && process.env.BNB_STRICT === "1") expect(device.fallbacks).toEqual([]);
  });
});
