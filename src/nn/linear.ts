// Linear: a layer over a frozen weight of any kind, and the layer of a checkpoint that fits its weight.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource, toStateDict } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { Int8Weight } from "../int8_weight.ts";
import { floatDtypes, namedPrecisions, type Precision } from "../native.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Signature } from "../signature.ts";
import { Tensor, type TensorOptions } from "../tensor.ts";
import { product, productBackward, type Weight } from "../weight.ts";
import { LinearLayer } from "./layer.ts";
import { checkBias, checkWeight, Linear4bit, type Linear4bitOptions } from "./linear4bit.ts";
import { Linear8bitLt } from "./linear8bit.ts";
import { loadBias, loadKind } from "./load.ts";

/** Options of {@link Linear}. */
export interface LinearOptions {
  /** [outFeatures], any float dtype; none by default. The layer takes it over. */
  bias?: Tensor | undefined;
  /** The least accuracy of the products. */
  precision?: Precision | undefined;
}

/**
 * A linear layer with a frozen weight of any kind, used as it is: dense, or quantised to any width. Upstream:
 * `torch.nn.Linear` in evaluation mode.
 *
 * @example
 * ```ts
 * using layer = new nn.Linear(Tensor.from([[1, 0], [0, 1], [1, 1]]));
 * using x = Tensor.from([[3, 4]]);
 * using y = layer.forward(x);
 * y.read(); // → [3, 4, 7]
 * ```
 */
export class Linear extends LinearLayer {
  /** [outFeatures, inFeatures] */
  readonly weight: Weight;
  readonly bias: Tensor | undefined;
  readonly precision: Precision | undefined;

  /** Takes over the weight and the bias. @throws BnbError if they do not make a linear layer */
  constructor(weight: Weight, options: LinearOptions = {}) {
    super();
    const me = signatures.linear;
    const { bias, precision } = me.options(options);
    if (!Int8Weight.is(weight)) me.kind(weight, "weight", ["Tensor", "QuantizedTensor"], ["Int8Weight"]);
    const [outFeatures] = checkWeight(me, weight);
    checkBias(me, bias, outFeatures);
    if (precision !== undefined) me.code(precision, "precision", namedPrecisions);
    this.weight = weight;
    this.bias = bias;
    this.precision = precision;
  }

  /** `x · wᵀ + bias`, [..., outFeatures] of x [..., inFeatures]. @throws BnbError if x does not fit */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    const { bias, precision } = this;
    return product(signatures.forward, x, this.weight, { bias, precision });
  }

  /** The gradient of the input, `dy · w`, in dy's dtype. The weight is frozen, and so is the bias. */
  backward<D extends FloatDType>(dy: Tensor<D>): Tensor<D> {
    return productBackward(signatures.backward, dy, this.weight);
  }

  /** The weight as what it is, under the keys of its kind. */
  protected tensors(name: string): TensorSource[] {
    const { weight, bias } = this;
    const key = `${name}.weight`;
    const tensors = weight instanceof Tensor ? [tensorSource(key, weight)] : toStateDict(key, weight);
    return bias ? [...tensors, tensorSource(`${name}.bias`, bias)] : tensors;
  }
}

/** Options of {@link loadLinear}. Each applies to the layers that have such an option. */
export type LoadLinearOptions = TensorOptions &
  Pick<Linear4bitOptions, "computeDtype" | "precision"> & {
    /** Of a layer in int8: columns of x with a magnitude of at least this are multiplied in floating point. */
    threshold?: number | undefined;
  };

/**
 * The linear layer that a checkpoint holds under a name, in the class that fits its weight: {@link Linear4bit} for 4
 * bits, {@link Linear8bitLt} for LLM.int8(), and {@link Linear} for all others.
 *
 * @example
 * ```ts
 * using model = checkpoint.openCheckpoint("./model-nf4");
 * using layer = nn.loadLinear(model, "model.layers.0.mlp.up_proj");
 * layer instanceof nn.Linear4bit; // → true
 * layer.outFeatures; // → 128
 * ```
 *
 * @param name the layer's name, without `.weight`
 * @throws BnbError if there is no such layer, or it is damaged
 */
export function loadLinear(checkpoint: Checkpoint, name: string, options: LoadLinearOptions = {}): LinearLayer {
  const me = signatures.load;
  const { device, computeDtype, precision, threshold } = me.options(options);
  if (computeDtype !== undefined) me.code(computeDtype, "computeDtype", floatDtypes);
  if (precision !== undefined) me.code(precision, "precision", namedPrecisions);
  if (threshold !== undefined) me.notNegative(threshold, "threshold");
  const key = `${me.text(name, "name")}.weight`;
  const weight = loadKind<Weight>(me, checkpoint, key, device, Tensor, QuantizedTensor, Int8Weight);
  const bias = loadBias(me, checkpoint, name, device);
  if (weight instanceof Int8Weight) return new Linear8bitLt(weight, { bias, threshold });
  if (weight instanceof QuantizedTensor && weight.bits === 4)
    return new Linear4bit(weight, { bias, computeDtype, precision });
  return new Linear(weight, { bias, precision });
}

const signatures = {
  linear: new Signature("Linear", { options: ["bias", "precision"] }),
  forward: new Signature("Linear.forward"),
  backward: new Signature("Linear.backward"),
  load: new Signature("loadLinear", { options: ["device", "computeDtype", "precision", "threshold"] }),
};
