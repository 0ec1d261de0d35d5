// Codebooks: the values that codes stand for, named, computed as bitsandbytes does, or given by the user.
import { arrayLength } from "./dtype.ts";
import { Handle } from "./handle.ts";
import { formatValues, inspect } from "./inspect.ts";
import { type NativePointer, native, size } from "./native.ts";
import { Signature } from "./signature.ts";
import { floatsOf } from "./values.ts";

/**
 * The names of the built-in codebooks. 4-bit: `nf4`, `fp4`, `af4`. 8-bit: `dynamic` (signed), `dynamic_unsigned`, and
 * `int8`, a signed byte over 127. Normal float of 2, 3, 5 and 6 bits, made as QLoRA makes NF4: `nf2`, `nf3`, `nf5`,
 * `nf6`.
 */
export type CodebookName = (typeof codebookNames)[number];

/** Every one of them. Not marked as internal: the type above, which is public, is made of it. */
export const codebookNames = [
  ...(["nf4", "fp4", "af4", "dynamic", "dynamic_unsigned", "int8"] as const),
  ...(["nf2", "nf3", "nf5", "nf6"] as const),
] as const;

/** What the library holds for one: values, thresholds, order and search table. */
const codebookBytes = 22_000;

/**
 * The 2^k values that k-bit codes stand for, k from 2 to 8, prepared for quantising. A code is the nearest value's
 * index; values may come in any order.
 *
 * @example
 * ```ts
 * Codebook.named("nf4").values.slice(0, 3); // → [-1, -0.696, -0.525]
 * using steps = Codebook.from(Array.from({ length: 16 }, (_, i) => i / 15));
 * using w = Tensor.from(new Float32Array(64).fill(0.3));
 * using q = quantize4bit(w, { quantType: steps });
 * q.bits; // → 4
 * ```
 */
export class Codebook extends Handle {
  /** The name, where the values are those of a named codebook. */
  readonly codebookName: CodebookName | undefined;
  #values: Float32Array | undefined;

  private constructor(pointer: NativePointer, name?: CodebookName) {
    super("Codebook", pointer, codebookBytes);
    this.codebookName = name;
  }

  static readonly #named = new Map<CodebookName, Codebook>();

  /** A named codebook: one object for each, which `dispose()` leaves as it is. @throws BnbError for another name */
  static named(name: CodebookName): Codebook {
    const me = signatures.named;
    const made = Codebook.#named.get(name);
    if (made) return made;
    const pointer = native.bnb_codebook_named(me.choice(name, "name", codebookNames));
    const codebook = new Codebook(me.made(pointer), name);
    Codebook.#named.set(name, codebook);
    return codebook;
  }

  /**
   * A codebook of 4, 8, 16, 32, 64, 128 or 256 finite values. @throws BnbError for another count, a NaN or an
   * infinity
   */
  static from(values: readonly number[] | CodebookValues): Codebook {
    const me = signatures.from;
    const floats = floatsOf(me, values, "values");
    const length = arrayLength(floats);
    if (![4, 8, 16, 32, 64, 128, 256].includes(length))
      throw me.fail(`values has ${length} numbers, expected 4, 8, 16, 32, 64, 128 or 256.`);
    return new Codebook(me.made(native.bnb_codebook_from(floats, size(4 * length))));
  }

  /** @internal Takes over a native handle. */
  static over(pointer: NativePointer): Codebook {
    return new Codebook(pointer);
  }

