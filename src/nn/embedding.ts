// Embeddings that are trained: Embedding and StableEmbedding.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { tensorSource } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { gather, scatter } from "../embedding.ts";
import { floatDtypes } from "../native.ts";
import { GlobalOptimManager } from "../optim/index.ts";
import { Parameter } from "../parameter.ts";
import { format, sameShape } from "../shape.ts";
import { Signature } from "../signature.ts";
import { Tensor, type TensorOptions } from "../tensor.ts";
import { accumulate, checkDrawn, type InitOptions, initOf, initOptions, uniform } from "./gradient.ts";
import { Layer, type Part } from "./layer.ts";
import { LayerNorm } from "./layer_norm.ts";
import { checkWeight } from "./linear4bit.ts";
import { loadDense } from "./load.ts";

/** Options of {@link Embedding} and {@link StableEmbedding}, under torch's names. */
export interface EmbeddingOptions {
  /** The index of a row that is not trained. */
  paddingIdx?: number | undefined;
}

/**
 * A trained embedding table. Its optimizer states always have 32 bits, because 8-bit states are unstable for embeddings
 * (Dettmers et al. 2022, §2.3). Upstream: `nn.Embedding`, without torch's `max_norm`, which changes weights in a
 * forward pass, and `scale_grad_by_freq`.
 *
 * @example
 * ```ts
 * using layer = nn.Embedding.init(1000, 64, { paddingIdx: 0 });
 * using optimizer = new optim.Adam8bit(layer.parameters(), { lr: 1e-3 }); // its states are in 32 bits here too
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

  /**
   * Takes over the weight, [numEmbeddings, embeddingDim]. @throws BnbError if it is no table, or has no row
   * paddingIdx
   */
  constructor(weight: Tensor, options: EmbeddingOptions = {}) {
    super();
    const me = signatures.embedding.as(new.target.name);
    const { paddingIdx } = me.options(options);
    const [rows] = checkTable(me, weight);
    if (paddingIdx !== undefined) me.whole(paddingIdx, "paddingIdx", 0, rows - 1);
    const parameter = new Parameter(weight);
    this.weight = parameter;
    this.paddingIdx = paddingIdx;
    GlobalOptimManager.getInstance().overrideConfig(parameter, { optimBits: 32 });
  }

  /** A new table of random rows (Glorot and Bengio 2010), as upstream makes it; the row `paddingIdx` is zeros. */
  static init(numEmbeddings: number, embeddingDim: number, options: EmbeddingOptions & InitOptions = {}): Embedding {
    const { paddingIdx, ...init } = signatures.init.options(options);
    return new Embedding(newTable(signatures.init, numEmbeddings, embeddingDim, paddingIdx, init), { paddingIdx });
  }

  /** The table that a checkpoint holds under a name. */
  static load(checkpoint: Checkpoint, name: string, options: EmbeddingOptions & TensorOptions = {}): Embedding {
    const me = signatures.load;
    const { device, paddingIdx } = me.options(options);
    return new Embedding(loadDense(me, checkpoint, `${me.text(name, "name")}.weight`, device), { paddingIdx });
  }

  get numEmbeddings(): number {
    return this.weight.data.shape[0]!;
  }

  get embeddingDim(): number {
    return this.weight.data.shape[1]!;
  }

  protected override parts(): Record<string, Part> {
    return { weight: this.weight };
  }

  /**
   * @param indices int32, any shape
   * @returns [...indices, embeddingDim] in the weight's dtype
   * @throws BnbError if an index is no row of the table
   */
  forward(indices: Tensor<"int32">): Tensor<FloatDType> {
    return gather(signatures.forward, indices, this.weight.data, {});
  }

  /**
   * Adds to the gradient of the weight.
   *
   * @param dy [...indices, embeddingDim], any float dtype
   * @param indices what `forward` was given
   */
  backward(dy: Tensor<FloatDType>, indices: Tensor<"int32">): void {
    const { paddingIdx, numEmbeddings } = this;
    const options = { dtype: "float32", paddingIdx } as const;
    accumulate(this.weight, scatter(signatures.backward, dy, indices, numEmbeddings, options));
  }

  /** One tensor, `weight`. */
  protected tensors(name: string): TensorSource[] {
    return [tensorSource(`${name}.weight`, this.weight.data)];
  }
}

