// The operations of LLM.int8() on rows of int8 codes with a scale each. Checks, kernels and fallbacks are in
// csrc/ops/int8_*.c.

import type { FloatDType } from "./dtype.ts";
import { resultShape } from "./matmul.ts";
import { floatDtypes, native } from "./native.ts";
import type { DequantizeOptions } from "./quantize.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** Options of the quantisers. */
export interface Int8QuantOptions {
  /**
   * A magnitude of at least this is an outlier: it counts for no scale, and its column's codes are zeros, to be
   * multiplied in floating point. 0, the default, means that there are none; transformers uses 6.
   */
  threshold?: number;
}

/** What {@link int8VectorwiseQuant} returns, in upstream's order. */
export interface Int8Rows {
  /** int8, the shape of the tensor: `code ≈ x · 127 / rowStats`. */
  quantized: Tensor<"int8">;
  /** float32 [rows]: the largest magnitude of each row. Leading dimensions count as rows. */
  rowStats: Tensor<"float32">;
  /** int32 [columns]: the columns that hold an outlier, ascending, padded with -1; undefined without a threshold. */
  outlierCols: Tensor<"int32"> | undefined;
}

/** What {@link int8DoubleQuant} returns, in upstream's order. */
export interface Int8RowsAndColumns {
  /** The codes by rows, as of {@link int8VectorwiseQuant}. */
  quantizedRow: Tensor<"int8">;
  /** The codes by columns: `code ≈ x · 127 / colStats`. Only outliers themselves are zeros here, not their columns. */
  quantizedCol: Tensor<"int8">;
  rowStats: Tensor<"float32">;
  /** float32 [columns]: the largest magnitude of each column. */
  colStats: Tensor<"float32">;
  outlierCols: Tensor<"int32"> | undefined;
}

/** Options of the products. */
export interface Int8MmOptions<D extends FloatDType = FloatDType> {
  /** Added to every row: one element for each column of the product, any float dtype. */
  bias?: Tensor | undefined;
  /** The result's dtype; `"float16"` by default, as upstream. */
  dtype?: D | undefined;
}

/**
 * Quantises each row to int8 by its largest magnitude (LLM.int8(), Dettmers et al. 2022). Upstream:
 * `functional.int8_vectorwise_quant`, whose bytes these are for the same dtype.
 *
 * @example
 * ```ts
 * using A = Tensor.from([1, 2, 4, 100, 50, 0], [2, 3]);
 * const { quantized, rowStats } = int8VectorwiseQuant(A);
 * rowStats.read(); // → [4, 100]
 * quantized.read(); // → [32, 64, 127, 127, 64, 0]
 *
 * const { outlierCols } = int8VectorwiseQuant(A, { threshold: 6 }); // columns that hold a magnitude of at least 6
 * outlierCols?.read(); // → [0, 1, -1]
 * ```
 *
 * @param A float32, float16 or bfloat16, any shape; leading dimensions count as rows
 * @throws BnbError for an integer tensor, a threshold that is negative or not finite, or a NaN or infinity in `A` (the
 *   message says where); an infinity above the threshold is an outlier like any other
 */
export function int8VectorwiseQuant(A: Tensor, options: Int8QuantOptions = {}): Int8Rows {
  const me = signatures.vectorwiseQuant;
  return quantizeRows(me, A, me.options(options));
}

/** @internal {@link int8VectorwiseQuant} under another function's name. */
export function quantizeRows(me: Signature, A: Tensor, { threshold = 0 }: Int8QuantOptions): Int8Rows {
  me.notNegative(threshold, "threshold");
  const outlierCols = listOutliers(me, A, threshold);
  const rowStats = statsOf(me, A, threshold, false);
  return { quantized: codesOf(me, A, rowStats, threshold, outlierCols, false), rowStats, outlierCols };
}

/**
 * Quantises by rows and by columns at once, as training a dense weight in int8 needs for its gradients. Upstream:
 * `functional.int8_double_quant`, for CUDA only, which rounds a column's codes in float16 on the way.
 *
 * @example
 * ```ts
 * using A = Tensor.from([1, 2, 4, 100, 50, 0], [2, 3]);
 * const { rowStats, colStats } = int8DoubleQuant(A);
 * rowStats.read(); // → [4, 100]
 * colStats.read(); // → [100, 50, 4]
 * ```
 *
 * @throws BnbError as {@link int8VectorwiseQuant}
 */
export function int8DoubleQuant(A: Tensor, options: Int8QuantOptions = {}): Int8RowsAndColumns {
  const me = signatures.doubleQuant;
  const { threshold = 0 } = me.options(options);
  const { quantized: quantizedRow, rowStats, outlierCols } = quantizeRows(me, A, { threshold });
  const colStats = statsOf(me, A, threshold, true);
  return {
    quantizedRow,
    quantizedCol: codesOf(me, A, colStats, threshold, undefined, true),
    rowStats,
    colStats,
    outlierCols,
  };
}

function listOutliers(me: Signature, A: Tensor, threshold: number): Tensor<"int32"> | undefined {
  const pointer = me.tensor(A, "A");
  if (threshold === 0) return undefined;
  return new Tensor(me.made(native.bnb_int8_outliers(pointer, threshold)), "int32", [columnsOf(A)], A.device);
}

