// Owns attention and the cache of keys and values. Checks, kernels and fallbacks are in csrc/ops/attention.c and cache.c.
import { currentDevice, type Device } from "./device.ts";
import { dtypeCode, type FloatDType } from "./dtype.ts";
import { BnbError } from "./error.ts";
import { Handle } from "./handle.ts";
import { attentionOptions, check, type NativePointer, native, size } from "./native.ts";
import { format } from "./shape.ts";
import { Tensor } from "./tensor.ts";

/** How a cache holds keys and values: int8 has a scale for each row of a head. */
export type CacheDType = "float32" | "float16" | "int8";

/** What a {@link KvCache} is made for. */
export interface KvCacheOptions {
  /** float16 by default. */
  dtype?: CacheDType | undefined;
  /** Layers of the model. */
  layers: number;
  /** Heads of keys and values in a layer. */
  heads: number;
  /** Columns of a head. */
  columns: number;
  /** Sequences; 1 by default. */
  slots?: number | undefined;
  /** Tokens of each, rounded up to a multiple of 16. */
  capacity: number;
  device?: Device | undefined;
}

/**
 * The keys and values that a model's attention has seen so far, for one sequence or several of them.
 *
 * It holds memory and nothing else: {@link attention} puts rows in, and says how many of a slot's count.
 *
 * @example
 * ```ts
 * using cache = new KvCache({ layers: 2, heads: 1, columns: 64, capacity: 100 });
 * cache.capacity; // → 112
 * cache.rowBytes; // → 512
 * cache.resize({ capacity: 200 });
 * const saved = cache.read(0, 50); // the first 50 tokens of slot 0
 * cache.write(0, 50, saved);
 * ```
 */
export class KvCache extends Handle {
  readonly dtype: CacheDType;
  readonly device: Device;
  readonly layers: number;
  readonly heads: number;
  readonly columns: number;
  /** Bytes of a token over all layers. */
  readonly rowBytes: number;
  #slots: number;
  #capacity: number;

  /** @throws BnbError if a size is no whole number from 1 on, or the device has not so much memory */
  constructor(options: KvCacheOptions) {
    const { dtype = "float16", layers, heads, columns, slots = 1, capacity, device = currentDevice() } = options;
    for (const [name, value] of Object.entries({ layers, heads, columns, slots, capacity })) checkCount(value, name);
    const pointer = native.bnb_cache_new(
      device.pointer,
      dtypeCode(dtype, "KvCache"),
      ...([layers, slots, heads, capacity, columns].map(size) as [Size, Size, Size, Size, Size]),
    );
    const rowBytes = pointer === null ? 0 : Number(native.bnb_cache_row_bytes(pointer));
    super(pointer, rowBytes * slots * capacity);
    this.dtype = dtype;
    this.device = device;
    this.layers = layers;
    this.heads = heads;
    this.columns = columns;
    this.rowBytes = rowBytes;
    this.#slots = slots;
    this.#capacity = roundUp(capacity);
  }

  /** Sequences that there is room for. */
  get slots(): number {
    return this.#slots;
  }

  /** Tokens of each that there is room for. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Bytes in memory. */
  get byteLength(): number {
    return this.rowBytes * this.#slots * this.#capacity;
  }

