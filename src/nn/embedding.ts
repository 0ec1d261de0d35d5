// Owns embeddings that are trained: Embedding and StableEmbedding.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { embedding, embeddingBackward } from "../embedding.ts";
import { BnbError } from "../error.ts";
import { GlobalOptimManager } from "../optim/index.ts";
import { Parameter } from "../parameter.ts";
import { Tensor, type TensorOptions } from "../tensor.ts";
import { accumulate, type InitOptions, uniform } from "./gradient.ts";
import { Layer } from "./layer.ts";
import { LayerNorm } from "./layer_norm.ts";
import { checkWeight } from "./linear4bit.ts";
import { loadDense } from "./load.ts";

/** Options of the embeddings that are trained, under torch's names. */
export interface EmbeddingOptions {
  /** A row that is not trained. */
  paddingIdx?: number | undefined;
}

/**
 * A table whose rows are trained, with 32-bit optimizer states whatever the optimizer's own bits are: for embeddings, 8-bit
 * states are unstable (Dettmers et al. 2022, §2.3). Upstream: `nn.Embedding`. Of torch's options, `max_norm` and
 * `scale_grad_by_freq` are left out: the first changes weights in a forward pass, and neither is bitsandbytes' own.
 *
 * @example
 * ```ts
 * using layer = nn.Embedding.init(1000, 64, { paddingIdx: 0 });
 * using optimizer = new optim.Adam8bit(layer.parameters(), { lr: 1e-3 }); // its states are in 32 bits here all the same
 * using indices = Tensor.from(Int32Array.of(7, 7, 0), [3]);
 * using y = layer.forward(indices);
 * y.shape; // → [3, 64]
 * layer.backward(y, indices);
 * optimizer.step();
 * ```
 */
export class Embedding extends Layer {
  /** [numEmbeddings, embeddingDim] */
  readonly weight: Parameter;
  readonly paddingIdx: number | undefined;

  /** Takes over the weight, [numEmbeddings, embeddingDim]. @throws BnbError if it is no table, or has no row paddingIdx */
  constructor(weight: Tensor, options: EmbeddingOptions = {}, more: readonly Disposable[] = []) {
    const [rows] = checkWeight(weight, "Embedding");
    const { paddingIdx } = options;
    if (paddingIdx !== undefined && !(Number.isSafeInteger(paddingIdx) && paddingIdx >= 0 && paddingIdx < rows))
      throw new BnbError(`Embedding: paddingIdx is ${paddingIdx}, expected a row of the table, 0 to ${rows - 1}.`);
    const parameter = new Parameter(weight);
    super([parameter, ...more]);
    this.weight = parameter;
    this.paddingIdx = paddingIdx;
    GlobalOptimManager.getInstance().overrideConfig(parameter, { optimBits: 32 });
  }

  /** A new table of random rows (Glorot and Bengio 2010), as upstream makes it; the row `paddingIdx` is zeros. */
  static init(numEmbeddings: number, embeddingDim: number, options: EmbeddingOptions & InitOptions = {}): Embedding {
    return new Embedding(newTable(numEmbeddings, embeddingDim, options), options);
  }

  /** The table that a checkpoint holds under a name. */
  static load(checkpoint: Checkpoint, name: string, options: EmbeddingOptions & TensorOptions = {}): Embedding {
    return new Embedding(loadDense(checkpoint, `${name}.weight`, options.device), options);
  }

  get numEmbeddings(): number {
    return this.weight.data.shape[0]!;
  }

  get embeddingDim(): number {
    return this.weight.data.shape[1]!;
  }

  override parameters(): Parameter[] {
    return [this.weight, ...super.parameters()];
  }

  /**
   * @param indices int32, any shape
   * @returns [...indices, embeddingDim] in the weight's dtype
   * @throws BnbError if an index is no row of the table
   */
  forward(indices: Tensor<"int32">): Tensor<FloatDType> {
    return embedding(indices, this.weight.data as Tensor<FloatDType>);
  }

