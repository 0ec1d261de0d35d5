// LoRA: a trained product of two thin matrices beside a frozen linear layer.

import { adaptedModules, plainName, settingsIn } from "../checkpoint/adapter.ts";
import { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { add, scale } from "../elementwise.ts";
import { linear } from "../matmul.ts";
import { linearBackward, linearBackwardWeight } from "../matmul_backward.ts";
import { floatDtypes } from "../native.ts";
import { Parameter } from "../parameter.ts";
import { format, sameShape } from "../shape.ts";
import { Signature } from "../signature.ts";
import { Tensor } from "../tensor.ts";
import { accumulate, checkDrawn, type InitOptions, initOf, passIn, uniform } from "./gradient.ts";
import { Layer, LinearLayer, type Part } from "./layer.ts";
import { checkWeight } from "./linear4bit.ts";
import { loadDense } from "./load.ts";

/**
 * `base(x) + alpha / r · (x · Aᵀ) · Bᵀ` (LoRA, Hu et al. 2022; over a 4-bit base, QLoRA). The base is frozen; A [r,
 * inFeatures] and B [outFeatures, r] are trained. There is no dropout. Upstream: PEFT's `LoraLayer`, whose keys the
 * state dict has.
 *
 * @example
 * ```ts
 * using weight = Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]);
 * using layer = nn.Lora.init(new nn.Linear4bit(weight), { r: 8, alpha: 16 });
 * using optimizer = new optim.Adam8bit(layer.parameters(), { lr: 1e-3 });
 * using x = Tensor.from(new Float32Array(64).fill(1), [1, 64]);
 * using y = layer.forward(x);
 * using dx = layer.backward(y, x); // as if y were the loss's gradient
 * optimizer.step();
 * optimizer.zeroGrad();
 * ```
 */
export class Lora extends Layer {
  readonly base: LinearLayer;
  /** [r, inFeatures] */
  readonly A: Parameter;
  /** [outFeatures, r] */
  readonly B: Parameter;
  /** alpha / r */
  readonly scaling: number;

  /** Takes over all three. @param options `alpha` is r by default @throws BnbError if A and B do not fit the base */
  constructor(base: LinearLayer, A: Tensor, B: Tensor, options: { alpha?: number | undefined } = {}) {
    super();
    const me = signatures.lora;
    const { alpha: given } = me.options(options);
    if (given !== undefined) me.finite(given, "alpha");
    me.object(base, "base", linearLayers);
    me.tensor(A, "A");
    me.tensor(B, "B");
    const [r] = checkWeight(me, A, "A");
    const want = { A: [r, base.inFeatures], B: [base.outFeatures, r] };
    for (const [name, tensor] of [["A", A] as const, ["B", B] as const])
      if (format(tensor.shape) !== format(want[name]))
        throw me.fail(`${name} is ${format(tensor.shape)}, expected ${format(want[name])}.`);
    const alpha = given === undefined ? r : me.finite(given, "alpha");
    this.base = base;
    this.A = new Parameter(A);
    this.B = new Parameter(B);
    this.scaling = alpha / r;
  }

  /**
   * A new adapter, which changes nothing yet: A is random (He et al. 2015, as PEFT makes it), B is zeros. Takes over
   * the base.
   *
   * @param options `r` is 8 by default, `alpha` is r, and `dtype`, that of A and B, float32
   */
  static init(
    base: LinearLayer,
    options: { r?: number | undefined; alpha?: number | undefined } & Omit<InitOptions, "device"> = {},
  ): Lora {
    const me = signatures.init;
    const { r = 8, alpha, ...rest } = me.options(options);
    const { inFeatures, outFeatures, device } = me.object(base, "base", linearLayers);
    me.whole(r, "r", 1);
    checkDrawn(me, r, inFeatures, "r and the base's inFeatures");
    if (alpha !== undefined) me.finite(alpha, "alpha");
    const init = initOf(me, { ...rest, device });
    const A = uniform([r, inFeatures], 1 / Math.sqrt(inFeatures), init);
    return new Lora(base, A, Tensor.zeros([outFeatures, r], { device, dtype: init.dtype! }), { alpha });
  }

  /**
   * The adapter that a checkpoint of PEFT's holds for a module, put on a base, which it takes over. Rank, alpha, their
   * patterns and rsLoRA are what the adapter_config.json beside it says.
   *
   * @param checkpoint `openCheckpoint("…/adapter_model.safetensors")`
   * @param name the module's, with or without what PEFT puts before it, such as `model.layers.0.self_attn.q_proj`
   * @param options `alpha` in the place of what adapter_config.json says; r where there is none
   * @throws BnbError naming the option of adapter_config.json that a layer can't have: `mergeAdapter` may know it
   */
  static load(
    base: LinearLayer,
    checkpoint: Checkpoint,
    name: string,
    options: { alpha?: number | undefined } = {},
  ): Lora {
    const me = signatures.load;
    const { alpha: given } = me.options(options);
    if (given !== undefined) me.finite(given, "alpha");
    const { device } = me.object(base, "base", linearLayers);
    const { tensors, directory, path } = me.object(checkpoint, "checkpoint", Checkpoint);
    const module = plainName(me.text(name, "name"));
    const parts = adaptedModules(checkpoint).get(module)?.parts;
    const settings = settingsIn(directory);
    const refused = [
      settings?.dora || parts?.has("lora_magnitude_vector") ? "use_dora" : undefined,
      settings?.bias || parts?.has("lora_B.bias") ? "lora_bias" : undefined,
      settings?.fanInFanOut ? "fan_in_fan_out" : undefined,
    ].find((option) => option !== undefined);
    if (refused)
      throw me.fail(`checkpoint ${path} has ${refused}, which a layer can't have: merge it (\`bunsandbytes merge\`).`);
    const [a, b] = [parts?.get("lora_A"), parts?.get("lora_B")];
    if (!a || !b) throw me.fail(`name leads to ${JSON.stringify(name)}, for which ${path} has no lora_A and lora_B.`);
    const [A, B] = [a, b].map((part) => loadDense(me, checkpoint, keyOf(tensors, part), device)) as [Tensor, Tensor];
    const rank = A.shape[0]!;
    const alpha = given === undefined ? settings && settings.scaling(module, rank) * rank : given;
    return new Lora(base, A, B, { alpha });
  }

  protected override parts(): Record<string, Part> {
    return { base: this.base, A: this.A, B: this.B };
  }

  /** [..., outFeatures] of x [..., inFeatures], in x's dtype; the adapter computes in its own. */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    checkInput(signatures.forward, x, "x", this.base.inFeatures);
    using y = this.base.forward(x);
    using delta = passIn(this.#dtype, x, (input) => {
      using h = linear(input, this.A.data);
      return linear(h, this.B.data);
    });
    return add(y, delta, { scale: this.scaling });
  }

  /**
   * Adds to the gradients of A and B.
   *
   * @param x what `forward` was given
   * @returns the gradient of x, in dy's dtype
   */
  backward<D extends FloatDType>(dy: Tensor<D>, x: Tensor<FloatDType>): Tensor<D> {
    const me = signatures.backward;
    checkInput(me, dy, "dy", this.base.outFeatures);
    checkInput(me, x, "x", this.base.inFeatures);
    if (!sameShape(dy.shape.slice(0, -1), x.shape.slice(0, -1)))
      throw me.fail(`dy is ${format(dy.shape)} and x is ${format(x.shape)}: all dimensions but the last must match.`);
    using dx = this.base.backward(dy);
    using delta = passIn(this.#dtype, dy, (gradient) => {
      using input = x.cast(gradient.dtype);
      using h = linear(input, this.A.data);
      using scaled = scale(gradient, this.scaling);
      using dh = linearBackward(scaled, this.B.data);
      accumulate(this.B, linearBackwardWeight(scaled, h, { dtype: "float32" }));
      accumulate(this.A, linearBackwardWeight(dh, input, { dtype: "float32" }));
      return linearBackward(dh, this.A.data);
    });
    return add(dx, delta);
  }

  /** The adapter's tensors only: the base has a state dict of its own. */
  protected tensors(name: string): TensorSource[] {
    return [tensorSource(`${name}.lora_A.weight`, this.A.data), tensorSource(`${name}.lora_B.weight`, this.B.data)];
  }

  get #dtype(): FloatDType {
    return this.A.data.dtype as FloatDType;
  }
}

/** Checks what a pass is given: a float tensor [..., columns]. */
function checkInput(me: Signature, x: Tensor, argument: string, columns: number): void {
  me.batch(x, argument);
  me.code(x.dtype, `${argument}'s dtype`, floatDtypes);
  if (x.shape.at(-1) !== columns) throw me.fail(`${argument} is ${format(x.shape)}, expected [..., ${columns}].`);
}

/** The name that a tensor has in its file. */
function keyOf<T>(tensors: ReadonlyMap<string, T>, tensor: T): string {
  return [...tensors].find(([, other]) => other === tensor)![0];
}

const linearLayers = {
  name: "linear layer",
  is: (value: unknown): value is LinearLayer => Layer.is(value) && value instanceof LinearLayer,
};

const signatures = {
  lora: new Signature("Lora", { options: ["alpha"] }),
  init: new Signature("Lora.init", { options: ["r", "alpha", "dtype", "seed"] }),
  load: new Signature("Lora.load", { options: ["alpha"] }),
  forward: new Signature("Lora.forward"),
  backward: new Signature("Lora.backward"),
};