/**
 * An embedding followed by layer normalisation, in fp32 until the result is rounded to the weight's dtype: which makes
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
    const me = signatures.stable;
    const { norm: given, paddingIdx } = me.options(options);
    const [, columns] = checkTable(me, weight);
    if (given !== undefined) checkNorm(me, given, columns);
    super(weight, { paddingIdx });
    this.norm = given ?? LayerNorm.init(columns, { device: weight.device });
  }

  protected override parts(): Record<string, Part> {
    return { ...super.parts(), norm: this.norm };
  }

  /** A new table as {@link Embedding.init} makes it, with a new norm. */
  static override init(
    numEmbeddings: number,
    embeddingDim: number,
    options: EmbeddingOptions & InitOptions = {},
  ): StableEmbedding {
    const me = signatures.stableInit;
    const { paddingIdx, ...init } = me.options(options);
    return new StableEmbedding(newTable(me, numEmbeddings, embeddingDim, paddingIdx, init), { paddingIdx });
  }

  /** The table and the norm, `norm.weight` and `norm.bias`, that a checkpoint holds under a name. */
  static override load(
    checkpoint: Checkpoint,
    name: string,
    options: EmbeddingOptions & TensorOptions = {},
  ): StableEmbedding {
    const me = signatures.stableLoad;
    const { device, paddingIdx } = me.options(options);
    const table = loadDense(me, checkpoint, `${me.text(name, "name")}.weight`, device);
    const norm = LayerNorm.load(checkpoint, `${name}.norm`, { device });
    return new StableEmbedding(table, { paddingIdx, norm });
  }

  override forward(indices: Tensor<"int32">): Tensor<FloatDType> {
    using rows = this.#rows(signatures.stableForward, indices);
    const y = this.norm.forward(rows);
    const { dtype } = this.weight.data as Tensor<FloatDType>;
    if (dtype === "float32") return y;
    using wide = y;
    return wide.cast(dtype);
  }

  /** Adds to the gradients of the weight and of the norm. */
  override backward(dy: Tensor<FloatDType>, indices: Tensor<"int32">): void {
    const me = signatures.stableBackward;
    using rows = this.#rows(me, indices);
    me.batch(dy, "dy");
    if (!sameShape(dy.shape, rows.shape)) throw me.fail(`dy is ${format(dy.shape)}, expected ${format(rows.shape)}.`);
    me.code(dy.dtype, "dy's dtype", floatDtypes);
    using dRows = this.norm.backward(dy, rows);
    super.backward(dRows, indices);
  }

  #rows(me: Signature, indices: Tensor<"int32">): Tensor<"float32"> {
    return gather(me, indices, this.weight.data, { dtype: "float32" });
  }

  protected override tensors(name: string): TensorSource[] {
    return [...super.tensors(name), ...this.norm.stateDict(`${name}.norm`)];
  }
}

function checkNorm(me: Signature, norm: LayerNorm, columns: number): void {
  me.object(norm, "norm", { name: "LayerNorm", is: (value) => Layer.is(value) && value instanceof LayerNorm });
  if (norm.weight.data.size !== columns)
    throw me.fail(`norm is for ${norm.weight.data.size} columns, but weight has ${columns}.`);
}

function checkTable(me: Signature, weight: Tensor): [rows: number, columns: number] {
  me.tensor(weight, "weight");
  me.choice(weight.dtype, "weight's dtype", Object.keys(floatDtypes));
  return checkWeight(me, weight);
}

function newTable(
  me: Signature,
  numEmbeddings: number,
  embeddingDim: number,
  paddingIdx: number | undefined,
  options: InitOptions,
): Tensor<FloatDType> {
  const shape = [me.whole(numEmbeddings, "numEmbeddings", 1), me.whole(embeddingDim, "embeddingDim", 1)] as const;
  checkDrawn(me, numEmbeddings, embeddingDim, "numEmbeddings and embeddingDim");
  if (paddingIdx !== undefined) me.whole(paddingIdx, "paddingIdx", 0, numEmbeddings - 1);
  const table = uniform(shape, Math.sqrt(6 / (numEmbeddings + embeddingDim)), initOf(me, options));
  if (paddingIdx === undefined) return table;
  using before = table;
  const values = before.readFloat32().fill(0, paddingIdx * embeddingDim, (paddingIdx + 1) * embeddingDim);
  return Tensor.from(values, shape, { device: before.device, dtype: before.dtype });
}

const init = ["paddingIdx", ...initOptions];
const signatures = {
  embedding: new Signature("Embedding", { options: ["paddingIdx"] }),
  init: new Signature("Embedding.init", { options: init }),
  load: new Signature("Embedding.load", { options: ["paddingIdx", "device"] }),
  forward: new Signature("Embedding.forward"),
  backward: new Signature("Embedding.backward"),
  stable: new Signature("StableEmbedding", { options: ["paddingIdx", "norm"] }),
  stableInit: new Signature("StableEmbedding.init", { options: init }),
  stableLoad: new Signature("StableEmbedding.load", { options: ["paddingIdx", "device"] }),
  stableForward: new Signature("StableEmbedding.forward"),
  stableBackward: new Signature("StableEmbedding.backward"),
};
