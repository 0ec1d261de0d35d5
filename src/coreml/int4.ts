// Weights of 4 bits as Core ML has them since macOS 15: integers less a zero point, times a scale, in blocks of a row.
import { inMlxOrder } from "../checkpoint/mlx.ts";
import type { FloatDType } from "../dtype.ts";
import { integers, quantizeAffine } from "../quantize_affine.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";

/** Elements of a block, where a weight is quantised for it. */
export const int4Block = 32;

/** What the operation `constexpr_blockwise_shift_scale` takes beside scales. */
export interface Int4 {
  /** Two codes a byte, the first in the lower nibble. */
  readonly codes: Uint8Array;
  /** What is taken off the codes of each block: codes themselves, two a byte, or floats where one is no code. */
  readonly zeros: Uint8Array | Float32Array;
}

/** A weight of integers as Core ML has it; undefined where its codes are no integers that follow each other. */
export function int4Of(q: QuantizedTensor, scales: Tensor<FloatDType>): Int4 | undefined {
  const [first] = q.code;
  if (q.bits !== 4 || !q.code.every((value, i) => value === first! + i)) return undefined;
  using codes = q.codes;
  const zeros = zerosOf(q, scales.readFloat32(), -first!);
  const areCodes = zeros.every((zero) => Number.isInteger(zero) && zero >= 0 && zero <= 15);
  return { codes: inMlxOrder(codes.read(), 4), zeros: areCodes ? pairsOf(zeros) : zeros };
}

/** Two codes a byte, the first in the lower nibble. */
function pairsOf(codes: Float32Array): Uint8Array {
  return Uint8Array.from(
    { length: Math.ceil(codes.length / 2) },
    (_, i) => codes[2 * i]! | ((codes[2 * i + 1] ?? 0) << 4),
  );
}

/** The code that stands for zero in each block, `base` where nothing is added to it. */
function zerosOf(q: QuantizedTensor, scales: Float32Array, base: number): Float32Array {
  using added = q.offsets as Tensor<FloatDType> | undefined;
  const offsets = added?.readFloat32();
  return scales.map((scale, b) => (offsets?.[b] ? base - offsets[b]! / scale : base));
}

/**
 * A dense weight as such integers: MLX's rule, whose blocks' ends are widened so that zero is a code, with scales
 * rounded to float16. Code, scale and zero point have so few bits that a product is exact: whoever multiplies gets the
 * same number.
 */
export function quantizeInt4(w: Tensor<FloatDType>): QuantizedTensor {
  using wide = w.cast("float32");
  using q = quantizeAffine(wide, { bits: 4, blocksize: int4Block });
  using exact = q.absmax as Tensor<"float32">;
  using absmax = exact.cast("float16");
  const rounded = absmax.readFloat32();
  const offsets = zerosOf(q, exact.read(), 0).map((zero, b) => -Math.round(zero) * rounded[b]!);
  using codes = q.codes;
  using added = Tensor.from(offsets, undefined, { device: w.device });
  const { blocksize, shape } = q;
  return QuantizedTensor.fromParts({ codes, absmax, offsets: added, code: integers(4), blocksize, shape });
}
