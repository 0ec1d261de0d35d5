// Owns what a host hands to the kernels of metal/, made here from the definitions and not by csrc/: codebooks as
// struct kernel_codebook, and argument structs.

/** How a matrix is stored, in the words of metal/args.h. */
export const Store = { float32: 0, float16: 1, bfloat16: 2, int32: 5, codes: (bits: number) => 16 + bits } as const;

/** 64 bits as two words, low first. */
export const wide = (count: number): number[] => [count >>> 0, Math.floor(count / 2 ** 32)];

/** The exponent of a power of two, or 32 for other numbers. */
export const shiftOf = (block: number): number => (Number.isInteger(Math.log2(block)) ? Math.log2(block) : 32);

/**
 * Words of struct scale_layout. Where scales are quantised too, `nestedBlock` of them share a scale; their codes are
 * bytes, and the scales of those float32.
 */
export function scaleArguments(block: number, nestedBlock = 0): number[] {
  return [block, shiftOf(block), nestedBlock, nestedBlock ? shiftOf(nestedBlock) : 0, 8, Store.float32];
}

/**
 * Values ordered as codes are searched, and the thresholds between them: a code's value is above those that x
 * exceeds.
 */
export function searchOrder(values: Float32Array): { order: number[]; thresholds: Float32Array } {
  const order = [...values.keys()].sort((a, b) => values[a]! - values[b]! || a - b);
  const thresholds = Float32Array.from({ length: values.length - 1 }, (_, i) => {
    const [below, above] = [values[order[i]!]!, values[order[i + 1]!]!];
    const middle = Math.fround(Math.fround(below + above) / 2);
    const upperAtTie = values.length === 256 && i % 2 === 1 && below < above;
    return upperAtTie ? nextBelow(middle) : middle;
  });
  return { order, thresholds };
}

/** The next smaller float32. */
export function nextBelow(x: number): number {
  const bits = new Int32Array(Float32Array.of(x === 0 ? -0 : x).buffer);
  bits[0]! += x > 0 ? -1 : 1;
  return new Float32Array(bits.buffer)[0]!;
}

const bitsFloat = (bits: number) => new Float32Array(Uint32Array.of(bits).buffer)[0]!;

/** By the values themselves: a codebook gives another array each time it is asked. */
const known = new Map<string, Uint8Array<ArrayBuffer>>();

/** struct kernel_codebook of a codebook. */
export function kernelCodes(values: Float32Array): Uint8Array<ArrayBuffer> {
  const key = values.join();
  const struct = known.get(key) ?? makeCodes(values);
  known.set(key, struct);
  return struct;
}

function makeCodes(values: Float32Array): Uint8Array<ArrayBuffer> {
  const starts = 1540;
  const buckets = (24 << 6) + 1;
  const base = (127 - 24) << 6;
  const struct = new Uint8Array(5392);
  const { order, thresholds } = searchOrder(values);
  new Float32Array(struct.buffer, 0, 256).set(values);
  const limits = new Float32Array(struct.buffer, 1024, 256);
  limits.set(thresholds);
  limits[values.length - 1] = Number.POSITIVE_INFINITY;
  struct.set(order, 2048);
  let steps = 0;
  for (let bucket = 0; values.length === 256 && bucket < buckets; bucket++) {
    const least = bucket ? bitsFloat((bucket + base) << 17) : 0;
    const most = bucket === buckets - 1 ? 1 : bitsFloat(((bucket + base + 1) << 17) - 1);
    for (const [sign, from, to] of [[0, least, most] as const, [1, -most, -least] as const]) {
      const first = thresholds.filter((limit) => from > limit).length;
      const last = thresholds.filter((limit) => to > limit).length;
      struct[2304 + sign * starts + bucket] = first;
      steps = Math.max(steps, last - first);
    }
  }
  new Uint32Array(struct.buffer, 2304 + 2 * starts, 2).set([steps, values.length]);
  return struct;
}
