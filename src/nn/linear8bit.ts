// Owns Linear8bitLt: a linear layer by LLM.int8() over a frozen weight.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource, toStateDict } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { Int8Weight, matmul8bit } from "../int8_weight.ts";
import { matmulBlockwiseBackward } from "../matmul_backward.ts";
import type { Tensor, TensorOptions } from "../tensor.ts";
import { LinearLayer } from "./layer.ts";
import { checkBias } from "./linear4bit.ts";
import { loadBias, loadLayer } from "./load.ts";

/** Options of {@link Linear8bitLt}, under bitsandbytes' names. */
export interface Linear8bitLtOptions {
  /** [outFeatures], any float dtype; none by default. The layer takes it over. */
  bias?: Tensor | undefined;
  /** Columns of x with a magnitude of at least this are multiplied in floating point; 0, the default: none. */
  threshold?: number | undefined;
}

/**
 * A linear layer by LLM.int8() (Dettmers et al. 2022) over a frozen weight. Upstream: `nn.Linear8bitLt` with
 * `has_fp16_weights=False`; the other kind, which trains a dense weight and quantises it in every pass, is left out, for
 * bitsandbytes itself advises adapters over frozen weights.
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
   * @param weight [outFeatures, inFeatures]. A dense one is quantised, and stays the caller's; one in int8 is taken over
   * @throws BnbError if the weight or the bias does not make a linear layer, or can't be quantised
   */
  constructor(weight: Tensor | Int8Weight, options: Linear8bitLtOptions = {}) {
    const { bias, threshold = 0 } = options;
    if (!(Number.isFinite(threshold) && threshold >= 0))
      throw new BnbError(`Linear8bitLt: threshold is ${threshold}, expected a finite number of at least 0.`);
    const codes = weight instanceof Int8Weight ? weight : Int8Weight.quantize(weight);
    checkBias(bias, codes.shape[0]!, "Linear8bitLt");
    super([codes, bias]);
    this.weight = codes;
    this.bias = bias;
    this.threshold = threshold;
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
    const { device, ...rest } = options;
    return loadLayer(
      checkpoint,
      name,
      device,
      Int8Weight,
      (weight) => new Linear8bitLt(weight, { ...rest, bias: loadBias(checkpoint, name, device) }),
    );
  }

  /** `x · wᵀ + bias`, [..., outFeatures] of x [..., inFeatures], in x's dtype. @throws BnbError if x does not fit */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    return matmul8bit(x, this.weight, this);
  }

  /** The gradient of the input, `dy · w` in floating point, in dy's dtype; x is taken for what its codes stand for. */
  backward<D extends FloatDType>(dy: Tensor<D>): Tensor<D> {
    return matmulBlockwiseBackward(dy, this.weight.blockwise);
  }

  /** Upstream's keys: `weight`, `SCB`, `weight_format` and `bias`. */
  stateDict(name: string): TensorSource[] {
    const weight = toStateDict(`${name}.weight`, this.weight);
    return this.bias ? [...weight, tensorSource(`${name}.bias`, this.bias)] : weight;
  }
}
