// The cache that sessions share: pages of tokens, which a session takes as it grows, gives back, and may have in
// common with others whose texts begin alike (Kwon et al. 2023).
import type { CacheDType } from "../attention.ts";
import { BnbError } from "../error.ts";
import type { ModelCache } from "./cache.ts";
import type { Decoder } from "./decoder.ts";

/** Options of {@link Model.session}. */
export interface SessionOptions {
  /** The most tokens that the session can hold; by default as many as the model was made for. */
  capacity?: number | undefined;
  /** How keys and values are held: float16 by default. */
  cacheDtype?: CacheDType | undefined;
}

/** Tokens of a page. */
export const pageTokens = 32;

/** Pages that a fresh cache has for each session: it grows as it is needed. */
const firstPages = 8;

/** The cache of some sessions: its slots are their pages. It goes with the last of them. */
export class PagedCache {
  readonly cache: ModelCache;
  /** The most tokens that a session may hold. */
  readonly capacity: number;
  /** By page, how many sessions hold it. */
  readonly #holders: number[];
  readonly #free: number[];
  readonly #most: number;
  #sessions: number;

  constructor(decoder: Decoder, sessions: number, options: SessionOptions) {
    const { positions } = decoder.architecture;
    const { capacity = positions, cacheDtype = "float16" } = options;
    if (!Number.isSafeInteger(capacity) || capacity < 1 || capacity > positions)
      throw new BnbError(`session: capacity is ${capacity}, expected 1 to the ${positions} positions of the model.`);
    this.capacity = capacity;
    this.#sessions = sessions;
    // A session that writes into a page that it shares needs one more for a moment.
    this.#most = sessions * (pagesOf(capacity) + 1);
    const slots = Math.min(this.#most, sessions * firstPages);
    this.cache = decoder.cache({ slots, capacity: pageTokens, dtype: cacheDtype });
    this.#holders = new Array<number>(slots).fill(0);
    this.#free = Array.from({ length: slots }, (_, i) => slots - 1 - i);
  }

  /** Tokens that there is room for in the pages that are held, each counted once. */
  get tokensHeld(): number {
    return pageTokens * (this.#holders.length - this.#free.length);
  }

  /** A page for one holder. @throws BnbError if there is no memory for more of them */
  take(): number {
    if (this.#free.length === 0) this.#grow();
    const page = this.#free.pop()!;
    this.#holders[page] = 1;
    return page;
  }

  share(page: number): void {
    this.#holders[page]!++;
  }

  isShared(page: number): boolean {
    return this.#holders[page]! > 1;
  }

  giveBack(pages: readonly number[]): void {
    for (const page of pages) if (--this.#holders[page]! === 0) this.#free.push(page);
  }

  /** Another page with the first tokens of this one. */
  copy(page: number, tokens: number): number {
    const made = this.take();
    this.cache.write(made, tokens, this.cache.read(page, tokens));
    return made;
  }

  #grow(): void {
    const [had, slots] = [this.#holders.length, Math.min(this.#most, 2 * this.#holders.length)];
    this.cache.resize({ slots });
    for (let page = slots - 1; page >= had; page--) this.#free.push(page);
    for (let page = had; page < slots; page++) this.#holders.push(0);
  }

  /** Called by each session once. */
  release(): void {
    if (--this.#sessions === 0) this.cache.dispose();
  }
}

/** How many pages so many tokens take. */
export const pagesOf = (tokens: number) => Math.ceil(tokens / pageTokens);
