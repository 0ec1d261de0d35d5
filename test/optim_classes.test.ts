// The tests of the optimizer classes: options, groups, overrides, state dicts, and what must be refused.
import { describe, expect, test } from "bun:test";
import { Codebook, currentDevice, optim, Parameter, Tensor } from "../src/index.ts";
import { normal, wave } from "./cases.ts";
import { errorOf } from "./reference.ts";

/** The states of an optimizer's first parameter. */
function tensorsOf(optimizer: optim.Optimizer): optim.StateTensors {
  return optimizer.stateDict().state[0]!.__bnb_optimizer_quant_state__!;
}

describe("classes", () => {
  const pageable = ["Adam", "AdamW", "AdEMAMix", "Lion"];
  const families = [
    ...pageable,
    ...pageable.map((name) => `Paged${name}`),
    "SGD",
    "RMSprop",
    "Adagrad",
    "LAMB",
    "LARS",
  ];
  const all = families.flatMap((name) => [name, `${name}8bit`, `${name}32bit`]);

  test("there are all of bitsandbytes', and no others", () => {
    const exported = Object.keys(optim).filter((name) => name !== "Optimizer" && name !== "GlobalOptimManager");
    expect(exported.sort()).toEqual(all.sort());
  });

  test.each(all)("%s has the states that its name says", (name) => {
    const parameter = new Parameter(Tensor.from(wave(4096), [64, 64]));
    parameter.grad = Tensor.from(wave(4096, 2), [64, 64]);
    const Class = optim[name as "SGD"];
    using optimizer = new Class([parameter], { lr: 1e-3 });
    expect(Class.name).toBe(name);
    expect(optimizer).toBeInstanceOf(optim.Optimizer);
    optimizer.step();
    const tensors = tensorsOf(optimizer);
    expect(tensors.state1!.dtype).toBe(name.endsWith("8bit") ? "uint8" : "float32");
    expect(tensors.state1!.shape).toEqual(name.includes("AdEMAMix") ? [2, 64, 64] : [64, 64]);
    expect(Object.keys(tensors).sort()).toEqual(
      [
        "state1",
        ...(name.endsWith("8bit") ? ["absmax1", "qmap1"] : []),
        ...(/Ad(am|EMAMix)|LAMB/.test(name) ? ["state2", ...(name.endsWith("8bit") ? ["absmax2", "qmap2"] : [])] : []),
        ...(/^LA(MB|RS)/.test(name) ? ["unorm_vec"] : []),
      ].sort(),
    );
  });

  test("defaults are upstream's", () => {
    const p = [new Parameter(Tensor.zeros([1]))];
    const settings = (optimizer: optim.Optimizer) => {
      const { lr, betas, eps, weightDecay, maxUnorm } = optimizer.paramGroups[0]!;
      return [lr, betas, eps, weightDecay, maxUnorm];
    };
    expect(settings(new optim.Adam(p))).toEqual([1e-3, [0.9, 0.999], 1e-8, 0, 0]);
    expect(settings(new optim.AdamW8bit(p))).toEqual([1e-3, [0.9, 0.999], 1e-8, 0.01, 0]);
    expect(settings(new optim.AdEMAMix(p))).toEqual([1e-3, [0.9, 0.999, 0.9999], 1e-8, 0.01, 0]);
    expect(settings(new optim.Lion(p))).toEqual([1e-4, [0.9, 0.99], 0, 0, 0]);
    expect(settings(new optim.SGD(p, { lr: 0.1, momentum: 0.9 }))).toEqual([0.1, [0.9, 0], 0, 0, 0]);
    expect(settings(new optim.RMSprop(p))).toEqual([0.01, [0.99, 0], 1e-8, 0, 0]);
    expect(settings(new optim.Adagrad(p))).toEqual([0.01, [0, 0], 1e-10, 0, 0]);
    expect(settings(new optim.LAMB(p))).toEqual([1e-3, [0.9, 0.999], 1e-8, 0, 1]);
    expect(settings(new optim.LARS(p, { lr: 0.1, momentum: 0.9 }))).toEqual([0.1, [0.9, 0], 0, 0, 0.02]);
  });

  test("small parameters have 32-bit states; the size is a setting", () => {
    const parameters = [4095, 4096].map((n) => new Parameter(Tensor.from(wave(n), [n])));
    for (const parameter of parameters) parameter.grad = Tensor.from(wave(parameter.data.size), [parameter.data.size]);
    const dtypes = (optimizer: optim.Optimizer) => {
      optimizer.step();
      const { state } = optimizer.stateDict();
      return [0, 1].map((number) => state[number]!.__bnb_optimizer_quant_state__!.state1!.dtype);
    };
    expect(dtypes(new optim.Adam8bit(parameters))).toEqual(["float32", "uint8"]);
    expect(dtypes(new optim.Adam8bit(parameters, { min8bitSize: 1 }))).toEqual(["uint8", "uint8"]);
    expect(dtypes(new optim.Adam(parameters))).toEqual(["float32", "float32"]);
  });

  test("an override holds for its parameter only", () => {
    const parameters = [1, 2].map((seed) => new Parameter(Tensor.from(wave(4096, seed), [4096])));
    for (const parameter of parameters) parameter.grad = Tensor.from(wave(4096, 3), [4096]);
    optim.GlobalOptimManager.getInstance().overrideConfig(parameters[1]!, { optimBits: 32, lr: 0 });
    const before = parameters.map(({ data }) => data.read());
    using optimizer = new optim.Adam8bit(parameters);
    optimizer.step();
    const { state } = optimizer.stateDict();
    expect(state[0]!.__bnb_optimizer_quant_state__!.state1!.dtype).toBe("uint8");
    expect(state[1]!.__bnb_optimizer_quant_state__!.state1!.dtype).toBe("float32");
    expect(parameters[0]!.data.read()).not.toEqual(before[0]!);
    expect(parameters[1]!.data.read()).toEqual(before[1]!);
  });

  test("a second override adds to the first, and its own values win", () => {
    const manager = optim.GlobalOptimManager.getInstance();
    const parameter = new Parameter(Tensor.from([1]));
    manager.overrideConfig(parameter, { optimBits: 32, lr: 0.5 });
    manager.overrideConfig([parameter], { lr: 0.25, weightDecay: 0.1 });
    expect(manager.overridesOf(parameter)).toEqual({ optimBits: 32, lr: 0.25, weightDecay: 0.1 });
  });

  test("groups have settings of their own, and a scheduler may change them", () => {
    const [a, b] = [new Parameter(Tensor.from([1, 1])), new Parameter(Tensor.from([1, 1]))];
    for (const parameter of [a!, b!]) parameter.grad = Tensor.from([1, 1]);
    using optimizer = new optim.SGD([{ params: [a!] }, { params: [b!], lr: 0.5 }], { lr: 0.25 });
    optimizer.step();
    expect([a!.data.read()[0], b!.data.read()[0]]).toEqual([0.75, 0.5]);
    for (const group of optimizer.paramGroups) group.lr /= 2;
    optimizer.step();
    expect([a!.data.read()[0], b!.data.read()[0]]).toEqual([0.625, 0.25]);
  });

  test("only parameters with a gradient that require one are stepped; zeroGrad drops gradients", () => {
    const [a, b] = [new Parameter(Tensor.from([1])), new Parameter(Tensor.from([1]), { requiresGrad: false })];
    using optimizer = new optim.SGD([a!, b!], { lr: 1 });
    optimizer.step();
    b!.grad = Tensor.from([1]);
    optimizer.step();
    expect([a!.data.read()[0], b!.data.read()[0]]).toEqual([1, 1]);
    expect(optimizer.stateDict().state).toEqual({});
    const { grad } = b!;
    optimizer.zeroGrad();
    expect(b!.grad).toBeNull();
    expect(grad!.disposed).toBe(true);
  });

  test("AdEMAMix's schedules warm alpha and beta3 up", () => {
    const make = (options: optim.AdEMAMixOptions, steps = 1) => {
      const parameter = new Parameter(Tensor.from(wave(64)));
      parameter.grad = Tensor.from(wave(64, 3));
      const optimizer = new optim.AdEMAMix([parameter], options);
      for (let step = 0; step < steps; step++) optimizer.step();
      return { p: parameter.data.read(), slow: (tensorsOf(optimizer).state1!.read() as Float32Array).slice(64) };
    };
    // At step 1 of 10, alpha is a tenth of its end, and beta3 is on its way from beta1.
    const [l1, l3] = [Math.log(0.9), Math.log(0.9999)];
    const beta3 = Math.exp((l1 * l3) / (0.9 * l3 + 0.1 * l1));
    const scheduled = make({ alpha: 5, tAlpha: 10, tBeta3: 10 });
    const constant = make({ alpha: 0.5, betas: [0.9, 0.999, beta3] });
    expect(beta3).toBeLessThan(0.9999);
    expect(scheduled).toEqual(constant);
    expect(make({ alpha: 5, tAlpha: 1, tBeta3: 1 })).toEqual(make({ alpha: 5 }));
    expect(make({ alpha: 5, tAlpha: 1, tBeta3: 1 }, 3)).toEqual(make({ alpha: 5 }, 3)); // at the end they stay
  });
});