function statsOf(me: Signature, A: Tensor, threshold: number, byColumn: boolean): Tensor<"float32"> {
  const columns = columnsOf(A);
  const shape = [byColumn ? columns : A.size / columns];
  const pointer = native.bnb_int8_stats(me.tensor(A, "A"), threshold, Number(byColumn));
  return new Tensor(me.made(pointer), "float32", shape, A.device);
}

function codesOf(
  me: Signature,
  A: Tensor,
  stats: Tensor<"float32">,
  threshold: number,
  outlierCols: Tensor<"int32"> | undefined,
  byColumn: boolean,
): Tensor<"int8"> {
  const parts = [me.tensor(A, "A"), me.tensor(stats, "stats")] as const;
  const outliers = me.tensorIf(outlierCols, "outlierCols");
  const pointer = native.bnb_int8_vectorwise_quant(...parts, threshold, outliers, Number(byColumn));
  return new Tensor(me.made(pointer), "int8", A.shape, A.device);
}

const columnsOf = (tensor: Tensor) => tensor.shape.at(-1) ?? 1;

/**
 * The matrix that int8 codes stand for: `A · stats / 127` in fp32, rounded once to the dtype. Upstream:
 * `functional.int8_vectorwise_dequant`, whose bytes these are.
 *
 * @example
 * ```ts
 * using codes = Tensor.from(Int8Array.of(127, -127, 64, 0), [2, 2]);
 * using stats = Tensor.from([2, 1.27]);
 * using w = int8VectorwiseDequant(codes, stats);
 * w.read(); // → [2, -2, 0.64, 0]
 * ```
 *
 * @param stats float32 [rows]
 * @param options the result is float32 by default
 */
export function int8VectorwiseDequant<D extends FloatDType = "float32">(
  A: Tensor<"int8">,
  stats: Tensor<"float32">,
  options: DequantizeOptions<D> = {},
): Tensor<D> {
  const me = signatures.vectorwiseDequant;
  return dequantizeRows(me, A, stats, me.options(options));
}

/** @internal {@link int8VectorwiseDequant} under another function's name. */
export function dequantizeRows<D extends FloatDType = "float32">(
  me: Signature,
  A: Tensor<"int8">,
  stats: Tensor<"float32">,
  { dtype = "float32" as D }: DequantizeOptions<D>,
): Tensor<D> {
  const parts = [me.tensor(A, "A"), me.tensor(stats, "stats")] as const;
  const pointer = native.bnb_int8_vectorwise_dequant(...parts, me.code(dtype, "dtype", floatDtypes));
  return new Tensor(me.made(pointer), dtype, A.shape, A.device);
}

/**
 * `A · Bᵀ` of int8 matrices as int32, always exact. Upstream: `functional.int8_linear_matmul`.
 *
 * @example
 * ```ts
 * using A = Tensor.from(Int8Array.of(1, 2, 3, 4), [2, 2]);
 * using B = Tensor.from(Int8Array.of(1, 0, 100, 100, -1, -1), [3, 2]);
 * using sums = int8LinearMatmul(A, B);
 * sums.read(); // → [1, 300, -3, 3, 700, -7]
 * ```
 *
 * @param A [..., k]; the result is [..., n]
 * @param B [n, k]
 * @throws BnbError if shapes do not fit, or (`unsupported`) k is above 131,071, where a sum could leave 32 bits
 */
export function int8LinearMatmul(A: Tensor<"int8">, B: Tensor<"int8">): Tensor<"int32"> {
  const me = signatures.linearMatmul;
  const parts = [me.tensor(A, "A"), me.tensor(B, "B")] as const;
  const shape = resultShape(me, A.shape, B.shape, ["A", "B"]);
  return new Tensor(me.made(native.bnb_int8_linear_matmul(...parts)), "int32", shape, A.device);
}

/**
 * What the sums of {@link int8LinearMatmul} stand for: `A · rowStats · colStats · 6.2000124e-5 + bias` in fp32, rounded
 * once. The constant is upstream's, for 1/127². Upstream: `functional.int8_mm_dequant`, whose bytes these are.
 *
 * @example
 * ```ts
 * using sums = Tensor.from(Int32Array.of(16129, -16129), [1, 2]); // ±127²
 * using rowStats = Tensor.from([2]);
 * using colStats = Tensor.from([1, 3]);
 * using y = int8MmDequant(sums, rowStats, colStats);
 * y.read(); // → [2, -6]
 * ```
 *
 * @param A [..., n]
 * @param rowStats float32 [rows of A]
 * @param colStats float32 [n]
 */
export function int8MmDequant<D extends FloatDType = "float16">(
  A: Tensor<"int32">,
  rowStats: Tensor<"float32">,
  colStats: Tensor<"float32">,
  options: Int8MmOptions<D> = {},
): Tensor<D> {
  const me = signatures.mmDequant;
  const { dtype = "float16" as D, bias } = me.options(options);
  const code = me.code(dtype, "dtype", floatDtypes);
  const scales = [me.tensor(rowStats, "rowStats"), me.tensor(colStats, "colStats"), me.tensorIf(bias, "bias")] as const;
  const pointer = native.bnb_int8_mm_dequant(me.tensor(A, "A"), ...scales, code);
  return new Tensor(me.made(pointer), dtype, A.shape, A.device);
}

