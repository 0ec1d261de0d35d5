// The gradients of matrix products. Checks, kernels and fallbacks are in csrc/ops/matmul_backward.c.
import type { FloatDType } from "./dtype.ts";
import { noRows } from "./matmul.ts";
import { dtypes, floatDtypes, native } from "./native.ts";
import type { QuantizedTensor } from "./quantized.ts";
import { format, type Shape, sameShape, sizeOf } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/**
 * The gradient of {@link matmul4bit} with respect to `x`: `dy · w`, with a 4-bit weight. On CUDA a half-precision `dy`
 * of nine rows or more has it written out in dy's dtype first, where there is memory for that; elsewhere it never is.
 * Upstream: the backward pass of `bitsandbytes.matmul_4bit`, which always dequantises all of it.
 *
 * @example
 * ```ts
 * using w = quantize4bit(Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]));
 * using dy = Tensor.from(new Float32Array(128).fill(1), [1, 128]);
 * using dx = matmul4bitBackward(dy, w);
 * dx.shape; // → [1, 64]
 * dx.read()[0]; // → 12.8
 * ```
 *
 * @param dy [..., n], the gradient with respect to the product; float32, float16 or bfloat16
 * @param w [n, k]
 * @returns [..., k] in dy's dtype, summed in fp32
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function matmul4bitBackward<D extends FloatDType>(dy: Tensor<D>, w: QuantizedTensor): Tensor<D> {
  const me = signatures.matmul4bit;
  me.quantized(w, "w");
  if (w.bits !== 4) throw me.fail(`w holds ${w.bits}-bit codes: use matmulBlockwiseBackward.`);
  return quantizedBackward(me, dy, w);
}

/**
 * The gradient of {@link matmulBlockwise} with respect to `x`. Arguments, result and errors are those of
 * {@link matmul4bitBackward}.
 *
 * @example
 * ```ts
 * using w = quantizeBlockwise(Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]), { blocksize: 256 });
 * using dy = Tensor.from(new Float32Array(128).fill(1), [1, 128]);
 * using dx = matmulBlockwiseBackward(dy, w);
 * dx.read()[0]; // → 12.8
 * ```
 */
export function matmulBlockwiseBackward<D extends FloatDType>(dy: Tensor<D>, w: QuantizedTensor): Tensor<D> {
  return quantizedBackward(signatures.matmulBlockwise, dy, w);
}

/**
 * The gradient of {@link linear} with respect to `x`: `dy · w`.
 *
 * @example
 * ```ts
 * using w = Tensor.from([1, 0, 0, 1, 1, 1], [3, 2]);
 * using dy = Tensor.from([1, 2, 3], [1, 3]);
 * using dx = linearBackward(dy, w);
 * dx.read(); // → [4, 5]
 * ```
 *
 * @param dy [..., n], float32, float16 or bfloat16
 * @param w [n, k], any float dtype
 * @returns [..., k] in dy's dtype, summed in fp32
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function linearBackward<D extends FloatDType>(dy: Tensor<D>, w: Tensor): Tensor<D> {
  return denseBackward(signatures.linear, dy, w);
}

/** @internal {@link linearBackward} under another function's name. */
export function denseBackward<D extends FloatDType>(me: Signature, dy: Tensor<D>, w: Tensor): Tensor<D> {
  const [left, right] = [me.batch(dy, "dy"), me.tensor(w, "w")];
  const shape = gradientShape(me, dy.shape, w.shape);
  if (sizeOf(shape) === 0) return noRows(me, dy, shape);
  return new Tensor(me.made(native.bnb_matmul_backward(left, right)), dy.dtype, shape, dy.device);
}