  /**
   * Adds to the gradient of the weight.
   *
   * @param dy [...indices, embeddingDim], any float dtype
   * @param indices what `forward` was given
   */
  backward(dy: Tensor<FloatDType>, indices: Tensor<"int32">): void {
    const { paddingIdx } = this;
    accumulate(
      this.weight,
      embeddingBackward(dy, indices, this.numEmbeddings, { dtype: "float32", paddingIdx }) as Tensor<"float32">,
    );
  }

  /** One tensor, `weight`. */
  stateDict(name: string): TensorSource[] {
    return [tensorSource(`${name}.weight`, this.weight.data)];
  }
}

/**
 * An embedding followed by layer normalisation, in fp32 until the result is rounded to the weight's dtype: what makes
 * training with 8-bit optimizers stable (Dettmers et al. 2022, §2.3). Upstream: `nn.StableEmbedding`.
 *
 * @example
 * ```ts
 * using layer = nn.StableEmbedding.init(1000, 64);
 * using indices = Tensor.from(Int32Array.of(7, 3), [1, 2]);
 * using y = layer.forward(indices);
 * y.shape; // → [1, 2, 64]
 * layer.parameters().length; // → 3
 * ```
 */
export class StableEmbedding extends Embedding {
  /** Over embeddingDim columns, trained. */
  readonly norm: LayerNorm;

  /** Takes over the weight and the norm, by default a new one on the weight's device. */
  constructor(weight: Tensor, options: EmbeddingOptions & { norm?: LayerNorm | undefined } = {}) {
    const [, columns] = checkWeight(weight, "StableEmbedding");
    const norm = options.norm ?? LayerNorm.init(columns, { device: weight.device });
    super(weight, options, [norm]);
    this.norm = norm;
  }

  /** A new table as {@link Embedding.init} makes it, with a new norm. */
  static override init(
    numEmbeddings: number,
    embeddingDim: number,
    options: EmbeddingOptions & InitOptions = {},
  ): StableEmbedding {
    return new StableEmbedding(newTable(numEmbeddings, embeddingDim, options), options);
  }

  /** The table and the norm, `norm.weight` and `norm.bias`, that a checkpoint holds under a name. */
  static override load(
    checkpoint: Checkpoint,
    name: string,
    options: EmbeddingOptions & TensorOptions = {},
  ): StableEmbedding {
    const norm = LayerNorm.load(checkpoint, `${name}.norm`, options);
    return new StableEmbedding(loadDense(checkpoint, `${name}.weight`, options.device), {
      ...options,
      norm,
    });
  }

  override forward(indices: Tensor<"int32">): Tensor<FloatDType> {
    using rows = this.#rows(indices);
    const y = this.norm.forward(rows);
    const { dtype } = this.weight.data as Tensor<FloatDType>;
    if (dtype === "float32") return y;
    using wide = y;
    return wide.cast(dtype);
  }

  /** Adds to the gradients of the weight and of the norm. */
  override backward(dy: Tensor<FloatDType>, indices: Tensor<"int32">): void {
    using rows = this.#rows(indices);
    using dRows = this.norm.backward(dy, rows);
    super.backward(dRows, indices);
  }

  #rows(indices: Tensor<"int32">): Tensor<"float32"> {
    return embedding(indices, this.weight.data as Tensor<FloatDType>, { dtype: "float32" });
  }

  override stateDict(name: string): TensorSource[] {
    return [...super.stateDict(name), ...this.norm.stateDict(`${name}.norm`)];
  }
}

function newTable(rows: number, columns: number, options: EmbeddingOptions & InitOptions): Tensor<FloatDType> {
  const { paddingIdx, ...init } = options;
  const table = uniform([rows, columns], Math.sqrt(6 / (rows + columns)), init);
  if (paddingIdx === undefined) return table;
  using before = table;
  const values = before.readFloat32().fill(0, paddingIdx * columns, (paddingIdx + 1) * columns);
  return Tensor.from(values, [rows, columns], { device: before.device, dtype: before.dtype });
}
