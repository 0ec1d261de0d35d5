// Owns the gradients of matrix products. Checks, kernels and fallbacks are in csrc/ops/matmul_backward.c.
import { dtypeCode, type FloatDType } from "./dtype.ts";
import { BnbError } from "./error.ts";
import { native } from "./native.ts";
import type { QuantizedTensor } from "./quantized.ts";
import { format, type Shape } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/**
 * The gradient of {@link matmul4bit} with respect to `x`: `dy · w`, with a 4-bit weight that is never written out whole.
 * Upstream: the backward pass of `bitsandbytes.matmul_4bit`, which dequantises all of it.
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
  if (w.bits !== 4) throw new BnbError(`matmul4bitBackward: w holds ${w.bits}-bit codes: use matmulBlockwiseBackward.`);
  return quantizedBackward(dy, w, "matmul4bitBackward");
}

/**
 * The gradient of {@link matmulBlockwise} with respect to `x`; everything else as {@link matmul4bitBackward}.
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
  return quantizedBackward(dy, w, "matmulBlockwiseBackward");
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
  const shape = gradientShape(dy.shape, w.shape, "linearBackward");
  return new Tensor(native.bnb_matmul_backward(dy.pointer, w.pointer), dy.dtype, shape, dy.device);
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
  const { dtype = dy.dtype as D } = options;
  const [leading, inputs] = [dy.shape.slice(0, -1), x.shape.slice(0, -1)];
  if (dy.shape.length === 0 || x.shape.length === 0 || format(leading) !== format(inputs))
    throw new BnbError(
      `linearBackwardWeight: dy is ${format(dy.shape)} and x is ${format(x.shape)}: all dimensions but the last must match.`,
    );
  const pointer = native.bnb_matmul_backward_weight(dy.pointer, x.pointer, dtypeCode(dtype, "linearBackwardWeight"));
  return new Tensor(pointer, dtype, [dy.shape.at(-1)!, x.shape.at(-1)!], dy.device);
}

/**
 * The gradient of every product here with respect to its bias: the sum of dy's rows.
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
  const n = dy.shape.at(-1) ?? 1;
  using rows = dy.reshape([-1, n]);
  using ones = Tensor.from(new Float32Array(rows.shape[0]!).fill(1), [rows.shape[0]!, 1], { device: dy.device });
  using sums = linearBackwardWeight(rows, ones, options); // [n, 1]
  return sums.reshape([n]);
}

function quantizedBackward<D extends FloatDType>(dy: Tensor<D>, w: QuantizedTensor, what: string): Tensor<D> {
  const shape = gradientShape(dy.shape, w.shape, what);
  return new Tensor(native.bnb_matmul_quantized_backward(dy.pointer, w.pointer), dy.dtype, shape, dy.device);
}

function gradientShape(dy: Shape, w: Shape, what: string): Shape {
  if (w.length !== 2) throw new BnbError(`${what}: w is ${format(w)}, expected two dimensions, [n, k].`);
  if (dy.length === 0 || dy.at(-1) !== w[0])
    throw new BnbError(`${what}: dy is ${format(dy)} and w is ${format(w)}: dy's last dimension must be w's first.`);
  return [...dy.slice(0, -1), w[1]!];
}
