// Owns Embedding4bit: a frozen table of 4 bits an element, of which a forward pass dequantises the rows it needs.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import type { StorageDtype } from "../checkpoint/state.ts";
import { toStateDict } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { embedding } from "../embedding.ts";
import { BnbError } from "../error.ts";
import { type Quantize4bitOptions, quantize4bit } from "../quantize.ts";
import { QuantizedTensor } from "../quantized.ts";
import type { Tensor, TensorOptions } from "../tensor.ts";
import { TableLayer } from "./layer.ts";
import { checkType, checkWeight } from "./linear4bit.ts";
import { loadLayer } from "./load.ts";

/** Options of {@link Embedding4bit}, under bitsandbytes' names. All but the first two count for a dense weight. */
export interface Embedding4bitOptions extends Quantize4bitOptions {
  /** The result's dtype; by default that of the weight before it was quantised. */
  dtype?: FloatDType | undefined;
  /** The dtype that `stateDict` writes codes as; `"uint8"` by default. */
  quantStorage?: StorageDtype | undefined;
}

/**
 * A frozen table of 4 bits an element. Upstream: `nn.Embedding4bit`, which dequantises all of the table where rows are not
 * whole blocks, and refuses to save it; this one does neither.
 *
 * @example
 * ```ts
 * using layer = new nn.Embedding4bit(Tensor.from(new Float32Array(1000 * 64).fill(0.1), [1000, 64]));
 * using indices = Tensor.from(Int32Array.of(7, 3), [2]);
 * using rows = layer.forward(indices);
 * rows.shape; // → [2, 64]
 * ```
 */
export class Embedding4bit extends TableLayer {
  /** [numEmbeddings, embeddingDim] */
  readonly weight: QuantizedTensor;
  readonly dtype: FloatDType;
  readonly quantStorage: StorageDtype;

  /**
   * @param weight [numEmbeddings, embeddingDim]. A dense one is quantised, with plain scales unless `compressStatistics` is
   *   true, and stays the caller's; a quantised one is taken over
   * @throws BnbError if it is no table, or can't be quantised
   */
  constructor(weight: Tensor | QuantizedTensor, options: Embedding4bitOptions = {}) {
    const { dtype, quantStorage = "uint8", ...quantize } = options;
    checkWeight(weight, "Embedding4bit");
    const codes = weight instanceof QuantizedTensor ? weight : quantize4bit(weight, quantize);
    if (codes.bits !== 4) throw new BnbError(`Embedding4bit: weight is ${codes}, expected 4-bit codes.`);
    super([codes]);
    this.weight = codes;
    this.dtype = dtype ?? codes.dtype;
    this.quantStorage = quantStorage;
  }

  /** The table that a checkpoint holds under a name; a dense one there is quantised. */
  static load(checkpoint: Checkpoint, name: string, options: Embedding4bitOptions & TensorOptions = {}): Embedding4bit {
    const { device, ...rest } = options;
    return loadLayer(checkpoint, name, device, QuantizedTensor, (weight) => new Embedding4bit(weight, rest));
  }

  /**
   * @param indices int32, any shape
   * @returns [...indices, embeddingDim] in {@link dtype}
   * @throws BnbError if an index is no row of the table
   */
  forward(indices: Tensor<"int32">): Tensor<FloatDType> {
    return embedding(indices, this.weight, { dtype: this.dtype });
  }

  /** The keys of `Linear4bit`'s weight: bitsandbytes loads NF4 and FP4, and no other codebook. */
  stateDict(name: string): TensorSource[] {
    return toStateDict(`${name}.weight`, this.weight, { quantStorage: this.quantStorage });
  }
}

/**
 * {@link Embedding4bit} in NF4. Upstream: `nn.EmbeddingNF4`.
 *
 * @example
 * ```ts
 * using layer = new nn.EmbeddingNF4(Tensor.from(new Float32Array(1000 * 64).fill(0.1), [1000, 64]));
 * layer.weight.quantType; // → "nf4"
 * ```
 */
export class EmbeddingNF4 extends Embedding4bit {
  constructor(weight: Tensor | QuantizedTensor, options: Omit<Embedding4bitOptions, "quantType"> = {}) {
    super(weight, { ...options, quantType: "nf4" });
    checkType(this.weight, "nf4", "EmbeddingNF4");
  }
}

/**
 * {@link Embedding4bit} in FP4. Upstream: `nn.EmbeddingFP4`.
 *
 * @example
 * ```ts
 * using layer = new nn.EmbeddingFP4(Tensor.from(new Float32Array(1000 * 64).fill(0.1), [1000, 64]));
 * layer.weight.quantType; // → "fp4"
 * ```
 */
export class EmbeddingFP4 extends Embedding4bit {
  constructor(weight: Tensor | QuantizedTensor, options: Omit<Embedding4bitOptions, "quantType"> = {}) {
    super(weight, { ...options, quantType: "fp4" });
    checkType(this.weight, "fp4", "EmbeddingFP4");
  }
}
