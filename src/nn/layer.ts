// What every layer is: parameters to train, tensors to save, memory to free.
import type { TensorSource } from "../checkpoint/writer.ts";
import { type Device, type DeviceName, deviceOf } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { inspect } from "../inspect.ts";
import { Parameter } from "../parameter.ts";
import { Signature } from "../signature.ts";
import type { Tensor } from "../tensor.ts";

/**
 * What a layer is made of: a tensor or a weight, which moves as a copy, or a parameter or a layer, which moves
 * itself.
 */
export interface Part extends Disposable {
  readonly device?: Device;
  to(device: Device): Part;
}

/**
 * The base of all layers. A layer owns its weights: `using layer = …` or `dispose()` frees them, except a dense tensor
 * that the layer only quantised. It keeps nothing from a forward pass: `backward` takes the input again if the gradient
 * depends on it.
 *
 * @example
 * ```ts
 * const layers: nn.Layer[] = [nn.LayerNorm.init(64), nn.Lora.init(new nn.Linear4bit(Tensor.zeros([64, 64])))];
 * layers.flatMap((layer) => layer.parameters()).length; // → 4
 * const tensors = layers.flatMap((layer, i) => layer.stateDict(`layers.${i}`));
 * tensors.map(({ name }) => name)[2]; // → "layers.1.lora_A.weight"
 * for (const layer of layers) layer.dispose();
 * ```
 */
export abstract class Layer implements Disposable {
  readonly #brand = true;

  /** What the layer owns, by the names of its properties. */
  protected abstract parts(): Record<string, Part | undefined>;

  #parts(): [name: string, part: Part][] {
    return Object.entries(this.parts()).flatMap(([name, part]) => (part ? [[name, part] as [string, Part]] : []));
  }

  /** The parameters that an optimizer trains; none if the weights are frozen. */
  parameters(): Parameter[] {
    return this.#parts().flatMap(([, part]) =>
      part instanceof Parameter ? [part] : part instanceof Layer ? part.parameters() : [],
    );
  }

  /**
   * Moves the layer to another device. The layer and its parameters stay the same objects, so that optimizers can
   * continue; its frozen weight and bias become new ones.
   */
  to(device: Device | DeviceName): this {
    const target = deviceOf(signatures.to, device);
    const moving = this.#parts().filter(([, part]) => part.device !== target);
    const moved = moving.map(([name, part]) => [name, part.to(target)] as const);
    Object.assign(this, Object.fromEntries(moved));
    for (const [index, [, part]] of moving.entries()) if (moved[index]![1] !== part) part[Symbol.dispose]();
    return this;
  }

  /**
   * The layer's tensors under upstream's keys, ready for `writeSafetensors`.
   *
   * @param name the layer's own, such as `model.layers.0.mlp.up_proj`
   */
  stateDict(name: string): TensorSource[] {
    return this.tensors(new Signature(`${this.constructor.name}.stateDict`).text(name, "name"));
  }

  /** The layer's tensors under upstream's keys, below a name. */
  protected abstract tensors(name: string): TensorSource[];

  /** `Embedding4bit(weight: QuantizedTensor(…))` */
  toString(): string {
    return `${this.constructor.name}(${this.#parts()
      .map(([name, part]) => `${name}: ${part}`)
      .join(", ")})`;
  }

  /** What console.log shows. */
  [inspect](): string {
    return String(this);
  }

  /** Frees the memory; work that still uses it finishes first. Again is harmless. */
  dispose(): void {
    for (const [, part] of this.#parts()) part[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal Whether a value is a layer, by a private field. */
  static is(value: unknown): value is Layer {
    return typeof value === "object" && value !== null && #brand in value;
  }
}

const signatures = { to: new Signature("Layer.to") };

/** What layers ask of a frozen weight of two dimensions, however it is stored. */
interface FrozenWeight extends Part {
  readonly shape: readonly number[];
  readonly device: Device;
  to(device: Device): FrozenWeight;
}

/** A layer that multiplies by a frozen weight [outFeatures, inFeatures], and that an adapter can be added to. */
export abstract class LinearLayer extends Layer {
  abstract readonly weight: FrozenWeight;
  abstract readonly bias: Tensor | undefined;

  protected override parts(): Record<string, Part | undefined> {
    return { weight: this.weight, bias: this.bias };
  }

  get inFeatures(): number {
    return this.weight.shape[1]!;
  }

  get outFeatures(): number {
    return this.weight.shape[0]!;
  }

  get device(): Device {
    return this.weight.device;
  }

  /** `x · wᵀ + bias`, [..., outFeatures] of x [..., inFeatures], in x's dtype. */
  abstract forward<D extends FloatDType>(x: Tensor<D>): Tensor<D>;

  /** The gradient of the input: `dy · w`, [..., inFeatures] of dy [..., outFeatures], in dy's dtype. */
  abstract backward<D extends FloatDType>(dy: Tensor<D>): Tensor<D>;

  override toString(): string {
    return `${this.constructor.name}(${this.inFeatures} → ${this.outFeatures}, ${this.weight})`;
  }
}

/** A layer that gives rows of a frozen table [numEmbeddings, embeddingDim]. */
export abstract class TableLayer extends Layer {
  abstract readonly weight: FrozenWeight;

  protected override parts(): Record<string, Part> {
    return { weight: this.weight };
  }

  get numEmbeddings(): number {
    return this.weight.shape[0]!;
  }

  get embeddingDim(): number {
    return this.weight.shape[1]!;
  }
}