  /** Frees the memory; a named codebook stays, for it is everybody's. */
  override dispose(): void {
    if (this.codebookName === undefined || Codebook.#named.get(this.codebookName) !== this) super.dispose();
  }

  /** The values by code. */
  get values(): Float32Array {
    if (!this.#values) {
      this.#values = new Float32Array(Number(native.bnb_codebook_size(this.pointer)));
      signatures.values.check(native.bnb_codebook_read(this.pointer, this.#values, size(this.#values.byteLength)));
    }
    return this.#values.slice();
  }

  override toString(): string {
    return `Codebook(${this.codebookName ?? `${2 ** this.bits} values`})`;
  }

  /** What console.log shows. */
  [inspect](): string {
    return this.disposed ? "Codebook disposed" : `${this} ${formatValues((at) => this.values[at]!, [2 ** this.bits])}`;
  }

  /** Bits of a code: 2 to 8. */
  get bits(): number {
    return Math.log2(Number(native.bnb_codebook_size(this.pointer)));
  }
}

/** The typed arrays that a codebook's values may stand in. */
export type CodebookValues = Float32Array | Float64Array | Float16Array | Int8Array | Uint8Array | Int32Array;

const signatures = {
  named: new Signature("Codebook.named"),
  from: new Signature("Codebook.from"),
  values: new Signature("Codebook.values"),
  dynamic: new Signature("createDynamicMap", { native: { max_exponent_bits: "maxExponentBits" } }),
  linear: new Signature("createLinearMap"),
  fp8: new Signature("createFp8Map"),
  normal: new Signature("createNormalMap"),
};

const bitsOf = (me: Signature, totalBits: number) => me.whole(totalBits, "totalBits", 2, 8);
const signOf = (me: Signature, signed: boolean) => Number(me.boolean(signed, "signed"));

/**
 * The dynamic tree map: the exponent's length varies, so that both small and large values are held well (Dettmers 2015,
 * 8-Bit Approximations for Parallelism in Deep Learning). Upstream: `functional.create_dynamic_map`.
 *
 * This map and the other `create…Map` functions give 2^totalBits values. Upstream pads them with zeros to 256 and
 * spends 8 bits on each code; the values, and which of them is nearest, are the same.
 *
 * @example
 * ```ts
 * using code = createDynamicMap(); // what 8-bit optimizers keep their states in
 * code.values.length; // → 256
 * code.values.slice(-3); // → [0.98, 0.99, 1]
 * ```
 */
export function createDynamicMap(signed = true, maxExponentBits = 7, totalBits = 8): Codebook {
  const me = signatures.dynamic;
  const bits = bitsOf(me, totalBits);
  me.whole(maxExponentBits, "maxExponentBits", 1, signed ? bits : bits - 1);
  return Codebook.over(me.made(native.bnb_codebook_dynamic(signOf(me, signed), maxExponentBits, bits)));
}

/**
 * Evenly spaced values in [-1, 1], or [0, 1] unsigned. A signed map with `addZero` has one distinct value fewer, and 0
 * twice; without it, the map has no 0. Upstream: `functional.create_linear_map`, which always adds the zero when there
 * are fewer than 8 bits.
 *
 * @example
 * ```ts
 * using code = createLinearMap();
 * code.values.slice(0, 2); // → [-1, -0.992]
 * ```
 */
export function createLinearMap(signed = true, totalBits = 8, addZero = true): Codebook {
  const me = signatures.linear;
  const zero = Number(me.boolean(addZero, "addZero"));
  return Codebook.over(me.made(native.bnb_codebook_linear(signOf(me, signed), bitsOf(me, totalBits), zero)));
}

/**
 * The values of a small float format, divided by the largest of them. Upstream: `functional.create_fp8_map`.
 *
 * @example
 * ```ts
 * using e4m3 = createFp8Map(true, 4, 3);
 * using x = Tensor.from(Float32Array.from({ length: 256 }, (_, i) => Math.sin(i)));
 * using q = quantizeBlockwise(x, { code: e4m3, blocksize: 256 });
 * q.bitsPerElement; // → 8.125
 * ```
 */
export function createFp8Map(signed = true, exponentBits = 5, precisionBits = 2, totalBits = 8): Codebook {
  const me = signatures.fp8;
  const sign = signOf(me, signed);
  const [exponent, precision] = [
    me.whole(exponentBits, "exponentBits", 1, 7),
    me.whole(precisionBits, "precisionBits", 0, 7),
  ];
  const bits = bitsOf(me, totalBits);
  if (exponent + precision + sign !== bits)
    throw me.fail(
      `exponentBits is ${exponent} and precisionBits ${precision}, which with${signed ? " a" : "out"} sign make no ${bits} bits.`,
    );
  return Codebook.over(me.made(native.bnb_codebook_fp8(sign, exponent, precision, bits)));
}

/**
 * Normal float: quantiles of the normal distribution, divided by the largest of them, and 0. Upstream:
 * `functional.create_normal_map`, for 4 bits only.
 *
 * @example
 * ```ts
 * using code = createNormalMap(); // NF4's values
 * code.values.length; // → 16
 * ```
 *
 * @param offset the largest value's quantile; by default the mean that QLoRA takes, ½ (1 − 1/2^(k+1) + 1 − 1/(2^(k+1) −
 * 2)), which is 0.9677083 for 4 bits
 * @param useExtraValue whether there is one more value above 0 than below; if not, 0 occurs twice
 */
export function createNormalMap(offset?: number, useExtraValue = true, totalBits = 4): Codebook {
  const me = signatures.normal;
  if (offset !== undefined && !(typeof offset === "number" && offset > 0.5 && offset < 1))
    throw me.wrong("offset", offset, "a number of more than 0.5 and less than 1");
  const extra = Number(me.boolean(useExtraValue, "useExtraValue"));
  return Codebook.over(me.made(native.bnb_codebook_normal(offset ?? 0, extra, bitsOf(me, totalBits))));
}
