// Many texts by one model at once: who waits, who is in the batch, and what each step brings. Texts join and leave
// between steps; a step's tokens are rows of the same products.
import { BnbError } from "../error.ts";
import type { Constraint, TextFormat } from "../model/constraint.ts";
import {
  type FinishReason,
  type GeneratedToken,
  type GenerateOptions,
  type Generation,
  step,
  type Usage,
} from "../model/generation.ts";
import type { Model } from "../model/model.ts";
import type { Session } from "../model/session.ts";

/** A text that somebody asks for. */
export interface Job {
  readonly prompt: readonly number[];
  readonly options: GenerateOptions;
  readonly format?: TextFormat | undefined;
  /** Called with each piece of text, and the tokens that it came by where logprobs were asked for. */
  onText(text: string, logprobs: readonly GeneratedToken[]): void;
  /** Called once, when the text has ended. */
  onEnd(reason: FinishReason, usage: Usage): void;
  /** Called once instead, where it failed. */
  onError(error: Error): void;
}

export interface EngineOptions {
  /** Texts that are written at once; each has a place in the cache. */
  slots: number;
  /** Tokens that a place holds at most. */
  capacity?: number | undefined;
  /** Texts that may wait for a place; more are refused. */
  queue: number;
}

/** What is going on, for metrics. */
export interface EngineState {
  readonly waiting: number;
  readonly running: number;
  /** Tokens' places in the cache that running texts and those that have ended hold; what texts share counts once. */
  readonly cachedTokens: number;
  readonly capacityTokens: number;
  readonly steps: number;
}

/** How long a step should take at most while texts are being written, in milliseconds: prompts wait for their rest. */
const stepMs = 100;
const [leastTokens, mostTokens] = [16, 512];

interface Running {
  readonly job: Job;
  readonly generation: Generation;
  /** Logprobs that are out. */
  listed: number;
}

/** Refused because too many wait already. */
export class BusyError extends BnbError {}

export class Engine implements Disposable {
  readonly #model: Model;
  readonly #free: Session[];
  readonly #all: readonly Session[];
  readonly #queue: Job[] = [];
  readonly #cancelled = new Set<Job>();
  readonly #most: number;
  #running: Running[] = [];
  #loop: Promise<void> | undefined;
  #closed = false;
  #steps = 0;
  #tokensAStep = mostTokens;

  constructor(model: Model, { slots, capacity, queue }: EngineOptions) {
    this.#model = model;
    this.#all = model.sessions(slots, { capacity });
    this.#free = [...this.#all];
    this.#most = queue;
  }

  get state(): EngineState {
    return {
      waiting: this.#queue.length,
      running: this.#running.length,
      cachedTokens: this.#all[0]!.shared.tokensHeld,
      capacityTokens: this.#all.length * this.#all[0]!.capacity,
      steps: this.#steps,
    };
  }

  /** @throws BusyError where too many wait already */
  submit(job: Job): void {
    if (this.#closed) throw new BusyError("The server is about to stop: ask another one.", "unsupported");
    if (this.#queue.length >= this.#most)
      throw new BusyError(
        `${this.#queue.length} requests wait already, the most that may: ask again later.`,
        "unsupported",
      );
    this.#queue.push(job);
    this.#loop ??= this.#run().finally(() => {
      this.#loop = undefined;
    });
  }

