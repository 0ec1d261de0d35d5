// Matrices put one under the other. Checks and copies are in csrc/ops/join.c.
import { Codebook } from "./codebook.ts";
import { native } from "./native.ts";
import { QuantizedTensor, type Stores } from "./quantized.ts";
import { format } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/**
 * Stacks the rows of several weights into one, so that one product replaces several: for the q, k and v of an
 * attention, or the two halves of a gated layer. Codes of quantised weights stay as they are; nested scales become
 * plain ones, unless they share codebook, block and offset. The weights are copied, and remain the caller's to dispose
 * of. Upstream: `torch.cat`.
 *
 * @example
 * ```ts
 * using a = Tensor.from([1, 2], [1, 2]);
 * using b = Tensor.from([3, 4, 5, 6], [2, 2]);
 * using joined = joinRows([a, b]);
 * joined.read(); // → [1, 2, 3, 4, 5, 6]
 * ```
 *
 * @param weights [n, k] each: all dense and of one dtype, or all quantised alike
 * @throws BnbError if they are not; (`unsupported`) if a block of one quantised weight would run into the next weight
 */
export function joinRows<W extends Tensor | QuantizedTensor>(weights: readonly W[]): W {
  if (!Array.isArray(weights) || weights.length === 0)
    throw me.wrong("weights", weights, "an array of at least one weight");
  const all: readonly (Tensor | QuantizedTensor)[] = Array.from(weights);
  for (const [i, weight] of all.entries()) me.kind(weight, `weights[${i}]`, ["Tensor", "QuantizedTensor"]);
  if (all.length === 1) return joinTwo(all[0]!, undefined) as W;
  let joined = joinTwo(all[0]!, all[1]!);
  for (const next of all.slice(2)) {
    using before = joined;
    joined = joinTwo(before, next);
  }
  return joined as W;
}

function joinTwo(a: Tensor | QuantizedTensor, b: Tensor | QuantizedTensor | undefined): Tensor | QuantizedTensor {
  if (b === undefined) return a instanceof Tensor ? a.to(a.device) : a.to(a.device);
  const [shape, other] = [a.shape, b.shape];
  if (shape.length !== 2 || other.length !== 2 || shape[1] !== other[1])
    throw me.fail(`weights of ${format(shape)} and ${format(other)} do not have as many columns each.`);
  const rows = [shape[0]! + other[0]!, shape[1]!];
  if (a instanceof Tensor && b instanceof Tensor)
    return new Tensor(me.made(native.bnb_tensor_join(a.pointer, b.pointer)), a.dtype, rows, a.device);
  if (!(a instanceof QuantizedTensor) || !(b instanceof QuantizedTensor))
    throw me.fail("weights are not of one kind, expected dense or quantised ones alone.");
  const code = a.quantType ? Codebook.named(a.quantType) : Codebook.from(a.code);
  const pointer = me.made(native.bnb_quantized_join(a.pointer, b.pointer));
  const nestedBlocksize = Number(native.bnb_quantized_nested_block(pointer));
  const stores = joinedStores(a.stores, b.stores, nestedBlocksize > 0);
  return new QuantizedTensor(pointer, rows, a.dtype, a.device, code, a.blocksize, nestedBlocksize, stores);
}

/** How joined scales and offsets are stored: as they are where both are alike, else as floats. */
function joinedStores(a: Stores, b: Stores, staysNested: boolean): Stores {
  const joined = (one: Stores["absmax"], other: Stores["offsets"]) =>
    one === other && (one !== "uint8" || staysNested) ? one : "float32";
  return {
    absmax: joined(a.absmax, b.absmax),
    offsets: a.offsets && joined(a.offsets, b.offsets),
    nested: staysNested ? a.nested : undefined,
  };
}

const me = new Signature("joinRows", { native: { a: "one of weights", b: "the next of weights" } });
