// Owns LoRA: a trained product of two thin matrices beside a frozen linear layer.
import { add, scale } from "../add.ts";
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { linear } from "../matmul.ts";
import { linearBackward, linearBackwardWeight } from "../matmul_backward.ts";
import { Parameter } from "../parameter.ts";
import { format } from "../shape.ts";
import { Tensor } from "../tensor.ts";
import { accumulate, type InitOptions, passIn, uniform } from "./gradient.ts";
import { Layer, type LinearLayer } from "./layer.ts";
import { checkWeight } from "./linear4bit.ts";
import { loadDense } from "./load.ts";

/**
 * `base(x) + alpha / r · (x · Aᵀ) · Bᵀ` (LoRA, Hu et al. 2022; over a 4-bit base, QLoRA). The base is frozen; A [r,
 * inFeatures] and B [outFeatures, r] are trained. There is no dropout. Upstream: PEFT's `LoraLayer`, which transformers
 * puts on bitsandbytes' layers; the keys of its adapters are these.
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
    const [r] = checkWeight(A, "Lora");
    const want = { A: [r, base.inFeatures], B: [base.outFeatures, r] };
    for (const [name, tensor] of [["A", A] as const, ["B", B] as const])
      if (format(tensor.shape) !== format(want[name]))
        throw new BnbError(`Lora: ${name} is ${format(tensor.shape)}, expected ${format(want[name])}.`);
    const { alpha = r } = options;
    if (!Number.isFinite(alpha)) throw new BnbError(`Lora: alpha is ${alpha}, expected a finite number.`);
    const parameters = [new Parameter(A), new Parameter(B)] as const;
    super([base, ...parameters]);
    this.base = base;
    [this.A, this.B] = parameters;
    this.scaling = alpha / r;
  }

  /**
   * A new adapter, which changes nothing yet: A is random (He et al. 2015, as PEFT makes it), B is zeros. Takes over the base.
   *
   * @param options `r` is 8 by default, `alpha` is r, and `dtype`, that of A and B, float32
   */
  static init(base: LinearLayer, options: { r?: number; alpha?: number } & Omit<InitOptions, "device"> = {}): Lora {
    const { r = 8, alpha, ...init } = options;
    const { inFeatures, outFeatures, device } = base;
    const A = uniform([r, inFeatures], 1 / Math.sqrt(inFeatures), { ...init, device });
    return new Lora(base, A, Tensor.zeros([outFeatures, r], { device, dtype: init.dtype ?? "float32" }), { alpha });
  }

  /** The adapter that a checkpoint of PEFT's holds under a name, put on a base, which it takes over. */
  static load(base: LinearLayer, checkpoint: Checkpoint, name: string, options: { alpha?: number } = {}): Lora {
    const load = (part: string) => loadDense(checkpoint, `${name}.${part}.weight`, base.device);
    return new Lora(base, load("lora_A"), load("lora_B"), options);
  }

  override parameters(): Parameter[] {
    return [this.A, this.B];
  }

  /** [..., outFeatures] of x [..., inFeatures], in x's dtype; the adapter computes in its own. */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
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
  stateDict(name: string): TensorSource[] {
    return [tensorSource(`${name}.lora_A.weight`, this.A.data), tensorSource(`${name}.lora_B.weight`, this.B.data)];
  }

  get #dtype(): FloatDType {
    return this.A.data.dtype as FloatDType;
  }
}
