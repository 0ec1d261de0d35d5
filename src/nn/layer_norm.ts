// Owns LayerNorm as a layer: its weight and bias are trained.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { layerNorm, layerNormBackward } from "../layer_norm.ts";
import { Parameter } from "../parameter.ts";
import { Tensor, type TensorOptions } from "../tensor.ts";
import { accumulate } from "./gradient.ts";
import { Layer } from "./layer.ts";
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
  constructor(weight: Tensor, bias: Tensor, options: { eps?: number } = {}) {
    const parameters = [new Parameter(weight), new Parameter(bias)] as const;
    super(parameters);
    [this.weight, this.bias] = parameters;
    this.eps = options.eps ?? 1e-5;
  }

  /** A new one for n columns: the weight is ones and the bias zeros. */
  static init(n: number, options: TensorOptions & { eps?: number } = {}): LayerNorm {
    const ones = Tensor.from(new Float32Array(n).fill(1), [n], options);
    return new LayerNorm(ones, Tensor.zeros([n], options), options);
  }

  /** The one that a checkpoint holds under a name. */
  static load(checkpoint: Checkpoint, name: string, options: TensorOptions & { eps?: number } = {}): LayerNorm {
    const load = (part: string) => loadDense(checkpoint, `${name}.${part}`, options.device);
    return new LayerNorm(load("weight"), load("bias"), options);
  }

  override parameters(): Parameter[] {
    return [this.weight, this.bias];
  }

  /** @param x [..., n]; the result has its shape and dtype */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    return layerNorm(x, this.weight.data, this.bias.data, this);
  }

  /**
   * Adds to the gradients of the weight and of the bias.
   *
   * @param x what `forward` was given
   * @returns the gradient of x, in dy's dtype
   */
  backward<D extends FloatDType>(dy: Tensor<D>, x: Tensor): Tensor<D> {
    const { dx, dWeight, dBias } = layerNormBackward(dy, x, this.weight.data, this);
    accumulate(this.weight, dWeight);
    accumulate(this.bias, dBias);
    return dx;
  }

  /** `weight` and `bias`. */
  stateDict(name: string): TensorSource[] {
    return [tensorSource(`${name}.weight`, this.weight.data), tensorSource(`${name}.bias`, this.bias.data)];
  }
}
