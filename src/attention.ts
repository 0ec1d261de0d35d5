// Attention and the cache of keys and values. Checks, kernels and fallbacks are in csrc/ops/attention.c and cache.c.
import { currentDevice, type Device, type DeviceName, deviceOf } from "./device.ts";
import { arrayBytes, arrayNameOf, type FloatDType } from "./dtype.ts";
import { Handle } from "./handle.ts";
import { attentionOptions, dtypes, native, size } from "./native.ts";
import { format } from "./shape.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** How a cache stores keys and values; as int8, each row of a head has a scale. */
export type CacheDType = "float32" | "float16" | "int8";

/** Options of {@link KvCache}. */
export interface KvCacheOptions {
  /** float16 by default. */
  dtype?: CacheDType | undefined;
  /** Layers of the model. */
  layers: number;
  /** Heads of keys and values in a layer. */
  heads: number;
  /** Columns of a head. */
  columns: number;
  /** How many sequences it has room for, each in a slot of its own; 1 by default. */
  slots?: number | undefined;
  /** How many tokens of each sequence it has room for, rounded up to a multiple of 16. */
  capacity: number;
  device?: Device | DeviceName | undefined;
}

/**
 * The keys and values that a model's attention has seen so far, for one sequence or several of them.
 *
 * It only holds the memory: {@link attention} writes rows to it, and the caller says how many rows of each slot count.
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
  /** Bytes of one token in all layers. */
  readonly rowBytes: number;
  #slots: number;
  #capacity: number;

  /** @throws BnbError if a size is not a positive whole number, or the device does not have the memory */
  constructor(options: KvCacheOptions) {
    const me = signatures.cache;
    const { dtype = "float16", layers, heads, columns, slots = 1, capacity, device } = me.members(options, "options");
    const count = (value: unknown, name: string) => size(me.whole(value, name, 1, countMost));
    const on = device === undefined ? currentDevice() : deviceOf(me, device);
    const pointer = me.made(
      native.bnb_cache_new(
        on.pointer,
        me.code(dtype, "dtype", cacheDtypes),
        count(layers, "layers"),
        count(slots, "slots"),
        count(heads, "heads"),
        count(capacity, "capacity"),
        count(columns, "columns"),
      ),
    );
    const rowBytes = Number(native.bnb_cache_row_bytes(pointer));
    super("KvCache", pointer, rowBytes * slots * capacity);
    this.dtype = dtype;
    this.device = on;
    this.layers = layers;
    this.heads = heads;
    this.columns = columns;
    this.rowBytes = rowBytes;
    this.#slots = slots;
    this.#capacity = roundUp(capacity);
  }

  /** How many sequences there is room for. */
  get slots(): number {
    return this.#slots;
  }

  /** How many tokens of each sequence there is room for. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Bytes in memory. */
  get byteLength(): number {
    return this.rowBytes * this.#slots * this.#capacity;
  }

  /** Changes the number of slots or tokens; what still fits is kept. */
  resize(options: { slots?: number; capacity?: number }): void {
    const me = signatures.resize;
    const { slots = this.#slots, capacity = this.#capacity } = me.members(options, "options");
    const [rows, tokens] = [me.whole(slots, "slots", 1, countMost), me.whole(capacity, "capacity", 1, countMost)];
    me.check(native.bnb_cache_resize(this.pointer, size(rows), size(tokens)));
    this.#slots = slots;
    this.#capacity = roundUp(capacity);
  }

  /** The first `length` tokens of a slot as bytes, for {@link write} on a cache of the same layers, heads and dtype. */
  read(slot: number, length: number): Uint8Array<ArrayBuffer> {
    const me = signatures.read;
    const bytes = new Uint8Array(this.rowBytes * this.#span(me, slot, length));
    me.check(native.bnb_cache_read(this.pointer, size(slot), size(length), bytes, size(bytes.length)));
    return bytes;
  }

  /** Puts back what {@link read} gave, into any slot. */
  write(slot: number, length: number, bytes: Uint8Array): void {
    const me = signatures.write;
    this.#span(me, slot, length);
    if (arrayNameOf(bytes) !== "Uint8Array") throw me.wrong("bytes", bytes, "a Uint8Array");
    const expected = this.rowBytes * length;
    const given = arrayBytes(bytes);
    if (given !== expected) throw me.fail(`bytes has ${given}, expected ${expected}: ${this.rowBytes} for each token.`);
    me.check(native.bnb_cache_write(this.pointer, size(slot), size(length), bytes, size(given)));
  }

  #span(me: Signature, slot: number, length: number): number {
    me.whole(slot, "slot", 0, this.#slots - 1);
    return me.whole(length, "length", 1, this.#capacity);
  }
}

const roundUp = (capacity: number) => Math.ceil(capacity / 16) * 16;

/** The most of anything that a cache has. */
const countMost = 2 ** 20;

const { float32, float16, int8 } = dtypes;
const cacheDtypes = { float32, float16, int8 } as const;

/** Options of {@link attention}. */
export interface AttentionOptions {
  /** Heads of queries. */
  heads: number;
  /** Heads of keys and values; `heads` is a multiple of it, and the default. */
  kvHeads?: number | undefined;
  /** [m, kvHeads · d]: keys and values, where `q` holds queries alone. */
  k?: Tensor | undefined;
  v?: Tensor | undefined;
  /** What q · k is multiplied by; d^-0.5 by default. */
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
  /**
   * int32 [texts, n]: rows name a text instead of a slot, and its keys lie in so many slots of the cache, which are
   * pages then, and may be shared (Kwon et al. 2023): key t in slot `pages[text, t / capacity]`, at t % capacity. The
   * cache's capacity must be a power of two.
   */
  pages?: Tensor<"int32"> | undefined;
}

/**
 * Attention of m rows, which may belong to several sequences: `softmax(scale · q · kᵀ) · v` for each head (Vaswani et
 * al. 2017). The rows' own keys and values are written to the cache first. Upstream:
 * `torch.nn.functional.scaled_dot_product_attention`.
 *
 * `rows` holds four numbers for each row: its slot in the cache, its position, and the range of keys that it sees, the
 * end excluded. That is `[0, p, 0, p + 1]` for causal attention and `[0, p, max(0, p + 1 - w), p + 1]` for a window of
 * w. Keys are counted by position; without a cache they are the rows themselves, counted from 0.
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
 * @throws BnbError if the shapes, dtypes or devices do not fit, or (on the CPU) a row names a slot, position or key
 * that does not exist
 */
export function attention<D extends FloatDType>(
  q: Tensor<D>,
  rows: Tensor<"int32">,
  options: AttentionOptions,
): Tensor<D> {
  const me = signatures.attention;
  const given = me.members(options, "options");
  const { heads, kvHeads = heads, k, v, cache, layer = 0, softcap = 0, normOffset = 0, normEps = 1e-6 } = given;
  const input = me.tensor(q, "q");
  const shape = q.shape;
  if (shape.length !== 2) throw me.fail(`q is ${format(shape)}, expected [m, columns].`);
  const [all, pairs] = [me.whole(heads, "heads", 1, 2 ** 20), me.whole(kvHeads, "kvHeads", 1, 2 ** 20)];
  const keys = me.tensorIf(k, "k");
  const columns = shape[1]! / (keys ? all : all + 2 * pairs);
  const { scale = columns ** -0.5 } = given;
  const numbers = {
    heads,
    kvHeads,
    scale: me.finite(scale, "scale"),
    softcap: me.notNegative(softcap, "softcap"),
    normOffset: me.finite(normOffset, "normOffset"),
    normEps: me.notNegative(normEps, "normEps"),
  };
  const pointer = native.bnb_attention(
    Float64Array.from(attentionOptions, (name) => numbers[name]),
    input,
    keys,
    me.tensorIf(v, "v"),
    me.tensor(rows, "rows"),
    me.tensorIf(given.rope, "rope"),
    me.tensorIf(given.qNorm, "qNorm"),
    me.tensorIf(given.kNorm, "kNorm"),
    me.tensorIf(given.bias, "bias"),
    cache === undefined ? null : me.cache(cache, "cache"),
    me.whole(layer, "layer", 0, 2 ** 31),
    me.tensorIf(given.pages, "pages"),
  );
  return new Tensor(me.made(pointer), q.dtype, [shape[0]!, columns * heads], q.device);
}

const norms = { q_norm: "qNorm", k_norm: "kNorm", norm_eps: "normEps", norm_offset: "normOffset", kv_heads: "kvHeads" };
const tables = ["rope", "bias", "qNorm", "kNorm", "normEps", "normOffset"];

const signatures = {
  attention: new Signature("attention", {
    options: ["heads", "kvHeads", "k", "v", "scale", "softcap", ...tables, "cache", "layer", "pages"],
    native: norms,
  }),
  cache: new Signature("KvCache", { options: ["dtype", "layers", "heads", "columns", "slots", "capacity", "device"] }),
  resize: new Signature("KvCache.resize", { options: ["slots", "capacity"] }),
  read: new Signature("KvCache.read"),
  write: new Signature("KvCache.write"),
};
