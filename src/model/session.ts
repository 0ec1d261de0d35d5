// Sessions: the tokens of one sequence that a cache holds, in step with it; forward, rewind, save and restore.
import { BnbError } from "../error.ts";
import type { Decoder, Segment } from "./decoder.ts";
import { type PagedCache, pagesOf, pageTokens } from "./pages.ts";

/**
 * One sequence of tokens and what the model remembers of it: ids in, logits out. Made by `model.session()`.
 *
 * @example
 * ```ts
 * using model = await Model.load("./tiny-llama");
 * using session = model.session();
 * const logits = session.forward([5, 6, 7]); // those after the last token
 * logits.length; // → 64
 * session.length; // → 3
 * session.rewind(2); // as if the last token had not been
 * const saved = session.save();
 * using other = model.session();
 * other.restore(saved);
 * other.tokens; // → [5, 6]
 * ```
 */
export class Session implements Disposable {
  /** @internal */
  readonly decoder: Decoder;
  /** @internal */
  readonly shared: PagedCache;
  /** Where the tokens' keys and values are; the last may hold none of them any more. */
  #pages: number[] = [];
  #tokens: number[] = [];
  #disposed = false;

  /** @internal Use `model.session()`. */
  constructor(decoder: Decoder, shared: PagedCache) {
    this.decoder = decoder;
    this.shared = shared;
  }

  /** The tokens that the cache holds. */
  get tokens(): readonly number[] {
    return this.#tokens;
  }

  /** How many. */
  get length(): number {
    return this.#tokens.length;
  }

  /** The most tokens that it can hold. */
  get capacity(): number {
    return this.shared.capacity;
  }

  /**
   * Feeds tokens to the model, and returns their logits.
   *
   * @param options.logits `"last"` for those after the last token, [vocabulary], the default; `"all"` for those after
   *   each, [ids, vocabulary]; `"none"`
   * @throws BnbError for an id that is not in the vocabulary, or if the tokens do not fit; the message says by how many
   */
  forward(ids: ArrayLike<number>, options: { logits?: "last" | "all" | "none" } = {}): Float32Array {
    const { logits = "last" } = options;
    const segment = this.segment(ids, logits);
    using result = this.decoder.forward([segment], this.shared.cache);
    this.advance(ids);
    return result?.read() ?? new Float32Array(0);
  }

  /** @internal What the decoder is to do with tokens that come next. */
  segment(ids: ArrayLike<number>, logits: Segment["logits"]): Segment {
    this.#live();
    checkIds(ids, this.decoder.architecture.vocabulary);
    const start = this.#tokens.length;
    const over = start + ids.length - this.capacity;
    if (over > 0)
      throw new BnbError(
        `session: ${ids.length} tokens after ${start} are ${over} more than the ${this.capacity} that fit: rewind, shorten the text, or make a session of a larger capacity.`,
      );
    this.#own(start, start + ids.length);
    return { pages: this.#pages.slice(0, pagesOf(start + ids.length)), start, ids, logits };
  }

  /** Sees to pages that tokens [start, end) can be written to: there, and held by nobody else. */
  #own(start: number, end: number): void {
    const { shared } = this;
    for (let i = Math.floor(start / pageTokens); i < pagesOf(end); i++) {
      const page = this.#pages[i];
      if (page !== undefined && !shared.isShared(page)) continue;
      const kept = Math.max(0, start - i * pageTokens);
      this.#pages[i] = page !== undefined && kept > 0 ? shared.copy(page, kept) : shared.take();
      if (page !== undefined) shared.giveBack([page]);
    }
  }

  /** Gives back the pages that hold nothing. */
  #trim(): void {
    this.shared.giveBack(this.#pages.splice(pagesOf(this.#tokens.length)));
  }

  /** @internal Notes tokens that the decoder has taken in. */
  advance(ids: ArrayLike<number>): void {
    for (let i = 0; i < ids.length; i++) this.#tokens.push(ids[i]!);
  }

