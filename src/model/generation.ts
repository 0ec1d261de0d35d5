// Texts as they grow: what each feeds the decoder next, what it takes of the logits, and when it ends.
import { BnbError } from "../error.ts";
import type { Tensor } from "../tensor.ts";
import { type Largest, topK } from "../topk.ts";
import type { Constraint } from "./constraint.ts";
import type { Segment } from "./decoder.ts";
import { logprobsOf, Sampler, type SamplingOptions, type TokenLogprob } from "./sample.ts";
import type { Session } from "./session.ts";
import { StopFilter, TextStream } from "./stream.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Options of a text that a model writes. */
export interface GenerateOptions extends SamplingOptions {
  /** The most tokens to write; 256 by default, and never more than fit. */
  maxTokens?: number | undefined;
  /** Strings at which the text ends; they are no part of it. */
  stop?: string | readonly string[] | undefined;
  /** Ends the text with the signal's reason as an error. */
  signal?: AbortSignal | undefined;
  /** Write on where the model would end. */
  ignoreEos?: boolean | undefined;
  /** List the logprob of each token, and of this many of the likeliest tokens in its place. */
  logprobs?: number | undefined;
  /**
   * Where the last tokens occurred before, guess that up to this many of the tokens after them follow again (prompt
   * lookup, Saxena 2023). The text stays the same, and comes faster where it repeats what it was given. 0 by default.
   */
  promptLookup?: number | undefined;
}

/**
 * Why a text ended: `"stop"`: by itself or at a stop string; `"length"`: at the most tokens; `"abort"`: its reader
 * stopped reading.
 */
export type FinishReason = "stop" | "length" | "abort";

/** How many tokens a text took, under the names of OpenAI's API. */
export interface Usage {
  readonly promptTokens: number;
  /** How many of the prompt's tokens the session held already. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
}

/** A written token, its log probability, and those of the likeliest tokens in its place. */
export interface GeneratedToken extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
}

/** Longest runs of last tokens that prompt lookup looks for. */
const lookupLongest = 3;

/**
 * A text that grows by steps, over a session. {@link step} runs any number of them at once.
 *
 * @internal
 */
export class Generation {
  readonly session: Session;
  readonly #options: GenerateOptions;
  readonly #sampler: Sampler;
  readonly #stream: TextStream | undefined;
  readonly #stops: StopFilter;
  readonly #eos: ReadonlySet<number>;
  readonly #constraint: Constraint | undefined;
  readonly #maxTokens: number;
  readonly #promptTokens: number;
  readonly #cachedTokens: number;
  /** Tokens that the decoder has not seen, then those that are guessed to follow. */
  #pending: number[];
  #guesses: number[] = [];
  #feeding = 0;
  #text = "";
  /** The written ids. */
  readonly ids: number[] = [];
  /** One for each written id, if they were asked for. */
  readonly logprobs: GeneratedToken[] = [];
  finishReason: FinishReason | undefined;

  /** @throws BnbError if the prompt does not fit, or an option is out of its range */
  constructor(
    session: Session,
    prompt: readonly number[],
    options: GenerateOptions,
    tokenizer?: Tokenizer,
    constraint?: Constraint,
  ) {
    const { maxTokens = 256, stop = [], logprobs = 0, promptLookup = 0 } = options;
    checkCount("maxTokens", maxTokens, 1);
    checkCount("logprobs", logprobs, 0);
    checkCount("promptLookup", promptLookup, 0);
    if (prompt.length === 0) throw new BnbError("generate: the prompt is empty, expected at least one token.");
    const room = session.capacity - prompt.length;
    if (room < 1)
      throw new BnbError(
        `generate: the prompt has ${prompt.length} tokens, ${1 - room} more than leave room for an answer in the ${session.capacity} that fit: shorten it.`,
      );
    this.session = session;
    this.#options = options;
    this.#sampler = new Sampler(options, "generate");
    this.#stream = tokenizer && new TextStream(tokenizer, prompt);
    this.#stops = new StopFilter(typeof stop === "string" ? [stop] : stop);
    this.#constraint = constraint;
    this.#eos = new Set(options.ignoreEos ? [] : session.decoder.architecture.tokens.eos);
    this.#maxTokens = Math.min(maxTokens, room);
    // The last token is fed in any case, for its logits.
    this.#cachedTokens = session.rewindTo(prompt.slice(0, -1));
    this.#promptTokens = prompt.length;
    this.#pending = prompt.slice(this.#cachedTokens);
  }