/**
 * The gradient of {@link linear} with respect to its weight: `dyᵀ · x`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([3, 4], [1, 2]);
 * using dy = Tensor.from([1, 2, 3], [1, 3]);
 * using dw = linearBackwardWeight(dy, x);
 * dw.read(); // → [3, 4, 6, 8, 9, 12]
 * ```
 *
 * @param dy [..., n], float32, float16 or bfloat16
 * @param x [..., k], what the product was given; any float dtype
 * @param options.dtype the result's dtype, dy's by default
 * @returns [n, k], summed in fp32 and rounded once
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function linearBackwardWeight<D extends FloatDType>(
  dy: Tensor<FloatDType>,
  x: Tensor,
  options: { dtype?: D } = {},
): Tensor<D> {
  const me = signatures.weight;
  return weightGradient(me, dy, x, me.options(options));
}

function weightGradient<D extends FloatDType>(me: Signature, dy: Tensor, x: Tensor, options: { dtype?: D }): Tensor<D> {
  const [left, right] = [me.batch(dy, "dy"), me.batch(x, "x")];
  const { dtype } = options;
  const code = dtype === undefined ? dtypes[dy.dtype] : me.code(dtype, "dtype", floatDtypes);
  const [rows, inputs] = [dy.shape, x.shape];
  if (rows.length === 0 || inputs.length === 0 || !sameShape(rows.slice(0, -1), inputs.slice(0, -1)))
    throw me.fail(`dy is ${format(rows)} and x is ${format(inputs)}: all dimensions but the last must match.`);
  const [n, k] = [rows.at(-1)!, inputs.at(-1)!];
  if (sizeOf(rows) === 0 && n > 0 && k > 0)
    return Tensor.zeros([n, k], { dtype: dtype ?? (dy.dtype as D), device: dy.device });
  me.tensor(dy, "dy");
  me.tensor(x, "x");
  const pointer = native.bnb_matmul_backward_weight(left, right, code);
  return new Tensor(me.made(pointer), dtype ?? (dy.dtype as D), [n, k], dy.device);
}

/**
 * The gradient of any of these products with respect to its bias: the sum of dy's rows.
 *
 * @example
 * ```ts
 * using dy = Tensor.from([1, 2, 3, 10, 20, 30], [2, 3]);
 * using db = linearBackwardBias(dy);
 * db.read(); // → [11, 22, 33]
 * ```
 *
 * @param dy [..., n], float32, float16 or bfloat16
 * @param options.dtype the result's dtype, dy's by default
 * @returns [n], summed in fp32 and rounded once
 */
export function linearBackwardBias<D extends FloatDType>(
  dy: Tensor<FloatDType>,
  options: { dtype?: D } = {},
): Tensor<D> {
  const me = signatures.bias;
  return biasGradient(me, dy, me.options(options));
}

/** @internal {@link linearBackwardBias} under another function's name. */
export function biasGradient<D extends FloatDType>(me: Signature, dy: Tensor, options: { dtype?: D }): Tensor<D> {
  me.batch(dy, "dy");
  const n = dy.shape.at(-1) ?? 1;
  if (dy.size === 0) return Tensor.zeros([n], { dtype: options.dtype ?? (dy.dtype as D), device: dy.device });
  using rows = dy.reshape([-1, n]);
  using ones = Tensor.from(new Float32Array(rows.shape[0]!).fill(1), [rows.shape[0]!, 1], { device: dy.device });
  using sums = weightGradient(me, rows, ones, options); // [n, 1]
  return sums.reshape([n]);
}

/** @internal The gradient with a quantised weight, under the caller's name. */
export function quantizedBackward<D extends FloatDType>(me: Signature, dy: Tensor<D>, w: QuantizedTensor): Tensor<D> {
  const [left, right] = [me.batch(dy, "dy"), me.quantized(w, "w")];
  const shape = gradientShape(me, dy.shape, w.shape);
  if (sizeOf(shape) === 0) return noRows(me, dy, shape);
  return new Tensor(me.made(native.bnb_matmul_quantized_backward(left, right)), dy.dtype, shape, dy.device);
}

function gradientShape(me: Signature, dy: Shape, w: Shape): Shape {
  if (w.length !== 2) throw me.fail(`w is ${format(w)}, expected two dimensions, [n, k].`);
  if (dy.length === 0 || dy.at(-1) !== w[0])
    throw me.fail(`dy is ${format(dy)} and w is ${format(w)}: dy's last dimension must be w's first.`);
  return [...dy.slice(0, -1), w[1]!];
}

const signatures = {
  matmul4bit: new Signature("matmul4bitBackward"),
  matmulBlockwise: new Signature("matmulBlockwiseBackward"),
  linear: new Signature("linearBackward"),
  weight: new Signature("linearBackwardWeight", { options: ["dtype"] }),
  bias: new Signature("linearBackwardBias", { options: ["dtype"] }),
};
