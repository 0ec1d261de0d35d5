// Reads JSON that a file holds, which may be anything: byte by byte, as strict as Rust's serde_json, or as
// lenient as Python's json, whichever reads the same file elsewhere.

/** Deeper than any file has a reason to be; walking what is much deeper overflows the stack. */
const nestingMax = 100;

/** As much of a wrong value as a sentence quotes. */
const quotedMax = 200;

const [quote, backslash, comma, colon, minus, zero, nine] = [34, 92, 44, 58, 45, 48, 57];
const [openBrace, closeBrace, openBracket, closeBracket] = [123, 125, 91, 93];

const numberPattern = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;
const pythonNumber = /^(NaN|-?Infinity)$/;

export interface JsonOptions {
  /** Read NaN, Infinity, numbers beyond doubles and lone surrogates, as Python's json does. */
  readonly python?: boolean;
}

/**
 * A cursor over JSON text in UTF-8. Each method reads one value from where it stands. @throws SyntaxError where it
 * can't
 */
export class JsonReader {
  readonly #bytes: Buffer;
  readonly #python: boolean;
  #at = 0;
  #depth = 0;

  constructor(bytes: Uint8Array, { python = false }: JsonOptions = {}) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#python = python;
  }

  /** The first byte of the next value, as a character; empty at the end. */
  peek(): string {
    this.#space();
    return this.#at < this.#bytes.length ? String.fromCharCode(this.#bytes[this.#at]!) : "";
  }

  /** An object: `each` reads the value of a key. */
  object(each: (key: string) => void): void {
    this.#list(openBrace, closeBrace, () => {
      this.#space();
      const key = this.string();
      this.#expect(colon);
      each(key);
    });
  }

  /** A list: `each` reads an item. */
  array(each: () => void): void {
    this.#list(openBracket, closeBracket, each);
  }

  string(): string {
    this.#expect(quote);
    const start = this.#at;
    const bytes = this.#bytes;
    let at = start;
    let isPlain = true; // printable ASCII, which is its own text
    for (; at < bytes.length && bytes[at] !== quote; at++) {
      const byte = bytes[at]!;
      if (byte === backslash) at++;
      if (byte === backslash || byte < 32 || byte > 126) isPlain = false;
    }
    if (at >= bytes.length) throw this.#error("text that does not end", start - 1);
    this.#at = at + 1;
    if (isPlain) return bytes.toString("latin1", start, at);
    const text = this.#unescaped(start - 1, at + 1);
    if (this.#python || text.isWellFormed()) return text;
    throw this.#error("text with half of a surrogate pair", start - 1);
  }

  /**
   * A whole number from 0 to 2⁵³ - 1 without sign, point or exponent; `undefined` for another value, which is not read.
   */
  count(): number | undefined {
    this.#space();
    const start = this.#at;
    const bytes = this.#bytes;
    let at = start;
    let value = 0;
    for (; bytes[at]! >= zero && bytes[at]! <= nine; at++) value = 10 * value + (bytes[at]! - zero);
    const isLonger = isOfNumber(bytes[at]) || (bytes[start] === zero && at > start + 1);
    if (at === start || isLonger || !Number.isSafeInteger(value)) return undefined;
    this.#at = at;
    return value;
  }

  /** Any value. @param number makes one of a number's spelling */
  value(number: (source: string) => unknown = Number): unknown {
    switch (this.peek()) {
      case "{": {
        const entries: [string, unknown][] = [];
        this.object((key) => entries.push([key, this.value(number)]));
        return Object.fromEntries(entries); // which makes a property of every key, `__proto__` too
      }
      case "[": {
        const items: unknown[] = [];
        this.array(() => items.push(this.value(number)));
        return items;
      }
      case '"':
        return this.string();
      case "t":
        return this.#word("true", true);
      case "f":
        return this.#word("false", false);
      case "n":
        return this.#word("null", null);
      default:
        return number(this.#number());
    }
  }

  /** Passes over a value, and gives the beginning of its text. */
  skip(): string {
    this.#space();
    const start = this.#at;
    this.#pass();
    const text = this.#bytes.toString("utf8", start, Math.min(this.#at, start + quotedMax));
    return this.#at > start + quotedMax ? `${text} …` : text;
  }

  /** @throws SyntaxError unless nothing but space follows */
  end(): void {
    this.#space();
    if (this.#at < this.#bytes.length) throw this.#error("nothing", this.#at, "expected");
  }

  #pass(): void {
    const first = this.peek();
    if (first === "{") this.object(() => this.#pass());
    else if (first === "[") this.array(() => this.#pass());
    else this.value();
  }

  #space(): void {
    const bytes = this.#bytes;
    for (let byte = bytes[this.#at]; byte === 32 || byte === 10 || byte === 13 || byte === 9; byte = bytes[this.#at])
      this.#at++;
  }

  #expect(byte: number): void {
    this.#space();
    if (this.#bytes[this.#at] !== byte) throw this.#error(String.fromCharCode(byte), this.#at, "expected");
    this.#at++;
  }

  #list(open: number, close: number, each: () => void): void {
    this.#expect(open);
    if (++this.#depth > nestingMax) throw new SyntaxError(`lists and objects are nested more than ${nestingMax} deep`);
    this.#space();
    if (this.#bytes[this.#at] === close) this.#at++;
    else
      for (let isLast = false; !isLast; ) {
        each();
        this.#space();
        isLast = this.#bytes[this.#at] === close;
        if (!isLast && this.#bytes[this.#at] !== comma)
          throw this.#error(String.fromCharCode(close), this.#at, "expected");
        this.#at++;
      }
    this.#depth--;
  }

  /** Text with escapes or beyond ASCII, its quotes with it. */
  #unescaped(start: number, end: number): string {
    let literal: string;
    try {
      literal = utf8.decode(this.#bytes.subarray(start, end));
    } catch {
      throw this.#error("text that is not UTF-8", start);
    }
    try {
      return JSON.parse(literal);
    } catch {
      throw this.#error("text with a control character or a wrong escape", start);
    }
  }

  #number(): string {
    const start = this.#at;
    let at = start;
    while (isOfNumber(this.#bytes[at])) at++;
    const source = this.#bytes.toString("latin1", start, at);
    const isPython = this.#python && pythonNumber.test(source);
    if (!numberPattern.test(source) && !isPython) throw this.#error("a value", start, "expected");
    if (!this.#python && !Number.isFinite(Number(source))) throw this.#error("a number beyond all doubles", start);
    this.#at = at;
    return source;
  }

  #word<T>(word: string, value: T): T {
    if (this.#bytes.toString("latin1", this.#at, this.#at + word.length) !== word)
      throw this.#error("a value", this.#at, "expected");
    this.#at += word.length;
    return value;
  }

  #error(what: string, at: number, verb = "found"): SyntaxError {
    return new SyntaxError(`at byte ${at}: ${verb} ${what}`);
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Digits, letters and signs: what a number goes on with, and what can't follow one. */
function isOfNumber(byte: number | undefined): boolean {
  if (byte === undefined) return false;
  return (byte >= zero && byte <= nine) || byte === minus || byte === 43 || byte === 46 || isLetter(byte);
}

const isLetter = (byte: number) => (byte | 32) >= 97 && (byte | 32) <= 122;

/**
 * The one value of a JSON text. The last of two keys of one name counts, as elsewhere.
 *
 * @param number makes a value of a number's spelling
 * @throws SyntaxError where the text is not JSON, or is nested too deeply
 */
export function parseJson(bytes: Uint8Array, options: JsonOptions = {}, number?: (source: string) => unknown): unknown {
  const reader = new JsonReader(bytes, options);
  const value = reader.value(number);
  reader.end();
  return value;
}

/** Whether a value is a JSON object, and no list, text or number, whatever class stands for that. */
export function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;
}
