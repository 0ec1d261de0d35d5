// The words of the caller: a public function's name and what it calls its arguments. Every check of an argument, and
// every failure of the native library, speaks through the signature of the function that was called.
import { arrayNameOf } from "./dtype.ts";
import { BnbError, type BnbErrorCode } from "./error.ts";
import { type HandleKind, NativeObject } from "./handle.ts";
import { lastError, type NativePointer } from "./native.ts";
import { format, type Shape, sizeOf } from "./shape.ts";

/** How a message quotes a text that is as long as its maker liked. */
const quotedMax = 80;

/** What a value is, for messages: never by code of the value's own. */
export function show(value: unknown): string {
  switch (typeof value) {
    case "string":
      return value.length > quotedMax ? `${JSON.stringify(value.slice(0, quotedMax))}…` : JSON.stringify(value);
    case "function":
      return "a function";
    case "bigint":
      return `${value}n`;
    case "object":
      return value === null ? "null" : showObject(value);
    default:
      return String(value);
  }
}

function showObject(value: object): string {
  const kind = NativeObject.kindOf(value) ?? arrayNameOf(value);
  if (kind) return withArticle(kind);
  if (Array.isArray(value)) return value.length > 8 ? "an Array" : `[${value.map(showElement).join(", ")}]`;
  const name: unknown = value.constructor?.name;
  return typeof name !== "string" || name === "" || name === "Object" ? "a plain object" : withArticle(name);
}

const showElement = (value: unknown) => (typeof value === "object" && value !== null ? "…" : show(value));

const withArticle = (name: string) => `${/^[AEIO]/i.test(name) ? "an" : "a"} ${name}`;

