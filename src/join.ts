// Owns matrices put one under the other. Checks and copies are in csrc/ops/join.c.
import { Codebook } from "./codebook.ts";
import { BnbError } from "./error.ts";
import { native } from "./native.ts";
import { QuantizedTensor } from "./quantized.ts";
import { format } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/**
 * The rows of each weight under those of the one before, so that one product serves for all: q, k and v of an attention, or
 * a gate and what it lets through. Codes of quantised weights stay as they are; nested scales become plain ones. The
 * weights are copied, and the caller's to dispose of. Upstream: `torch.cat`.
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
 * @throws BnbError if they are not; (`unsupported`) if a block of a quantised weight would go over into the next one
 */
export function joinRows<W extends Tensor | QuantizedTensor>(weights: readonly W[]): W {
  const [first, ...others] = weights;
  if (!first) throw new BnbError("joinRows: weights is empty, expected at least one.");
  let joined: Tensor | QuantizedTensor = first;
  for (const [i, next] of others.entries()) {
    const before = joined;
    try {
      joined = joinTwo(before, next);
    } finally {
      if (i > 0) before.dispose();
    }
  }
  return joined as W;
}

function joinTwo(a: Tensor | QuantizedTensor, b: Tensor | QuantizedTensor): Tensor | QuantizedTensor {
  if (a.shape.length !== 2 || b.shape.length !== 2 || a.shape[1] !== b.shape[1])
    throw new BnbError(`joinRows: ${format(a.shape)} and ${format(b.shape)} do not have as many columns each.`);
  const shape = [a.shape[0]! + b.shape[0]!, a.shape[1]!];
  if (a instanceof Tensor && b instanceof Tensor)
    return new Tensor(native.bnb_tensor_join(a.pointer, b.pointer), a.dtype, shape, a.device);
  if (!(a instanceof QuantizedTensor) || !(b instanceof QuantizedTensor))
    throw new BnbError(`joinRows: ${a} and ${b} are not of one kind, expected dense or quantised weights alone.`);
  const code = a.quantType ? Codebook.named(a.quantType) : Codebook.from(a.code);
  return new QuantizedTensor(
    native.bnb_quantized_join(a.pointer, b.pointer),
    shape,
    a.dtype,
    a.device,
    code,
    a.blocksize,
    0,
  );
}