  get usage(): Usage {
    return {
      promptTokens: this.#promptTokens,
      cachedTokens: this.#cachedTokens,
      completionTokens: this.ids.length,
    };
  }

  /** The text since it was last asked for. */
  take(): string {
    const text = this.#text;
    this.#text = "";
    return text;
  }

  /** Ends the text. Again is harmless. */
  finish(reason: FinishReason): void {
    if (this.finishReason) return;
    this.finishReason = reason;
    this.#constraint?.[Symbol.dispose]();
    if (reason !== "stop" || this.#stops.met === undefined)
      this.#text += this.#stops.push(this.#stream?.flush() ?? "") + this.#stops.flush();
  }

  /** Finds out what the text's form lets follow, while the decoder is at work. */
  async prepare(): Promise<void> {
    await this.#constraint?.follow(this.ids);
  }

  /** What the decoder is to do for this text next, with at most so many tokens; throws the signal's reason. */
  next(most: number): Segment {
    this.#options.signal?.throwIfAborted();
    if (this.#pending.length === 1 && this.ids.length > 0) this.#guesses = this.#lookUp(most - 1);
    const fed = [...this.#pending, ...this.#guesses].slice(0, most);
    this.#feeding = fed.length;
    const whole = fed.length >= this.#pending.length;
    return this.session.segment(fed, !whole ? "none" : this.#guesses.length ? "all" : "last");
  }

  /** How many tokens the decoder has not seen yet, guesses left out. */
  get waiting(): number {
    return this.#pending.length;
  }

  /** How many rows of logits the step gave this text. */
  get rows(): number {
    if (this.#feeding < this.#pending.length) return 0;
    return this.#guesses.length ? this.#feeding : 1;
  }

  /** How many of the largest logits are enough; undefined: it takes all. */
  get largest(): number | undefined {
    return this.#options.logprobs === undefined && !this.#constraint ? this.#sampler.largest : undefined;
  }

  /** Takes what a step gave: nothing where it fed a part of the prompt, else logits row by row. */
  accept(rowOf: (row: number) => Largest | Float32Array): void {
    const fed = [...this.#pending, ...this.#guesses].slice(0, this.#feeding);
    const { rows } = this;
    this.session.advance(fed);
    if (rows === 0) {
      this.#pending = this.#pending.slice(this.#feeding);
      return;
    }
    const start = this.session.length - rows;
    for (let row = 0; row < rows && !this.finishReason; row++) {
      this.session.rewind(start + row + 1); // without what is guessed to follow
      const id = this.#choose(rowOf(row));
      this.#pending = [id];
      this.#write(id);
      if (row + 1 < rows && fed[row + 1] === id) this.session.advance(fed.slice(row + 1));
      else break;
    }
    this.#guesses = [];
  }

  #choose(row: Largest | Float32Array): number {
    if (!(row instanceof Float32Array)) return this.#sampler.chooseOf(row);
    const { logprobs } = this.#options;
    const seen = this.session.tokens;
    if (logprobs === undefined) return this.#sampler.choose(this.#masked(row), seen);
    const id = this.#sampler.choose(this.#masked(row.slice()), seen);
    const { chosen, top } = logprobsOf(row, id, logprobs);
    this.logprobs.push({ id, logprob: chosen, top });
    return id;
  }

  #masked(logits: Float32Array): Float32Array {
    this.#constraint?.mask(logits);
    return logits;
  }

  #write(id: number): void {
    this.ids.push(id);
    const ends = this.#eos.has(id);
    if (!ends && this.#stream) this.#text += this.#stops.push(this.#stream.push(id));
    if (ends || this.#stops.met !== undefined) this.finish("stop");
    else if (this.ids.length >= this.#maxTokens) this.finish("length");
  }

  /** What followed the last tokens where they stood before: the longest run of them, its latest place. */
  #lookUp(most: number): number[] {
    const count = Math.min(this.#options.promptLookup ?? 0, most, this.#maxTokens - this.ids.length - 1);
    if (count < 1 || this.#constraint) return []; // whose form is known for the next token only
    const text = [...this.session.tokens, ...this.#pending];
    for (let run = Math.min(lookupLongest, text.length - 1); run > 0; run--) {
      const last = text.slice(-run);
      for (let at = text.length - run - 1; at >= 0; at--)
        if (last.every((id, i) => text[at + i] === id)) return text.slice(at + run, at + run + count);
    }
    return [];
  }
}

function checkCount(name: string, value: number, least: number): void {
  if (Number.isSafeInteger(value) && value >= least) return;
  throw new BnbError(`generate: ${name} is ${value}, expected a whole number of at least ${least}.`);
}

/** Tokens that one step takes in at most, unless fewer are asked for. */
export const stepTokens = 512;

/** How long steps may keep others waiting, in milliseconds; and since when they do. */
const turn = 8;
let since = 0;

async function letOthersIn(): Promise<void> {
  if (performance.now() - since < turn) return;
  await new Promise(setImmediate);
  since = performance.now();
}

/**
 * One step of any number of texts whose sessions share a cache: prompts are read on, and every text that is through
 * with its own gets its next token. Texts may come and go between steps. Long prompts go in parts of `tokens` together,
 * so that others are not kept waiting.
 *
 * @internal
 */
export async function step(generations: readonly Generation[], tokens = stepTokens): Promise<void> {
  const [first] = generations;
  if (!first) return;
  const segments = segmentsOf(generations, tokens);
  await Promise.all(generations.map((generation) => generation.prepare()));
  const steps = first.session.decoder.steps(segments, first.session.shared.cache);
  for (;;) {
    const { done, value } = steps.next();
    await letOthersIn();
    if (!done) continue;
    using logits = value;
    await logits?.ready();
    return handOut(generations, logits);
  }
}

/** What each text is to do: those that write need one token, and the others share what is left for their prompts. */
function segmentsOf(generations: readonly Generation[], tokens: number): Segment[] {
  const reading = generations.filter(({ waiting }) => waiting > 1).length;
  const share = Math.max(1, Math.floor((tokens - (generations.length - reading)) / Math.max(1, reading)));
  return generations.map((generation) => generation.next(share));
}

/** Gives each text its rows: the largest logits where that is enough for all, else whole rows. */
function handOut(generations: readonly Generation[], logits: Tensor<"float32"> | undefined): void {
  const wants = generations.filter(({ rows }) => rows > 0).map(({ largest }) => largest);
  const few = wants.every((count) => count !== undefined) ? Math.max(0, ...(wants as number[])) : undefined;
  const largest = logits && few ? topK(logits, Math.min(few, logits.shape[1]!)) : undefined;
  const whole = logits && !largest ? logits.read() : undefined;
  const columns = logits?.shape[1] ?? 0;
  let from = 0;
  for (const generation of generations) {
    const first = from;
    from += generation.rows;
    generation.accept((row) => {
      const at = first + row;
      if (whole) return whole.subarray(at * columns, (at + 1) * columns);
      const count = largest!.indices.length / logits!.shape[0]!;
      const part = <A extends Int32Array | Float32Array>(all: A) => all.subarray(at * count, (at + 1) * count) as A;
      return { indices: part(largest!.indices), values: part(largest!.values) };
    });
  }
}
