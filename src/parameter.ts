// Owns what is trained: a tensor and its gradient.
import type { Tensor } from "./tensor.ts";

/**
 * A tensor that an optimizer updates in place, and the gradient that a backward pass has left for it.
 *
 * ```ts
 * using weight = new Parameter(Tensor.from(values, [64, 64]));
 * weight.grad = Tensor.from(gradient, [64, 64]);
 * ```
 */
export class Parameter implements Disposable {
  /** float32, float16 or bfloat16. */
  data: Tensor;
  /** The loss's gradient: as many elements as `data`, of any float dtype. Null where there is none, as at first. */
  grad: Tensor | null = null;
  /** Optimizers leave a parameter alone where this is false. */
  requiresGrad: boolean;

  /** Takes over `data`. */
  constructor(data: Tensor, options: { requiresGrad?: boolean } = {}) {
    this.data = data;
    this.requiresGrad = options.requiresGrad ?? true;
  }

  /** Frees the tensor and its gradient. */
  dispose(): void {
    this.data.dispose();
    this.grad?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
