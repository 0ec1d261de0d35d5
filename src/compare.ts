// The measure of how far one tensor is from another. The loop is in csrc/ops/compare.c.
import { native } from "./native.ts";
import { format, sameShape } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** How far `b` is from `a`, over the elements where both are finite. */
export interface Comparison {
  /** The root mean square of `a`. */
  readonly rms: number;
  /** The root mean square of `a - b`. */
  readonly rmsError: number;
  /** The largest `|a - b|`. */
  readonly maxError: number;
  /** How many elements are NaN or infinite in either. */
  readonly nonFinite: number;
}

/**
 * Compares two float tensors of the same shape; their dtypes may differ.
 *
 * @example
 * ```ts
 * using w = Tensor.from([3, 4, 0, 0]);
 * using v = Tensor.from([3, 4, 0, 1]);
 * compare(w, v); // → { rms: 2.5, rmsError: 0.5, maxError: 1, nonFinite: 0 }
 * ```
 *
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function compare(a: Tensor, b: Tensor): Comparison {
  const [left, right] = [me.tensor(a, "a"), me.tensor(b, "b")];
  if (!sameShape(a.shape, b.shape))
    throw me.fail(`a is ${format(a.shape)} and b is ${format(b.shape)}: the shapes must match.`);
  using result = new Tensor(me.made(native.bnb_compare(left, right)), "float32", [4], a.device);
  const [rms, rmsError, maxError, nonFinite] = result.read() as unknown as [number, number, number, number];
  return { rms, rmsError, maxError, nonFinite };
}

const me = new Signature("compare");