  /** Ends a job wherever it is; its callbacks are not called any more. */
  cancel(job: Job): void {
    const at = this.#queue.indexOf(job);
    if (at >= 0) this.#queue.splice(at, 1);
    else if (this.#running.some((running) => running.job === job)) this.#cancelled.add(job);
  }

  /** Takes nothing more in, and waits until what there is has ended. */
  async drain(): Promise<void> {
    this.#closed = true;
    await this.#loop;
  }

  async #run(): Promise<void> {
    while (this.#queue.length > 0 || this.#running.length > 0) {
      this.#leave();
      while (this.#queue.length > 0 && this.#free.length > 0) await this.#admit(this.#queue.shift()!);
      if (this.#running.length > 0) await this.#step();
    }
  }

  /** Gives a job the free place that shares most with its prompt, or that and what another text shares with it. */
  async #admit(job: Job): Promise<void> {
    let constraint: Constraint | undefined;
    try {
      if (job.format) constraint = await this.#model.constrain(job.format);
      const shared = (session: Session) => commonLength(session.tokens, job.prompt);
      const best = this.#free.reduce((a, b) => (better(shared(a), a, shared(b), b) ? a : b));
      const donor = this.#all.reduce((a, b) => (shared(a) >= shared(b) ? a : b));
      if (shared(donor) > shared(best)) best.adopt(donor, shared(donor));
      const generation = this.#model.generation(best, job.prompt, job.options, constraint);
      this.#free.splice(this.#free.indexOf(best), 1);
      this.#running.push({ job, generation, listed: 0 });
    } catch (error) {
      constraint?.[Symbol.dispose]();
      job.onError(error as Error);
    }
  }

  async #step(): Promise<void> {
    const batch = this.#running;
    const started = performance.now();
    try {
      await step(
        batch.map(({ generation }) => generation),
        this.#tokensAStep,
      );
    } catch (error) {
      // What fails a step fails all of it: the device, or the memory for it.
      for (const { job, generation } of batch) {
        generation.finish("abort");
        job.onError(error as Error);
        this.#cancelled.add(job);
      }
      return this.#leave();
    }
    this.#steps++;
    this.#adapt(performance.now() - started, batch);
    for (const running of batch) this.#hand(running);
    this.#leave();
    await new Promise(setImmediate); // for who cancels, or comes
  }

  /** Long prompts are read in parts such that who writes already gets the next token soon. */
  #adapt(ms: number, batch: readonly Running[]): void {
    const writing = batch.some(({ generation }) => generation.ids.length > 1);
    if (!writing) this.#tokensAStep = mostTokens;
    else if (ms > stepMs) this.#tokensAStep = Math.max(leastTokens, this.#tokensAStep >> 1);
    else if (ms < stepMs / 3) this.#tokensAStep = Math.min(mostTokens, this.#tokensAStep << 1);
  }

  #hand(running: Running): void {
    const { job, generation } = running;
    if (this.#cancelled.has(job)) return;
    const text = generation.take();
    const logprobs = generation.logprobs.slice(running.listed);
    running.listed = generation.logprobs.length;
    if (text || logprobs.length > 0) job.onText(text, logprobs);
    if (generation.finishReason) job.onEnd(generation.finishReason, generation.usage);
  }

  /** Frees the places of texts that have ended; what they hold stays, for prompts that begin alike. */
  #leave(): void {
    this.#running = this.#running.filter(({ job, generation }) => {
      if (this.#cancelled.delete(job)) generation.finish("abort");
      if (!generation.finishReason) return true;
      this.#free.push(generation.session);
      return false;
    });
  }

  /** Ends what waits and what runs with an error, and frees the cache when the step is over. */
  [Symbol.dispose](): void {
    this.#closed = true;
    const error = new BnbError("The text was ended: its model is no longer in use.", "unsupported");
    for (const { job } of this.#running) {
      if (!this.#cancelled.has(job)) job.onError(error);
      this.#cancelled.add(job);
    }
    for (const job of this.#queue.splice(0)) job.onError(error);
    const free = () => {
      for (const session of this.#all) session.dispose();
    };
    if (this.#loop) this.#loop.finally(free);
    else free();
  }
}

/** Whether place a is to be taken before b: it shares more, or as much and holds less that another could want. */
function better(sharedA: number, a: Session, sharedB: number, b: Session): boolean {
  return sharedA > sharedB || (sharedA === sharedB && a.length <= b.length);
}

function commonLength(a: readonly number[], b: readonly number[]): number {
  let shared = 0;
  while (shared < a.length && shared < b.length && a[shared] === b[shared]) shared++;
  return shared;
}
