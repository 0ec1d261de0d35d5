// The largest elements of rows, a mixture's choice of experts by them, and what experts give back. Checks, kernels and
// fallbacks are in csrc/ops/topk.c and scatter_add.c.
import { type NativePointer, native, size } from "./native.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** The `count` largest elements of each row, largest first. */
export interface Largest {
  /** [rows · count] */
  indices: Int32Array<ArrayBuffer>;
  /** [rows · count] */
  values: Float32Array<ArrayBuffer>;
}

/**
 * The `count` largest elements of each row, largest first; of equal elements the lower index comes first, and NaN comes
 * last. Nothing else is copied from the device. Upstream: `torch.topk`.
 *
 * @example
 * ```ts
 * using logits = Tensor.from([1, 5, 3, 5], [1, 4]);
 * topK(logits, 3); // → { indices: [1, 3, 2], values: [5, 5, 3] }
 * ```
 *
 * @param x [..., n], float32, float16 or bfloat16
 * @param count 1 to 1024, and at most n
 * @throws BnbError for another count or dtype
 */
export function topK(x: Tensor, count: number): Largest {
  const me = signatures.topK;
  const input = me.tensor(x, "x");
  return split(me, x, native.bnb_topk(input, size(me.whole(count, "count", 1))), count);
}

/**
 * The experts that a mixture sends each row to (Shazeer et al. 2017): the `count` with the largest logits, largest
 * first, and their softmax over all experts or, if `normalised`, among the chosen ones.
 *
 * @example
 * ```ts
 * using logits = Tensor.from([0, Math.log(3), Math.log(4)], [1, 3]);
 * route(logits, 2); // → { indices: [2, 1], values: [0.5, 0.375] }
 * route(logits, 2, { normalised: true }); // → { indices: [2, 1], values: [0.571, 0.429] }
 * ```
 *
 * @param x [rows, experts], float32, float16 or bfloat16
 * @throws BnbError as {@link topK}
 */
export function route(x: Tensor, count: number, options: { normalised?: boolean | undefined } = {}): Largest {
  const me = signatures.route;
  const { normalised = false } = me.options(options);
  const [input, flag] = [me.tensor(x, "x"), Number(me.boolean(normalised, "normalised"))];
  return split(me, x, native.bnb_route(input, size(me.whole(count, "count", 1)), flag), count);
}

/**
 * `y[rows[i]] += weights[i] · x[i]`, in place and in the order of i. Upstream: `torch.Tensor.index_add_`.
 *
 * @example
 * ```ts
 * using y = Tensor.from([1, 1, 2, 2], [2, 2]);
 * using x = Tensor.from([10, 20], [1, 2]);
 * using rows = Tensor.from(Int32Array.of(1));
 * using weights = Tensor.from([0.5]);
 * scatterAdd(y, x, rows, weights);
 * y.read(); // → [1, 1, 7, 12]
 * ```
 *
 * @param y [m, n], any float dtype
 * @param x [k, n], any float dtype
 * @throws BnbError if shapes, dtypes or devices do not fit, or (on the CPU) a row number is out of range
 */
export function scatterAdd(y: Tensor, x: Tensor, rows: Tensor<"int32">, weights: Tensor<"float32">): void {
  const me = signatures.scatterAdd;
  const [sum, added] = [me.tensor(y, "y"), me.tensor(x, "x")];
  me.check(native.bnb_scatter_add(sum, added, me.tensor(rows, "rows"), me.tensor(weights, "weights")));
}

/** Each row is the indices, then the bits of the values. */
function split(me: Signature, x: Tensor, pointer: NativePointer | null, count: number): Largest {
  const rows = x.size / (x.shape.at(-1) ?? 1);
  using chosen = new Tensor(me.made(pointer), "int32", [rows, 2 * count], x.device);
  const both = chosen.read() as Int32Array<ArrayBuffer>;
  const floats = new Float32Array(both.buffer);
  if (rows === 1) return { indices: both.slice(0, count), values: floats.slice(count) };
  const indices = new Int32Array(rows * count);
  const values = new Float32Array(rows * count);
  for (let row = 0; row < rows; row++) {
    indices.set(both.subarray(2 * row * count, (2 * row + 1) * count), row * count);
    values.set(floats.subarray((2 * row + 1) * count, (2 * row + 2) * count), row * count);
  }
  return { indices, values };
}

const signatures = {
  topK: new Signature("topK"),
  route: new Signature("route", { options: ["normalised"] }),
  scatterAdd: new Signature("scatterAdd"),
};
