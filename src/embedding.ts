// Rows of tables by their indices. Checks, kernels and fallbacks are in csrc/ops/embedding.c.
import type { FloatDType } from "./dtype.ts";
import { dtypes, floatDtypes, native, size } from "./native.ts";
import { format, sameShape } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";
import { handleOf, type Weight } from "./weight.ts";

/**
 * Looks up rows of a table by `indices`. Only these rows of a quantised table are dequantised. Upstream:
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
 * @param w [rows, d]: dense of any float dtype, quantised to any width, or in int8, as `loadWeight` returns it
 * @param options.dtype the result's dtype; by default the table's own, and float16 for int8
 * @returns [...indices, d]
 * @throws BnbError if an index is no row of the table; the message says where it is
 */
export function embedding<D extends FloatDType>(
  indices: Tensor<"int32">,
  w: Weight,
  options: { dtype?: D | undefined } = {},
): Tensor<D> {
  const me = signatures.embedding;
  return gather(me, indices, w, me.options(options));
}

/** @internal {@link embedding} under another function's name. */
export function gather<D extends FloatDType>(
  me: Signature,
  indices: Tensor<"int32">,
  given: Weight,
  options: { dtype?: D | undefined },
): Tensor<D> {
  const rows = me.batch(indices, "indices");
  const w = handleOf(me, given);
  const quantized = "bits" in w;
  const table = quantized ? me.quantized(w, "w") : me.tensor(w, "w");
  const { dtype } = options;
  const code = dtype === undefined ? dtypes[w.dtype] : me.code(dtype, "dtype", floatDtypes);
  const shape = w.shape;
  if (shape.length !== 2) throw me.fail(`w is ${format(shape)}, expected two dimensions, [rows, d].`);
  const result = [...indices.shape, shape[1]!];
  if (indices.size === 0 && indices.dtype === "int32")
    return Tensor.empty(me, dtype ?? (w.dtype as D), result, w.device);
  me.tensor(indices, "indices");
  const look = quantized ? native.bnb_embedding_quantized : native.bnb_embedding;
  const pointer = look(rows, table, code);
  return new Tensor(me.made(pointer), dtype ?? (w.dtype as D), result, indices.device);
}

/** Options of {@link embeddingBackward}. */
export interface EmbeddingBackwardOptions<D extends FloatDType> {
  /** The result's dtype, by default dy's. */
  dtype?: D | undefined;
  /** A row whose gradient stays zero. */
  paddingIdx?: number | undefined;
}

/**
 * The gradient of {@link embedding} with respect to a dense table: each row is the sum of the rows of `dy` whose index
 * names it. Sums are in fp32 and in order, so that every run and every device gives the same result.
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
 * @param rows how many rows the table has
 * @returns [rows, d]
 * @throws BnbError as {@link embedding}
 */
export function embeddingBackward<D extends FloatDType>(
  dy: Tensor<FloatDType>,
  indices: Tensor<"int32">,
  rows: number,
  options: EmbeddingBackwardOptions<D> = {},
): Tensor<D> {
  const me = signatures.backward;
  return scatter(me, dy, indices, rows, me.options(options));
}

/** @internal {@link embeddingBackward} under another function's name. */
export function scatter<D extends FloatDType>(
  me: Signature,
  dy: Tensor,
  indices: Tensor<"int32">,
  rows: number,
  options: EmbeddingBackwardOptions<D>,
): Tensor<D> {
  const [gradients, places] = [me.batch(dy, "dy"), me.batch(indices, "indices")];
  const { dtype, paddingIdx } = options;
  me.whole(rows, "rows", 1, rowsMax);
  const padding = paddingIdx === undefined ? -1 : me.whole(paddingIdx, "paddingIdx", 0, rows - 1);
  const shape = dy.shape;
  if (shape.length === 0 || !sameShape(shape.slice(0, -1), indices.shape))
    throw me.fail(`dy is ${format(shape)} and indices is ${format(indices.shape)}: dy needs a row for each index.`);
  const code = dtype === undefined ? dtypes[dy.dtype] : me.code(dtype, "dtype", floatDtypes);
  const d = shape.at(-1)!;
  if (indices.size === 0 && d > 0)
    return Tensor.zeros([rows, d], { dtype: dtype ?? (dy.dtype as D), device: dy.device });
  me.tensor(dy, "dy");
  const pointer = native.bnb_embedding_backward(gradients, places, size(rows), padding, code);
  return new Tensor(me.made(pointer), dtype ?? (dy.dtype as D), [rows, d], dy.device);
}

/** What int32 indices can name. */
const rowsMax = 2 ** 31 - 1;

const signatures = {
  embedding: new Signature("embedding", { options: ["dtype"] }),
  backward: new Signature("embeddingBackward", { options: ["dtype", "paddingIdx"] }),
};