describe("state dicts", () => {
  const make = (Class: typeof optim.Adam8bit, seed: number) => {
    const parameters = [4096, 100].map((n) => new Parameter(Tensor.from(wave(n, seed), [n / 4, 4])));
    return { parameters, optimizer: new Class(parameters, { lr: 0.01, weightDecay: 0.1 }) };
  };
  const steps = ({ parameters, optimizer }: ReturnType<typeof make>, first: number, last: number) => {
    for (let t = first; t <= last; t++) {
      for (const parameter of parameters)
        parameter.grad = Tensor.from(normal(parameter.data.size, t), parameter.data.shape);
      optimizer.step();
    }
    return parameters.map(({ data }) => data.read());
  };

  test.each(["Adam8bit", "AdEMAMix8bit", "Lion8bit", "LAMB8bit", "LAMB32bit"] as const)(
    "%s goes on where it was",
    (name) => {
      const Class = optim[name] as typeof optim.Adam8bit;
      const original = make(Class, 1);
      steps(original, 1, 3);
      const resumed = make(Class, 1);
      for (const [i, { data }] of resumed.parameters.entries())
        data.write(original.parameters[i]!.data.read() as Float32Array<ArrayBuffer>);
      for (const group of resumed.optimizer.paramGroups) group.lr = 1;
      resumed.optimizer.loadStateDict(original.optimizer.stateDict());
      expect(resumed.optimizer.paramGroups[0]!.lr).toBe(0.01);
      expect(steps(resumed, 4, 6)).toEqual(steps(original, 4, 6));
    },
  );

  test("have bitsandbytes' layout", () => {
    const { parameters, optimizer } = make(optim.Adam8bit, 1);
    steps({ parameters, optimizer }, 1, 2);
    const { state, param_groups } = optimizer.stateDict();
    expect(param_groups).toEqual([
      {
        lr: 0.01,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.1,
        alpha: 0,
        t_alpha: null,
        t_beta3: null,
        params: [0, 1],
      },
    ]);
    expect(Object.keys(state)).toEqual(["0", "1"]);
    const { step, __bnb_optimizer_quant_state__: tensors } = state[0]!;
    expect(step).toBe(2);
    const shapes = Object.entries(tensors!).map(([name, tensor]) => `${name} ${tensor.dtype} [${tensor.shape}]`);
    expect(shapes.sort()).toEqual([
      "absmax1 float32 [16]",
      "absmax2 float32 [16]",
      "qmap1 float32 [256]",
      "qmap2 float32 [256]",
      "state1 uint8 [1024,4]",
      "state2 uint8 [1024,4]",
    ]);
    expect(tensors!.qmap1!.read() as Float32Array).toEqual(Codebook.named("dynamic").values);
    expect(tensors!.qmap2!.read() as Float32Array).toEqual(Codebook.named("dynamic_unsigned").values);
  });

  test("may have their tensors unwrapped, and maps of their own", () => {
    const original = make(optim.Adam8bit, 1);
    steps(original, 1, 2);
    const dict = original.optimizer.stateDict();
    const { step, __bnb_optimizer_quant_state__: tensors } = dict.state[0]!;
    const halved = Codebook.named("dynamic").values.map((value) => value / 2);
    const doubled = Tensor.from((tensors!.absmax1!.read() as Float32Array).map((value) => value * 2));
    const other = make(optim.Adam8bit, 1);
    for (const [i, { data }] of other.parameters.entries())
      data.write(original.parameters[i]!.data.read() as Float32Array<ArrayBuffer>);
    other.optimizer.loadStateDict({
      ...dict,
      state: { ...dict.state, 0: { step, ...tensors, qmap1: Tensor.from(halved), absmax1: doubled } },
    });
    expect(steps(other, 3, 3)).toEqual(steps(original, 3, 3)); // half the values, twice the scales
    expect(tensorsOf(other.optimizer).qmap1!.read() as Float32Array).toEqual(halved);
  });

  test("that do not fit are refused, and leave the optimizer as it was", () => {
    const trained = make(optim.Adam8bit, 1);
    steps(trained, 1, 1);
    const dict = trained.optimizer.stateDict();
    const load = (change: Partial<optim.OptimizerStateDict>) =>
      errorOf(() => trained.optimizer.loadStateDict({ ...dict, ...change })).message;
    const entry = (tensors: optim.StateTensors) => ({
      state: { 0: { step: 1, ...dict.state[0]!.__bnb_optimizer_quant_state__, ...tensors } },
    });
    const on = currentDevice().kind;
    expect(load({ param_groups: [] })).toBe("Adam8bit.loadStateDict: dict has groups of [] parameters, expected [2].");
    expect(load(entry({ state1: Tensor.zeros([5], { dtype: "uint8" }) }))).toBe(
      `Adam8bit.loadStateDict: dict's state 0: state1 is Tensor(uint8 [5] on ${on}), expected uint8 [1024, 4].`,
    );
    expect(load(entry({ absmax2: Tensor.zeros([3]) }))).toContain(
      `absmax2 is Tensor(float32 [3] on ${on}), expected float32 [16]`,
    );
    expect(load({ state: { 0: { step: 1 } } })).toContain("state1 is missing, expected float32 [1024, 4]");
    expect(load({ state: { 0: { ...dict.state[0]!, step: -1 } } })).toContain("step is -1");
    const fresh = make(optim.Adam8bit, 1);
    fresh.optimizer.loadStateDict({ ...dict, state: { 0: { ...dict.state[0]!, step: 0 } } }); // before the first
    expect(fresh.optimizer.stateDict().state[0]!.step).toBe(0);
    expect(load({ param_groups: [{ ...dict.param_groups[0]!, lr: -1 }] })).toContain("lr is -1");
    expect(trained.optimizer.stateDict().state[0]!.step).toBe(1);
  });
});

