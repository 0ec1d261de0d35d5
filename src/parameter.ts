// Owns what is trained: a tensor and its gradient.
import type { Tensor } from "./tensor.ts";

/**
 * A tensor that an optimizer updates in place, and the gradient that a backward pass has left for it.
 *
 * @example
 * ```ts
 * using weight = new Parameter(Tensor.from([1, 2, 3, 4], [2, 2]));
 * weight.grad = Tensor.from([1, 1, 1, 1], [2, 2]);
 * new optim.SGD([weight], { lr: 0.1 }).step();
 * weight.data.read(); // → [0.9, 1.9, 2.9, 3.9]
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
