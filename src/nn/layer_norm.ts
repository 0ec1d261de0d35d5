// LayerNorm as a layer: its weight and bias are trained.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import { currentDevice, deviceOf } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { defaultEps, normalize, normalizeBackward } from "../layer_norm.ts";
import { Parameter } from "../parameter.ts";
import { format } from "../shape.ts";
import { Signature } from "../signature.ts";
import { Tensor, type TensorOptions } from "../tensor.ts";
import { accumulate } from "./gradient.ts";
import { Layer, type Part } from "./layer.ts";
import { loadDense } from "./load.ts";

/**
 * Layer normalisation over the last dimension (Ba et al. 2016). Upstream: `torch.nn.LayerNorm`.
 *
 * @example
 * ```ts
 * using layer = nn.LayerNorm.init(3);
 * using x = Tensor.from([1, 2, 3], [1, 3]);
 * using y = layer.forward(x);
 * y.read(); // → [-1.22, 0, 1.22]
 * using dx = layer.backward(y, x);
 * layer.bias.grad?.read(); // → [-1.22, 0, 1.22]
 * ```
 */
export class LayerNorm extends Layer {
  /** [n] */
  readonly weight: Parameter;
  /** [n] */
  readonly bias: Parameter;
  readonly eps: number;

  /** Takes over both tensors. */
  constructor(weight: Tensor, bias: Tensor, options: { eps?: number | undefined } = {}) {
    super();
    const me = signatures.norm;
    const { eps = defaultEps } = me.options(options);
    me.tensor(weight, "weight");
    me.tensor(bias, "bias");
    if (weight.shape.length !== 1) throw me.fail(`weight is ${format(weight.shape)}, expected one dimension, [n].`);
    if (format(bias.shape) !== format(weight.shape))
      throw me.fail(`bias is ${format(bias.shape)}, expected ${format(weight.shape)}, the weight's shape.`);
    this.weight = new Parameter(weight);
    this.bias = new Parameter(bias);
    this.eps = me.notNegative(eps, "eps");
  }

  /** A new layer for n columns, with ones as its weight and zeros as its bias. */
  static init(n: number, options: TensorOptions & { eps?: number | undefined } = {}): LayerNorm {
    const me = signatures.init;
    const { device: where, eps } = me.options(options);
    me.whole(n, "n", 1, 2 ** 32);
    const device = where === undefined ? currentDevice() : deviceOf(me, where);
    if (eps !== undefined) me.notNegative(eps, "eps");
    const ones = Tensor.from(new Float32Array(n).fill(1), [n], { device });
    return new LayerNorm(ones, Tensor.zeros([n], { device }), { eps });
  }

  /** The layer that a checkpoint holds under a name. */
  static load(
    checkpoint: Checkpoint,
    name: string,
    options: TensorOptions & { eps?: number | undefined } = {},
  ): LayerNorm {
    const me = signatures.load;
    const { device, eps } = me.options(options);
    const load = (part: string) => loadDense(me, checkpoint, `${me.text(name, "name")}.${part}`, device);
    return new LayerNorm(load("weight"), load("bias"), { eps });
  }

  protected override parts(): Record<string, Part> {
    return { weight: this.weight, bias: this.bias };
  }

  /** @param x [..., n]; the result has its shape and dtype */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    return normalize(signatures.forward, x, this.weight.data, this.bias.data, { eps: this.eps });
  }

  /**
   * Adds to the gradients of the weight and of the bias.
   *
   * @param x what `forward` was given
   * @returns the gradient of x, in dy's dtype
   */
  backward<D extends FloatDType>(dy: Tensor<D>, x: Tensor): Tensor<D> {
    const { eps } = this;
    const { dx, dWeight, dBias } = normalizeBackward(signatures.backward, dy, x, this.weight.data, { eps });
    accumulate(this.weight, dWeight);
    accumulate(this.bias, dBias);
    return dx;
  }

  /** `weight` and `bias`. */
  protected tensors(name: string): TensorSource[] {
    return [tensorSource(`${name}.weight`, this.weight.data), tensorSource(`${name}.bias`, this.bias.data)];
  }
}

const signatures = {
  norm: new Signature("LayerNorm", { options: ["eps"] }),
  init: new Signature("LayerNorm.init", { options: ["eps", "device"] }),
  load: new Signature("LayerNorm.load", { options: ["eps", "device"] }),
  forward: new Signature("LayerNorm.forward"),
  backward: new Signature("LayerNorm.backward"),
};