  /** Makes room for other numbers of slots and tokens; what there is room for stays. */
  resize({ slots = this.#slots, capacity = this.#capacity }: { slots?: number; capacity?: number }): void {
    checkCount(slots, "slots");
    checkCount(capacity, "capacity");
    check(native.bnb_cache_resize(this.pointer, size(slots), size(capacity)));
    this.#slots = slots;
    this.#capacity = roundUp(capacity);
  }

  /** The first `length` tokens of a slot as bytes, for {@link write} on a cache of the same layers, heads and dtype. */
  read(slot: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(this.rowBytes * this.#span(slot, length));
    check(native.bnb_cache_read(this.pointer, size(slot), size(length), bytes, size(bytes.length)));
    return bytes;
  }

  /** Puts back what {@link read} gave, into any slot. */
  write(slot: number, length: number, bytes: Uint8Array): void {
    this.#span(slot, length);
    check(native.bnb_cache_write(this.pointer, size(slot), size(length), bytes, size(bytes.length)));
  }

  /** Checks numbers that cross to C as a `size_t`, and that there are bytes to point to. */
  #span(slot: number, length: number): number {
    checkCount(slot + 1, "slot");
    checkCount(length, "length");
    return length;
  }
}

type Size = ReturnType<typeof size>;

const roundUp = (capacity: number) => Math.ceil(capacity / 16) * 16;

function checkCount(value: number, name: string): void {
  if (!Number.isSafeInteger(value) || value < 1 || value > 2 ** 40)
    throw new BnbError(`KvCache: ${name} is ${value}, expected a whole number of at least 1.`);
}

/** What {@link attention} is told beside the queries and the rows. */
export interface AttentionOptions {
  /** Heads of queries. */
  heads: number;
  /** Heads of keys and values, which divide them; as many by default. */
  kvHeads?: number | undefined;
  /** [m, kvHeads · d]: keys and values, where `q` holds queries alone. */
  k?: Tensor | undefined;
  v?: Tensor | undefined;
  /** Scores are q · k times this; d^-0.5 by default. */
  scale?: number | undefined;
  /** Scores become c · tanh(score / c), as in Gemma 2. */
  softcap?: number | undefined;
  /** float32 [positions, r]: the cosines of a position's r / 2 angles, then their sines (RoPE, Su et al. 2021). */
  rope?: Tensor<"float32"> | undefined;
  /** [d] each: RMS norms of the heads of queries and keys, before they are rotated. */
  qNorm?: Tensor | undefined;
  kNorm?: Tensor | undefined;
  normEps?: number | undefined;
  normOffset?: number | undefined;
  /** float32 [heads, 2w - 1]: added to the score of a key that lies t after the row, in column t + w - 1. */
  bias?: Tensor<"float32"> | undefined;
  /** Where keys and values go and come from; without it the rows attend to each other. */
  cache?: KvCache | undefined;
  layer?: number | undefined;
}

/**
 * Attention of m rows, which may belong to several sequences: `softmax(scale · q · kᵀ) · v` for each head (Vaswani et al.
 * 2017). First the rows' own keys and values go to the cache. Upstream: `scaled_dot_product_attention`.
 *
 * `rows` says of each row its slot in the cache, its position, and the keys that it sees, from the first to before the
 * last: `[0, p, 0, p + 1]` for causal attention, `[0, p, max(0, p + 1 - w), p + 1]` for a window of w. Keys are counted by
 * position; without a cache they are the rows themselves, counted from 0.
 *
 * @example
 * ```ts
 * using qkv = Tensor.from([1, 0, 1, 0, 5, 6, 0, 1, 0, 1, 7, 8], [2, 6]); // two rows of one head of two columns
 * using rows = Tensor.from(Int32Array.of(0, 0, 0, 1, 0, 1, 0, 2), [2, 4]); // causal
 * using y = attention(qkv, rows, { heads: 1 });
 * y.read(); // → [5, 6, 6.34, 7.34]
 * ```
 *
 * @param q [m, heads · d], or [m, (heads + 2 kvHeads) · d] with keys and values; float32, float16 or bfloat16
 * @param rows int32 [m, 4]
 * @returns [m, heads · d] in q's dtype
 * @throws BnbError if the shapes, dtypes or devices do not fit, or (on the CPU) a row names what is not there
 */
export function attention<D extends FloatDType>(
  q: Tensor<D>,
  rows: Tensor<"int32">,
  options: AttentionOptions,
): Tensor<D> {
  const { heads, kvHeads = heads, k, v, cache, layer = 0 } = options;
  if (q.shape.length !== 2) throw new BnbError(`attention: q is ${format(q.shape)}, expected [m, columns].`);
  const columns = q.shape[1]! / (k || v ? heads : heads + 2 * kvHeads);
  const numbers = {
    heads,
    kvHeads,
    scale: options.scale ?? columns ** -0.5,
    softcap: options.softcap ?? 0,
    normOffset: options.normOffset ?? 0,
    normEps: options.normEps ?? 1e-6,
  };
  const pointer = native.bnb_attention(
    Float64Array.from(attentionOptions, (name) => numbers[name]),
    q.pointer,
    k?.pointer ?? null,
    v?.pointer ?? null,
    rows.pointer,
    options.rope?.pointer ?? null,
    options.qNorm?.pointer ?? null,
    options.kNorm?.pointer ?? null,
    options.bias?.pointer ?? null,
    cache?.pointer ?? null,
    layer,
  );
  return new Tensor(pointer as NativePointer | null, q.dtype, [q.shape[0]!, columns * heads], q.device);
}
