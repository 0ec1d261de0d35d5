// Embedding4bit: a frozen table of 4 bits an element, of which a forward pass dequantises the rows it needs.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import type { StorageDtype } from "../checkpoint/state.ts";
import { toStateDict } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { gather } from "../embedding.ts";
import { floatDtypes } from "../native.ts";
import { type Quantize4bitOptions, quantize4bitOptions } from "../quantize.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Signature } from "../signature.ts";
import type { Tensor, TensorOptions } from "../tensor.ts";
import { type InitOptions, newRows } from "./gradient.ts";
import { TableLayer } from "./layer.ts";
import { checkStorage, checkType, codes4bit } from "./linear4bit.ts";
import { loadLayer } from "./load.ts";

/**
 * Options of {@link Embedding4bit}, under bitsandbytes' names. All but the first two apply only if the weight is dense.
 */
export interface Embedding4bitOptions extends Quantize4bitOptions {
  /** The result's dtype; by default that of the weight before it was quantised. */
  dtype?: FloatDType | undefined;
  /** The dtype that `stateDict` writes codes as; `"uint8"` by default. */
  quantStorage?: StorageDtype | undefined;
}

/**
 * A frozen embedding table with 4 bits an element. Upstream: `nn.Embedding4bit`, which dequantises the whole table if
 * rows are not whole blocks, and can't be saved. Here only the rows that are looked up are dequantised, and the table
 * can be saved.
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
   * @param weight [numEmbeddings, embeddingDim]. A dense one is quantised, with plain scales unless
   * `compressStatistics` is true, and stays the caller's; a quantised one is taken over
   * @throws BnbError if it is no table, or can't be quantised
   */
  constructor(weight: Tensor | QuantizedTensor, options: Embedding4bitOptions = {}) {
    super();
    const me = signatures.embedding.as(new.target.name);
    const { dtype, quantStorage = "uint8", ...quantize } = me.options(options);
    if (dtype !== undefined) me.code(dtype, "dtype", floatDtypes);
    checkStorage(me, quantStorage);
    const codes = codes4bit(me, weight, quantize);
    this.weight = codes;
    this.dtype = dtype ?? codes.dtype;
    this.quantStorage = quantStorage;
  }

  /**
   * A new table of random numbers, normal as torch's `nn.Embedding` has them; `dtype` is that of the results, and of
   * the numbers before they are quantised.
   */
  static init(
    numEmbeddings: number,
    embeddingDim: number,
    options: Embedding4bitOptions & InitOptions = {},
  ): Embedding4bit {
    const me = signatures.init;
    const { device, seed, ...rest } = me.options(options);
    using weight = newRows(me, numEmbeddings, embeddingDim, { device, dtype: rest.dtype, seed });
    return new this(weight, rest);
  }

  /** The table that a checkpoint holds under a name; a dense one there is quantised. */
  static load(checkpoint: Checkpoint, name: string, options: Embedding4bitOptions & TensorOptions = {}): Embedding4bit {
    const me = signatures.load;
    const { device, ...rest } = me.options(options);
    return loadLayer(me, checkpoint, name, device, QuantizedTensor, (weight) => new this(weight, rest));
  }

  /**
   * @param indices int32, any shape
   * @returns [...indices, embeddingDim] in {@link dtype}
   * @throws BnbError if an index is no row of the table
   */
  forward(indices: Tensor<"int32">): Tensor<FloatDType> {
    return gather(signatures.forward, indices, this.weight, { dtype: this.dtype });
  }

  /** The keys of `Linear4bit`'s weight: bitsandbytes loads NF4 and FP4, and no other codebook. */
  protected tensors(name: string): TensorSource[] {
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
    super(weight, withType("EmbeddingNF4", options, "nf4"));
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
    super(weight, withType("EmbeddingFP4", options, "fp4"));
    checkType(this.weight, "fp4", "EmbeddingFP4");
  }
}

/** The options of a class whose type is given. */
function withType(what: string, given: Omit<Embedding4bitOptions, "quantType">, quantType: "nf4" | "fp4") {
  return { ...signatures.typed.as(what).options(given), quantType };
}

const options = ["dtype", "quantStorage", ...quantize4bitOptions];
const signatures = {
  embedding: new Signature("Embedding4bit", { options, native: { x: "weight" } }),
  typed: new Signature("EmbeddingNF4", { options: options.filter((name) => name !== "quantType") }),
  init: new Signature("Embedding4bit.init", { options: [...options, "device", "seed"] }),
  load: new Signature("Embedding4bit.load", { options: [...options, "device"] }),
  forward: new Signature("Embedding4bit.forward"),
};
