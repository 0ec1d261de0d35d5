// Owns what every layer is: parameters to train, tensors to save, memory to free.
import type { TensorSource } from "../checkpoint/writer.ts";
import type { Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import type { Parameter } from "../parameter.ts";
import type { Tensor } from "../tensor.ts";

/**
 * A layer owns what it is made of: `using layer = …`, or `dispose()`, frees its weights too, except a dense tensor that it
 * only quantised. A layer keeps nothing of a forward pass: where a gradient needs its input, `backward` takes it again.
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
  readonly #owned: readonly Disposable[];

  protected constructor(owned: readonly (Disposable | undefined)[]) {
    this.#owned = owned.filter((part) => part !== undefined);
  }

  /** What an optimizer trains; nothing where the weights are frozen. */
  parameters(): Parameter[] {
    return this.#owned.flatMap((part) => (part instanceof Layer ? part.parameters() : []));
  }

  /**
   * The layer's tensors under upstream's keys, ready for `writeSafetensors`.
   *
   * @param name the layer's own, such as `model.layers.0.mlp.up_proj`
   */
  abstract stateDict(name: string): TensorSource[];

  /** Frees the memory; work that still uses it finishes first. Again is harmless. */
  dispose(): void {
    for (const part of this.#owned) part[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What layers ask of a frozen weight of two dimensions, however it is stored. */
interface FrozenWeight {
  readonly shape: readonly number[];
  readonly device: Device;
}

/** A layer that multiplies by a frozen weight [outFeatures, inFeatures]: what an adapter can be put on. */
export abstract class LinearLayer extends Layer {
  abstract readonly weight: FrozenWeight;

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

  get numEmbeddings(): number {
    return this.weight.shape[0]!;
  }

  get embeddingDim(): number {
    return this.weight.shape[1]!;
  }
}
