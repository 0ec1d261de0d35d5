// Owns rows of tables by their indices. Checks, kernels and fallbacks are in csrc/ops/embedding.c.
import { dtypeCode, type FloatDType } from "./dtype.ts";
import { BnbError } from "./error.ts";
import { native, size } from "./native.ts";
import { QuantizedTensor } from "./quantized.ts";
import { format, type Shape } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/**
 * The rows of a table that `indices` name. Of a quantised table only these are dequantised. Upstream:
 * `torch.nn.functional.embedding`, and the forward pass of `nn.Embedding4bit` and `nn.Embedding8bit`.
 *
 * @example
 * ```ts
 * using table = Tensor.from([1, 1, 2, 2, 3, 3], [3, 2]);
 * using indices = Tensor.from(Int32Array.of(2, 0), [2]);
 * using rows = embedding(indices, table);
 * rows.read(); // → [3, 3, 1, 1]
 * ```
 *
 * @param indices int32, any shape
 * @param w [rows, d]: dense of any float dtype, or quantised to any width
 * @param options.dtype the result's, by default the table's own
 * @returns [...indices, d]
 * @throws BnbError if an index is no row of the table; the message says where it is
 */
export function embedding<D extends FloatDType>(
  indices: Tensor<"int32">,
  w: Tensor<FloatDType> | QuantizedTensor,
  options: { dtype?: D | undefined } = {},
): Tensor<D> {
  const { dtype = w.dtype as D } = options;
  const d = tableColumns(w.shape, "embedding");
  const gather = w instanceof QuantizedTensor ? native.bnb_embedding_quantized : native.bnb_embedding;
  const pointer = gather(indices.pointer, w.pointer, dtypeCode(dtype, "embedding"));
  return new Tensor(pointer, dtype, [...indices.shape, d], indices.device);
}

/** Options of {@link embeddingBackward}. */
export interface EmbeddingBackwardOptions<D extends FloatDType> {
  /** The result's dtype, by default dy's. */
  dtype?: D | undefined;
  /** A row that gets no gradient. */
  paddingIdx?: number | undefined;
}

/**
 * The gradient of {@link embedding} with respect to a dense table: for each row, the sum of `dy` where its index stands.
 * Sums are in fp32 and in order, so that every run and every device gives the same.
 *
 * @example
 * ```ts
 * using dy = Tensor.from([1, 1, 10, 10], [2, 2]);
 * using indices = Tensor.from(Int32Array.of(2, 2), [2]);
 * using gradient = embeddingBackward(dy, indices, 3);
 * gradient.read(); // → [0, 0, 0, 0, 11, 11]
 * ```
 *
 * @param dy [...indices, d], any float dtype
 * @param rows of the table
 * @returns [rows, d]
 * @throws BnbError as {@link embedding}
 */
export function embeddingBackward<D extends FloatDType>(
  dy: Tensor<FloatDType>,
  indices: Tensor<"int32">,
  rows: number,
  options: EmbeddingBackwardOptions<D> = {},
): Tensor<D> {
  const { dtype = dy.dtype as D, paddingIdx = -1 } = options;
  if (!Number.isSafeInteger(rows) || rows < 1)
    throw new BnbError(`embeddingBackward: rows is ${rows}, expected a whole number of at least 1.`);
  if (!Number.isSafeInteger(paddingIdx) || paddingIdx < -1 || paddingIdx >= rows)
    throw new BnbError(
      `embeddingBackward: paddingIdx is ${paddingIdx}, expected a row of the table, 0 to ${rows - 1}.`,
    );
  if (format(dy.shape.slice(0, -1)) !== format(indices.shape) || dy.shape.length === 0)
    throw new BnbError(
      `embeddingBackward: dy is ${format(dy.shape)} and indices is ${format(indices.shape)}: dy needs a row for each index.`,
    );
  const code = dtypeCode(dtype, "embeddingBackward");
  const pointer = native.bnb_embedding_backward(dy.pointer, indices.pointer, size(rows), paddingIdx, code);
  return new Tensor(pointer, dtype, [rows, dy.shape.at(-1)!], dy.device);
}

function tableColumns(w: Shape, what: string): number {
  if (w.length !== 2) throw new BnbError(`${what}: w is ${format(w)}, expected two dimensions, [rows, d].`);
  return w[1]!;
}