/** `a, b or c` */
const listed = (names: readonly string[]) =>
  names.length === 1 ? names[0]! : `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;

/** `"a", "b" or "c"` */
const oneOf = (choices: readonly string[]) => listed(choices.map((choice) => JSON.stringify(choice)));

/** Whether a value can be taken for an object of options: it is none of the kinds that have another meaning. */
export function isOptions(value: unknown): value is object {
  return (
    typeof value === "object" &&
    Object.prototype.toString.call(value) === "[object Object]" &&
    NativeObject.kindOf(value) === undefined
  );
}

/**
 * Whether a value can hold objects, one after the other: typed arrays, which hold numbers, can't, nor what stands for
 * one.
 */
export function isIterable(value: unknown): value is Iterable<unknown> {
  if (typeof value !== "object" || value === null) return false;
  const iterator: unknown = Reflect.get(value, Symbol.iterator);
  return typeof iterator === "function" && iterator !== Uint8Array.prototype[Symbol.iterator];
}

/** Whether a value is a number that a 32-bit float can hold, if not exactly. */
export const isFloat = (value: unknown): value is number =>
  typeof value === "number" && Number.isFinite(Math.fround(value));

/** What else a signature says beside the function's name. */
interface Words {
  /** The members of the function's options object. */
  readonly options?: readonly string[];
  /** The C library's names of arguments, where the function has others: `{ scale: "factor" }`. */
  readonly native?: Readonly<Record<string, string>>;
}

/** The name of a public function, and what it calls its arguments. */
export class Signature {
  readonly name: string;
  readonly #options: readonly string[];
  readonly #words: Readonly<Record<string, string>>;
  readonly #pattern: RegExp;

  constructor(name: string, { options = [], native = {} }: Words = {}) {
    this.name = name;
    this.#options = options;
    this.#words = native;
    this.#pattern = new RegExp(`\\b(?:${Object.keys(native).join("|")})\\b`, "g");
  }

  /** The same words for another function, such as a constructor that calls this one. */
  as(name: string): Signature {
    return new Signature(name, { options: this.#options, native: this.#words });
  }

  // ── Failures ─────────────────────────────────────────────────────────────────────────────────────────────────────

  /** A failure of this function. */
  fail(sentence: string, code?: BnbErrorCode): BnbError {
    return new BnbError(`${this.name}: ${sentence}`, code);
  }

  /** An argument that is not what it should be. */
  wrong(argument: string, value: unknown, expected: string): BnbError {
    return this.fail(`${argument} is ${show(value)}, expected ${expected}.`);
  }

  /**
   * A handle that a native function returned. @throws BnbError for null: the function's failure, in the caller's
   * words
   */
  made(pointer: NativePointer | null): NativePointer {
    if (pointer === null) throw this.#nativeFailure();
    return pointer;
  }

  /** @throws BnbError unless the status is OK */
  check(status: number): void {
    if (status !== 0) throw this.#nativeFailure();
  }

  /** What the library said, less its own name of the operation, with its names of arguments put into the caller's. */
  #nativeFailure(): BnbError {
    const { message, code } = lastError();
    const said = message.replace(/^[a-z0-9_]+: /, "");
    const words = this.#words;
    const spoken = said.replace(this.#pattern, (word) => words[word] ?? word);
    return this.fail(/[.!?]$/.test(spoken) ? spoken : `${spoken}.`, code);
  }

  // ── Arguments ────────────────────────────────────────────────────────────────────────────────────────────────────

  /** The address of a tensor that has elements. */
  tensor(value: unknown, argument: string): NativePointer {
    const pointer = this.#handle(value, argument, "Tensor");
    if (NativeObject.isEmpty(value as NativeObject))
      throw this.fail(`${argument} is ${value}, expected at least one element.`);
    return pointer;
  }

  /** The address of a tensor that may have no rows, as a batch may: which is for the caller to look at. */
  batch(value: unknown, argument: string): NativePointer {
    return this.#handle(value, argument, "Tensor");
  }

  /** The address of a tensor that may be left out, null then. */
  tensorIf(value: unknown, argument: string): NativePointer | null {
    return value === undefined ? null : this.tensor(value, argument);
  }

  quantized(value: unknown, argument: string): NativePointer {
    return this.#handle(value, argument, "QuantizedTensor");
  }

  codebook(value: unknown, argument: string): NativePointer {
    return this.#handle(value, argument, "Codebook");
  }

  cache(value: unknown, argument: string): NativePointer {
    return this.#handle(value, argument, "KvCache");
  }

  device(value: unknown, argument = "device"): NativePointer {
    return this.#handle(value, argument, "Device");
  }

  #handle(value: unknown, argument: string, kind: HandleKind): NativePointer {
    const pointer = NativeObject.pointerOf(value, kind);
    if (pointer === undefined) throw this.wrong(argument, value, withArticle(kind));
    return pointer;
  }

  /** Which of several kinds of handle a value is. @param also what else the argument may be, for the message */
  kind<K extends HandleKind>(value: unknown, argument: string, kinds: readonly K[], also: readonly string[] = []): K {
    const kind = NativeObject.kindOf(value);
    if (kinds.includes(kind as K)) return kind as K;
    throw this.wrong(argument, value, listed([...kinds, ...also].map(withArticle)));
  }

  /** One of the classes that are no native handles themselves: each knows its own objects by a private field. */
  object<T>(value: unknown, argument: string, kind: { readonly name: string; is(value: unknown): value is T }): T {
    if (!kind.is(value)) throw this.wrong(argument, value, withArticle(kind.name));
    return value;
  }

  /** An object of options, of which none is unknown. Left out, there are none. */
  options<T extends object>(value: T | undefined): T {
    return value === undefined ? ({} as T) : this.members(value, "options");
  }

  /** An object of which no member is unknown. */
  members<T extends object>(value: T, argument: string): T {
    const names = this.#options;
    if (!isOptions(value)) throw this.wrong(argument, value, `an object of ${names.join(", ")}`);
    for (const name in value)
      if (!names.includes(name))
        throw this.fail(`${argument} has no ${name.slice(0, quotedMax)}, expected ${names.join(", ") || "none"}.`);
    return value;
  }

  /** A number that is finite as a 32-bit float too, as the library takes most. */
  finite(value: unknown, argument: string): number {
    if (!isFloat(value)) throw this.wrong(argument, value, "a finite number");
    return value;
  }

  /** A finite number that is not negative. */
  notNegative(value: unknown, argument: string): number {
    if (!isFloat(value) || value < 0) throw this.wrong(argument, value, "a finite number of at least 0");
    return value;
  }

  whole(value: unknown, argument: string, least = 0, most = Number.MAX_SAFE_INTEGER): number {
    if (typeof value === "number" && Number.isInteger(value) && value >= least && value <= most) return value;
    const range = most === Number.MAX_SAFE_INTEGER ? `of at least ${least}` : `from ${least} to ${most}`;
    throw this.wrong(argument, value, `a whole number ${range}`);
  }

  boolean(value: unknown, argument: string): boolean {
    if (typeof value !== "boolean") throw this.wrong(argument, value, "true or false");
    return value;
  }

  text(value: unknown, argument: string): string {
    if (typeof value !== "string") throw this.wrong(argument, value, "a string");
    return value;
  }

  choice<T extends string>(value: unknown, argument: string, choices: readonly T[]): T {
    if (!choices.includes(value as T)) throw this.wrong(argument, value, oneOf(choices));
    return value as T;
  }

  /** A row of a table, by the value's name: what C's enums are called here. */
  code<T extends string>(value: unknown, argument: string, table: Readonly<Record<T, number>>): number {
    const code = typeof value === "string" && Object.hasOwn(table, value) ? table[value as T] : undefined;
    if (code === undefined) throw this.wrong(argument, value, oneOf(Object.keys(table)));
    return code;
  }

  /** A copy of a shape, which its giver can no longer change. A dimension may be 0: there is no element then. */
  shape(value: unknown, argument = "shape", least = 0): Shape {
    if (!Array.isArray(value)) throw this.wrong(argument, value, "an array of dimensions, such as [2, 3]");
    const shape: number[] = [];
    const { length } = value;
    for (let i = 0; i < length; i++) shape.push(value[i]);
    for (const dimension of shape)
      if (!Number.isSafeInteger(dimension) || dimension < least)
        throw this.fail(
          `${argument} is ${show(shape)}, expected whole numbers of at least ${least} in every dimension.`,
        );
    if (!Number.isSafeInteger(sizeOf(shape)))
      throw this.fail(`${argument} is ${format(shape)}, which has more elements than can be counted.`);
    return shape;
  }
}
