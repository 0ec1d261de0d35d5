// Embedding8bit: a frozen table in int8 with a scale a row.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { toStateDict } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { gather } from "../embedding.ts";
import { Int8Weight } from "../int8_weight.ts";
import { floatDtypes } from "../native.ts";
import { Signature } from "../signature.ts";
import { Tensor, type TensorOptions } from "../tensor.ts";
import { type InitOptions, newRows } from "./gradient.ts";
import { TableLayer } from "./layer.ts";
import { codes8bit } from "./linear8bit.ts";
import { loadLayer } from "./load.ts";

/** Options of {@link Embedding8bit}, under bitsandbytes' names. */
export interface Embedding8bitOptions {
  /** The result's dtype; by default that of the dense weight, or float16. */
  dtype?: FloatDType | undefined;
}

/**
 * A frozen embedding table in int8, with one scale a row. Upstream: `nn.Embedding8bit`, which can't be saved; this one
 * is saved like a `Linear8bitLt`.
 *
 * @example
 * ```ts
 * using layer = new nn.Embedding8bit(Tensor.from(new Float32Array(1000 * 64).fill(0.1), [1000, 64]));
 * using indices = Tensor.from(Int32Array.of(7, 3), [2]);
 * using rows = layer.forward(indices);
 * rows.read()[0]; // → 0.1
 * ```
 */
export class Embedding8bit extends TableLayer {
  /** [numEmbeddings, embeddingDim] */
  readonly weight: Int8Weight;
  readonly dtype: FloatDType;

  /**
   * @param weight [numEmbeddings, embeddingDim]. A dense one is quantised, and stays the caller's; one in int8 is taken
   * over
   * @throws BnbError if it is no table, or can't be quantised
   */
  constructor(weight: Tensor | Int8Weight, options: Embedding8bitOptions = {}) {
    super();
    const me = signatures.embedding;
    const { dtype } = me.options(options);
    if (dtype !== undefined) me.code(dtype, "dtype", floatDtypes);
    const codes = codes8bit(me, weight);
    this.weight = codes;
    this.dtype = dtype ?? (weight instanceof Tensor ? (weight.dtype as FloatDType) : "float16");
  }

  /**
   * A new table of random numbers, normal as torch's `nn.Embedding` has them; `dtype` is that of the results, and of
   * the numbers before they are quantised.
   */
  static init(
    numEmbeddings: number,
    embeddingDim: number,
    options: Embedding8bitOptions & InitOptions = {},
  ): Embedding8bit {
    const me = signatures.init;
    const { device, seed, dtype } = me.options(options);
    using weight = newRows(me, numEmbeddings, embeddingDim, { device, dtype, seed });
    return new Embedding8bit(weight, { dtype });
  }

  /** The table that a checkpoint holds under a name; a dense one there is quantised. */
  static load(checkpoint: Checkpoint, name: string, options: Embedding8bitOptions & TensorOptions = {}): Embedding8bit {
    const me = signatures.load;
    const { device, ...rest } = me.options(options);
    return loadLayer(me, checkpoint, name, device, Int8Weight, (weight) => new Embedding8bit(weight, rest));
  }

  /**
   * @param indices int32, any shape
   * @returns [...indices, embeddingDim] in {@link dtype}
   * @throws BnbError if an index is no row of the table
   */
  forward(indices: Tensor<"int32">): Tensor<FloatDType> {
    return gather(signatures.forward, indices, this.weight, { dtype: this.dtype });
  }

  /** The keys of `Linear8bitLt`'s weight. */
  protected tensors(name: string): TensorSource[] {
    return toStateDict(`${name}.weight`, this.weight);
  }
}

const signatures = {
  embedding: new Signature("Embedding8bit", { options: ["dtype"] }),
  init: new Signature("Embedding8bit.init", { options: ["dtype", "device", "seed"] }),
  load: new Signature("Embedding8bit.load", { options: ["dtype", "device"] }),
  forward: new Signature("Embedding8bit.forward"),
};