describe("is refused, with a sentence", () => {
  const p = () => new Parameter(Tensor.from(wave(8)));
  const message = (action: () => unknown) => errorOf(action).message;

  test("options that are none, or out of range", () => {
    const options = (options: object) => message(() => new optim.AdamW([p()], options));
    expect(options({ lr: -1 })).toBe("AdamW: lr is -1, expected a finite number of at least 0.");
    expect(options({ betas: [0.9, 1] })).toContain("betas is [0.9, 1], expected two numbers");
    expect(options({ betas: [0.9] })).toContain("betas is [0.9]");
    expect(options({ optimBits: 16 })).toContain("optimBits is 16, expected 8 or 32");
    expect(options({ weight_decay: 1 })).toContain(
      "options has no weight_decay, expected one of betas, eps, optimBits, lr, weightDecay",
    );
    expect(options({ maxUnorm: 1 })).toContain("options has no maxUnorm");
    expect(message(() => new optim.Adam8bit([p()], { optimBits: 32 } as object))).toContain("options has no optimBits");
    expect(message(() => new optim.SGD([p()], {} as { lr: number }))).toContain("lr is NaN");
    expect(errorOf(() => new optim.SGD([p()], { lr: 1, nesterov: true } as never))).toEqual({
      code: "unsupported",
      message: "SGD: nesterov is true, but only false is there.",
    });
    expect(new optim.PagedAdam([p()], { isPaged: true, amsgrad: false })).toBeInstanceOf(optim.Optimizer);
    expect(message(() => new optim.SGD([p()], { lr: 1, isPaged: true } as never))).toContain("options has no isPaged");
  });

  test.each([
    ["Adam", { amsgrad: false }, { amsgrad: true }],
    ["Adagrad", { lrDecay: 0, initialAccumulatorValue: 0 }, { lrDecay: 0.1, initialAccumulatorValue: 1 }],
    ["LAMB", { amsgrad: false, biasCorrection: true, adamWMode: true }, { biasCorrection: false, adamWMode: false }],
    ["RMSprop", { momentum: 0, centered: false }, { momentum: 0.9, centered: true }],
  ] as const)("%s has upstream's options, each with the one value that is there", (name, there, others) => {
    const make = (options: object) => new optim[name]([p()], options);
    expect(() => make(there)).not.toThrow();
    for (const [option, value] of Object.entries(others))
      expect(message(() => make({ ...there, [option]: value }))).toContain(`${name}: ${option} is ${value}, but only`);
  });

  test("parameters that are none", () => {
    const one = p();
    expect(message(() => new optim.Adam([]))).toContain("params is empty");
    expect(message(() => new optim.Adam([one, one]))).toContain("params holds a parameter twice");
    expect(message(() => new optim.Adam([one, { params: [p()] }] as never))).toContain("both parameters and groups");
    expect(message(() => new optim.Adam([one.data] as never))).toContain("expected Parameters");
  });

  test("gradients and settings that do not fit", () => {
    const one = p();
    using optimizer = new optim.Adam([one]);
    one.grad = Tensor.from(wave(9));
    expect(message(() => optimizer.step())).toContain("grad is float32 with 9 elements, expected float32 with 8");
    one.grad = Tensor.from(new Int8Array(8));
    expect(message(() => optimizer.step())).toContain("grad is int8, expected float32, float16 or bfloat16");
    one.grad = Tensor.from(wave(8));
    optimizer.paramGroups[0]!.lr = Number.NaN;
    expect(message(() => optimizer.step())).toContain("lr is NaN");
    optimizer.paramGroups[0]!.lr = 1e300;
    expect(message(() => optimizer.step())).toContain("lr is 1e+300, expected a finite number");
    optimizer.paramGroups[0]!.lr = 1e-3;
    expect(message(() => optimizer.step({ gnormScale: Number.NaN }))).toContain("gnormScale is NaN");
    expect(optimizer.stateDict().state[0]!.step).toBe(0);
    optimizer.step();
    expect(optimizer.stateDict().state[0]!.step).toBe(1);
    expect(message(() => new optim.RMSprop([one], { centered: true } as never))).toContain("centered");
    expect(() => new optim.RMSprop([one], { centered: false })).not.toThrow();
    expect(message(() => optim.GlobalOptimManager.getInstance().overrideConfig(new Set(), { lr: 1 }))).toContain(
      "parameters is empty, expected at least one Parameter",
    );
    expect(message(() => optim.GlobalOptimManager.getInstance().overrideConfig(one, { bits: 8 } as never))).toContain(
      "config has no bits",
    );
  });
});
