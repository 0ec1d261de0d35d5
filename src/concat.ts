// Tensors put one after the other along their first dimension. The copies are csrc/tensor.c's.

import type { DType } from "./dtype.ts";
import { native, size } from "./native.ts";
import { format, sameShape, sizeOf } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/**
 * Joins tensors of one dtype along their first dimension; all other dimensions must match. Upstream: `torch.cat`.
 *
 * @example
 * ```ts
 * using a = Tensor.from([[1, 2]]);
 * using b = Tensor.from([[3, 4], [5, 6]]);
 * using all = concat([a, b]);
 * all.shape; // → [3, 2]
 * all.slice(1, 2).read(); // → [3, 4]
 * ```
 *
 * @throws BnbError if there are no tensors, or their shapes, dtypes or devices do not fit
 */
export function concat<D extends DType>(tensors: readonly Tensor<D>[]): Tensor<D> {
  if (!Array.isArray(tensors) || tensors.length === 0) throw me.wrong("tensors", tensors, "Tensors in an array");
  const parts: readonly Tensor<D>[] = [...tensors];
  for (const [i, part] of parts.entries()) me.batch(part, `tensors[${i}]`);
  const [first] = parts as [Tensor<D>];
  const { dtype, device } = first;
  const rest = first.shape.slice(1);
  for (const [i, part] of parts.entries()) {
    const what = `tensors[${i}] is ${part}`;
    if (part.shape.length === 0 || !sameShape(part.shape.slice(1), rest))
      throw me.fail(`${what}, expected [..., ${format(rest)}]: all dimensions but the first must match.`);
    if (part.dtype !== dtype || part.device !== device) throw me.fail(`${what}, expected ${dtype} on ${device}.`);
  }
  const rows = parts.reduce((sum, part) => sum + part.shape[0]!, 0);
  const all = Tensor.zeros([rows, ...rest], { dtype, device });
  if (all.size === 0) return all;
  // The library's rows are of the last dimension alone; a vector is a column.
  const columns = rest.at(-1) ?? 1;
  using to = all.reshape([-1, columns]);
  let row = 0;
  for (const part of parts) {
    if (part.size === 0) continue;
    using from = part.reshape([-1, columns]);
    me.check(native.bnb_tensor_put(me.tensor(to, "tensors"), size(row), me.tensor(from, "tensors")));
    row += sizeOf(from.shape) / columns;
  }
  return all;
}

const me = new Signature("concat", { native: { from: "tensors" } });
