// What is trained: a tensor and its gradient.
import { type Device, type DeviceName, deviceOf } from "./device.ts";
import { inspect } from "./inspect.ts";
import { Signature } from "./signature.ts";
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

  readonly #brand = true;

  /** Takes over `data`. */
  constructor(data: Tensor, options: { requiresGrad?: boolean } = {}) {
    const { requiresGrad = true } = signatures.parameter.options(options);
    signatures.parameter.tensor(data, "data");
    this.data = data;
    this.requiresGrad = signatures.parameter.boolean(requiresGrad, "requiresGrad");
  }

  /** @internal Whether a value is a parameter, by a private field. */
  static is(value: unknown): value is Parameter {
    return typeof value === "object" && value !== null && #brand in value;
  }

  /**
   * Moves the tensor and its gradient to another device; the parameter stays the same object, and optimizers know
   * it.
   */
  to(device: Device | DeviceName): this {
    const target = deviceOf(signatures.to, device);
    if (target === this.data.device) return this;
    const [data, grad] = [this.data, this.grad];
    this.data = data.to(target);
    this.grad = grad?.to(target) ?? null;
    data.dispose();
    grad?.dispose();
    return this;
  }

  toString(): string {
    return `Parameter(${this.data})`;
  }

  /** What console.log shows. */
  [inspect](): string {
    return String(this);
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

const signatures = {
  parameter: new Signature("Parameter", { options: ["requiresGrad"] }),
  to: new Signature("Parameter.to"),
};
