// Quantising to integers with a scale and an offset a block, MLX's affine mode. Checks and loop are in
// csrc/ops/quantize_affine.c.
import { Codebook } from "./codebook.ts";
import type { FloatDType } from "./dtype.ts";
import { native, size } from "./native.ts";
import { QuantizedTensor } from "./quantized.ts";
import { Signature } from "./signature.ts";
import type { Tensor } from "./tensor.ts";

/** Options of {@link quantizeAffine}. */
export interface QuantizeAffineOptions {
  /** Bits of a code, 2 to 8; 4 by default. */
  bits?: number;
  /** Elements of a row that share a scale and an offset: a power of two from 16, 64 by default. MLX's `group_size`. */
  blocksize?: number;
}

/**
 * Quantises a tensor to integer codes, each of which stands for code · scale + offset. The codes divide a block's range
 * evenly, widened so that 0 is represented exactly; scales and offsets have the tensor's dtype. Upstream: MLX's
 * `quantize` in its affine mode, code for code.
 *
 * @example
 * ```ts
 * using w = Tensor.from(Float32Array.from({ length: 64 * 64 }, (_, i) => Math.sin(i)), [64, 64], { dtype: "float16" });
 * using q = quantizeAffine(w, { bits: 4 });
 * q.bitsPerElement; // → 4.5
 * ```
 *
 * @param x [..., k], float32, float16 or bfloat16; `blocksize` divides k
 * @throws BnbError for another dtype or blocksize, or a NaN or infinity in `x` (the message says where)
 */
export function quantizeAffine(x: Tensor, options: QuantizeAffineOptions = {}): QuantizedTensor {
  const me = signatures.quantizeAffine;
  const { bits = 4, blocksize = 64 } = me.options(options);
  const pointer = me.tensor(x, "x");
  const width = me.whole(bits, "bits", 2, 8);
  const made = native.bnb_quantize_affine(pointer, width, size(me.whole(blocksize, "blocksize", 1)));
  const dtype = x.dtype as FloatDType;
  const stores = { absmax: dtype, offsets: dtype };
  return new QuantizedTensor(me.made(made), x.shape, dtype, x.device, integers(width), blocksize, 0, stores);
}

const codebooks = new Map<number, Codebook>();

/** The codebook of 0, 1, 2, … */
export function integers(bits: number): Codebook {
  const before = codebooks.get(bits);
  if (before) return before;
  const codebook = Codebook.from(Array.from({ length: 2 ** bits }, (_, i) => i));
  codebooks.set(bits, codebook);
  return codebook;
}

const signatures = {
  quantizeAffine: new Signature("quantizeAffine", { options: ["bits", "blocksize"], native: { block: "blocksize" } }),
};