  /** Forgets all tokens but the first `length`. */
  rewind(length: number): void {
    this.#live();
    if (!Number.isSafeInteger(length) || length < 0 || length > this.#tokens.length)
      throw new BnbError(
        `session.rewind: length is ${length}, expected 0 to the ${this.#tokens.length} tokens there are.`,
      );
    this.#tokens.length = length;
  }

  /** Rewinds to the longest prefix that these ids share with the session, and returns its length. */
  rewindTo(ids: ArrayLike<number>): number {
    let shared = 0;
    while (shared < ids.length && shared < this.#tokens.length && ids[shared] === this.#tokens[shared]) shared++;
    this.rewind(shared);
    this.#trim();
    return shared;
  }

  /**
   * @internal Takes over the first `length` tokens of another session of the same cache, which need not be read
   * again: whole pages are shared, and the last is copied.
   */
  adopt(other: Session, length: number): void {
    this.#live();
    const whole = other.#pages.slice(0, Math.floor(length / pageTokens));
    const rest = length % pageTokens;
    for (const page of whole) this.shared.share(page);
    const pages = rest > 0 ? [...whole, this.shared.copy(other.#pages[whole.length]!, rest)] : whole;
    this.shared.giveBack(this.#pages);
    this.#pages = pages;
    this.#tokens = other.#tokens.slice(0, length);
  }

  /** The tokens and what the model remembers of them, for {@link restore} by the same model. */
  save(): Uint8Array<ArrayBuffer> {
    this.#live();
    const header = new TextEncoder().encode(JSON.stringify({ ...this.#form, tokens: this.#tokens }));
    const { cache } = this.shared;
    const bytes = new Uint8Array(8 + header.length + cache.rowBytes * this.length);
    bytes.set(new TextEncoder().encode(magic));
    new DataView(bytes.buffer).setUint32(4, header.length, true);
    bytes.set(header, 8);
    for (const [page, tokens, at] of this.#parts())
      bytes.set(cache.read(page, tokens), 8 + header.length + cache.rowBytes * at);
    return bytes;
  }

  /**
   * Replaces what the session holds by what {@link save} returned. @throws BnbError for bytes that another model or
   * form of cache gave
   */
  restore(bytes: Uint8Array): void {
    this.#live();
    const { tokens, rows } = this.#parse(bytes);
    if (tokens.length > this.capacity)
      throw new BnbError(`session.restore: ${tokens.length} tokens, expected at most the ${this.capacity} that fit.`);
    checkIds(tokens, this.decoder.architecture.vocabulary);
    const { cache } = this.shared;
    this.#tokens = [];
    this.#trim();
    this.#own(0, tokens.length);
    this.#tokens = tokens;
    for (const [page, count, at] of this.#parts())
      cache.write(page, count, rows.subarray(cache.rowBytes * at, cache.rowBytes * (at + count)));
  }

  /** Its pages, how many tokens each holds, and the first of them. */
  *#parts(): Generator<[page: number, tokens: number, at: number], void, void> {
    for (let at = 0; at < this.length; at += pageTokens)
      yield [this.#pages[at / pageTokens]!, Math.min(pageTokens, this.length - at), at];
  }

  /** What must agree between who saves and who restores. */
  get #form() {
    const { family, hidden, vocabulary } = this.decoder.architecture;
    const { dtype, layers, heads, columns } = this.shared.cache;
    return { family, hidden, vocabulary, dtype, layers, heads, columns, page: pageTokens };
  }

  #parse(bytes: Uint8Array): { tokens: number[]; rows: Uint8Array } {
    const damaged = (why: string) =>
      new BnbError(`session.restore: the bytes are no saved session of this model: ${why}.`);
    if (bytes.length < 8 || new TextDecoder().decode(bytes.subarray(0, 4)) !== magic)
      throw damaged(`they do not begin with ${magic}`);
    const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
    if (length > bytes.length - 8) throw damaged("they were cut short");
    let header: { tokens?: unknown } & Record<string, unknown>;
    try {
      header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(8, 8 + length)));
    } catch {
      throw damaged("their header is no JSON");
    }
    const { tokens } = header;
    if (!Array.isArray(tokens)) throw damaged("their header has no tokens");
    for (const [name, value] of Object.entries(this.#form))
      if (header[name] !== value) throw damaged(`${name} is ${JSON.stringify(header[name])}, expected ${value}`);
    const rows = bytes.subarray(8 + length);
    const expected = tokens.length * this.shared.cache.rowBytes;
    if (rows.length !== expected) throw damaged(`${rows.length} bytes follow, expected ${expected}`);
    return { tokens, rows };
  }

  #live(): void {
    if (this.#disposed) throw new TypeError("Session used after dispose()");
  }

  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#tokens = [];
    this.#trim();
    this.shared.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

const magic = "BNBS";

function checkIds(ids: ArrayLike<number>, vocabulary: number): void {
  if (ids.length === 0) throw new BnbError("session: ids is empty, expected at least one token.");
  for (let i = 0; i < ids.length; i++)
    if (!Number.isInteger(ids[i]) || ids[i]! < 0 || ids[i]! >= vocabulary)
      throw new BnbError(`session: ids[${i}] is ${ids[i]}, expected an id of the vocabulary, 0 to ${vocabulary - 1}.`);
}
