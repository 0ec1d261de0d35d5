// Linear8bitLt: a linear layer by LLM.int8() over a frozen weight.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource, toStateDict } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { Int8Weight, multiply } from "../int8_weight.ts";
import { quantizedBackward } from "../matmul_backward.ts";
import { Signature } from "../signature.ts";
import type { Tensor, TensorOptions } from "../tensor.ts";
import { type InitOptions, initOptions } from "./gradient.ts";
import { LinearLayer } from "./layer.ts";
import { checkBias, newWeight } from "./linear4bit.ts";
import { loadBias, loadLayer } from "./load.ts";

/** Options of {@link Linear8bitLt}, under bitsandbytes' names. */
export interface Linear8bitLtOptions {
  /** [outFeatures], any float dtype; none by default. The layer takes it over. */
  bias?: Tensor | undefined;
  /** Columns of x with a magnitude of at least this are multiplied in floating point; 0, the default: none. */
  threshold?: number | undefined;
}

/**
 * A linear layer with a frozen weight that multiplies by LLM.int8() (Dettmers et al. 2022). Upstream: `nn.Linear8bitLt`
 * with `has_fp16_weights=False`. The other kind, which trains a dense weight and quantises it in every pass, is left
 * out: bitsandbytes itself recommends adapters on frozen weights.
 *
 * @example
 * ```ts
 * using weight = Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]);
 * using layer = new nn.Linear8bitLt(weight, { threshold: 6 });
 * using x = Tensor.from(new Float32Array(64).fill(1), [1, 64]);
 * using y = layer.forward(x);
 * y.read()[0]; // → 6.4
 * ```
 */
export class Linear8bitLt extends LinearLayer {
  /** [outFeatures, inFeatures] */
  readonly weight: Int8Weight;
  readonly bias: Tensor | undefined;
  readonly threshold: number;

  /**
   * @param weight [outFeatures, inFeatures]. A dense one is quantised, and stays the caller's; one in int8 is taken
   * over
   * @throws BnbError if the weight or the bias does not make a linear layer, or can't be quantised
   */
  constructor(weight: Tensor | Int8Weight, options: Linear8bitLtOptions = {}) {
    super();
    const me = signatures.linear8bit;
    const { bias, threshold = 0 } = me.options(options);
    me.notNegative(threshold, "threshold");
    const codes = codes8bit(me, weight);
    checkBias(me, bias, codes.shape[0]!);
    this.weight = codes;
    this.bias = bias;
    this.threshold = threshold;
  }

  /**
   * A new layer of random numbers, spread as torch's `nn.Linear` spreads them (Kaiming uniform, a = √5), without a bias
   * unless it is among the options.
   */
  static init(inFeatures: number, outFeatures: number, options: Linear8bitLtOptions & InitOptions = {}): Linear8bitLt {
    const me = signatures.init;
    const { device, dtype, seed, ...rest } = me.options(options);
    using weight = newWeight(me, inFeatures, outFeatures, { device, dtype, seed });
    return new Linear8bitLt(weight, rest);
  }

  /**
   * The layer that a checkpoint holds under a name; a dense weight there is quantised.
   *
   * @param options `bias` is the checkpoint's own
   * @throws BnbError if there is no such layer, or it is damaged, or of 4 bits
   */
  static load(
    checkpoint: Checkpoint,
    name: string,
    options: Omit<Linear8bitLtOptions, "bias"> & TensorOptions = {},
  ): Linear8bitLt {
    const me = signatures.load;
    const { device, ...rest } = me.options(options);
    const make = (weight: Tensor | Int8Weight) =>
      new Linear8bitLt(weight, { ...rest, bias: loadBias(me, checkpoint, name, device) });
    return loadLayer(me, checkpoint, name, device, Int8Weight, make);
  }

  /** `x · wᵀ + bias`, [..., outFeatures] of x [..., inFeatures], in x's dtype. @throws BnbError if x does not fit */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    const { bias, threshold } = this;
    return multiply(signatures.forward, x, this.weight, { bias, threshold });
  }

  /** The gradient of the input, `dy · w` in floating point, in dy's dtype; x is taken for what its codes stand for. */
  backward<D extends FloatDType>(dy: Tensor<D>): Tensor<D> {
    return quantizedBackward(signatures.backward, dy, this.weight.blockwise);
  }

  /** Upstream's keys: `weight`, `SCB`, `weight_format` and `bias`. */
  protected tensors(name: string): TensorSource[] {
    const weight = toStateDict(`${name}.weight`, this.weight);
    return this.bias ? [...weight, tensorSource(`${name}.bias`, this.bias)] : weight;
  }
}

/** A layer's weight in int8: one that is quantised already, which is taken over, or a dense one quantised. */
export function codes8bit(me: Signature, weight: unknown): Int8Weight {
  if (Int8Weight.is(weight)) return weight;
  me.kind(weight, "weight", ["Tensor"], ["Int8Weight"]);
  return Int8Weight.quantizeAs(me, weight as Tensor, "weight");
}

const signatures = {
  linear8bit: new Signature("Linear8bitLt", { options: ["bias", "threshold"] }),
  init: new Signature("Linear8bitLt.init", { options: ["bias", "threshold", ...initOptions] }),
  load: new Signature("Linear8bitLt.load", { options: ["threshold", "device"] }),
  forward: new Signature("Linear8bitLt.forward"),
  backward: new Signature("Linear8bitLt.backward"),
};