/**
 * {@link int8LinearMatmul} and {@link int8MmDequant} in one step, which never stores the sums. Upstream:
 * `torch.ops.bitsandbytes.int8_scaled_mm`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([1, -1, 0.5, 0.5], [2, 2]);
 * using w = Tensor.from([1, 0, 0, 2, 1, 1], [3, 2]);
 * const [a, b] = [int8VectorwiseQuant(x), int8VectorwiseQuant(w)];
 * using y = int8ScaledMm(a.quantized, b.quantized, a.rowStats, b.rowStats, { dtype: "float32" });
 * y.read(); // → [1, -2, 0, 0.5, 1, 1]
 * ```
 */
export function int8ScaledMm<D extends FloatDType = "float16">(
  A: Tensor<"int8">,
  B: Tensor<"int8">,
  rowStats: Tensor<"float32">,
  colStats: Tensor<"float32">,
  options: Int8MmOptions<D> = {},
): Tensor<D> {
  const me = signatures.scaledMm;
  const { dtype = "float16" as D, bias } = me.options(options);
  const codes = [me.tensor(A, "A"), me.tensor(B, "B")] as const;
  const scales = [me.tensor(rowStats, "rowStats"), me.tensor(colStats, "colStats"), me.tensorIf(bias, "bias")] as const;
  const shape = resultShape(me, A.shape, B.shape, ["A", "B"]);
  const pointer = native.bnb_int8_scaled_mm(...codes, ...scales, me.code(dtype, "dtype", floatDtypes));
  return new Tensor(me.made(pointer), dtype, shape, A.device);
}

/**
 * {@link int8ScaledMm}, with the outlier columns of `A` multiplied in floating point by the values that `CB` stands
 * for; rounded once, at the end. Upstream: `torch.ops.bitsandbytes.int8_mixed_scaled_mm`, which also returns `A`'s
 * outlier columns for its backward pass.
 *
 * @example
 * ```ts
 * using x = Tensor.from([1, 60], [1, 2]); // the second column is an outlier
 * using w = Tensor.from([1, 0, 0, 2], [2, 2]);
 * const a = int8VectorwiseQuant(x, { threshold: 6 });
 * const b = int8VectorwiseQuant(w);
 * const { outlierCols } = a;
 * using y = int8MixedScaledMm(x, a.quantized, b.quantized, a.rowStats, b.rowStats, { outlierCols });
 * y.read(); // → [1, 120]
 * ```
 *
 * @param A [..., k], any float dtype; the result has the same
 * @param CA the codes of A; these, SCA [rows] and outlierCols are what {@link int8VectorwiseQuant} returns
 * @param CB [n, k], with SCB [n]
 */
export function int8MixedScaledMm<D extends FloatDType>(
  A: Tensor<D>,
  CA: Tensor<"int8">,
  CB: Tensor<"int8">,
  SCA: Tensor<"float32">,
  SCB: Tensor<"float32">,
  options: { outlierCols?: Tensor<"int32"> | undefined; bias?: Tensor | undefined } = {},
): Tensor<D> {
  const me = signatures.mixedScaledMm;
  const { outlierCols, bias } = me.options(options);
  const pointer = native.bnb_int8_mixed_scaled_mm(
    me.tensor(A, "A"),
    me.tensor(CA, "CA"),
    me.tensor(CB, "CB"),
    me.tensor(SCA, "SCA"),
    me.tensor(SCB, "SCB"),
    me.tensorIf(outlierCols, "outlierCols"),
    me.tensorIf(bias, "bias"),
  );
  return new Tensor(me.made(pointer), A.dtype, resultShape(me, A.shape, CB.shape, ["A", "CB"]), A.device);
}

/** The C library's names of arguments. */
const quant = { x: "A" };
const product = { a: "A", b: "B", row_stats: "rowStats", column_stats: "colStats", w: "B" };

const signatures = {
  vectorwiseQuant: new Signature("int8VectorwiseQuant", { options: ["threshold"], native: quant }),
  doubleQuant: new Signature("int8DoubleQuant", { options: ["threshold"], native: quant }),
  vectorwiseDequant: new Signature("int8VectorwiseDequant", { options: ["dtype"], native: { codes: "A" } }),
  linearMatmul: new Signature("int8LinearMatmul", { native: product }),
  mmDequant: new Signature("int8MmDequant", { options: ["bias", "dtype"], native: { ...product, sums: "A" } }),
  scaledMm: new Signature("int8ScaledMm", { options: ["bias", "dtype"], native: product }),
  mixedScaledMm: new Signature("int8MixedScaledMm", {
    options: ["outlierCols", "bias"],
    native: { x: "A", a: "CA", b: "CB", row_stats: "SCA", column_stats: "SCB", outliers: "outlierCols" },
  }),
};
