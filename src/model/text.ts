// A text that a model writes, as its reader sees it: piece by piece, or whole.
import { BnbError } from "../error.ts";
import { type FinishReason, type GeneratedToken, type Generation, step, type Usage } from "./generation.ts";

/**
 * A text as a model writes it: iterate over it for its pieces, or await {@link text}.
 *
 * @example
 * ```ts
 * using model = await Model.load("./tiny-llama");
 * const generation = model.generate("Hello", { maxTokens: 3, logprobs: 2 });
 * const text = await generation.text();
 * generation.finishReason; // → "length"
 * generation.ids.length; // → 3
 * generation.logprobs[0]?.top.length; // → 2
 * ```
 */
export class TextGeneration implements AsyncIterable<string> {
  readonly #make: () => Promise<{ generation: Generation; done: () => void }>;
  #generation: Generation | undefined;

  /** @internal Use `model.generate()`. */
  constructor(make: () => Promise<{ generation: Generation; done: () => void }>) {
    this.#make = make;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    if (this.#generation) throw new BnbError("generate: the text has been read already: ask for another.");
    const { generation, done } = await this.#make();
    this.#generation = generation;
    try {
      while (!generation.finishReason) {
        await step([generation]);
        const text = generation.take();
        if (text) yield text;
      }
    } finally {
      generation.finish("abort");
      done();
    }
  }

  /** The whole text. */
  async text(): Promise<string> {
    let whole = "";
    for await (const text of this) whole += text;
    return whole;
  }

  /** The written ids so far, with the one that ended the text. */
  get ids(): readonly number[] {
    return this.#generation?.ids ?? [];
  }

  /** The log probability of each written id, if `logprobs` asked for them. */
  get logprobs(): readonly GeneratedToken[] {
    return this.#generation?.logprobs ?? [];
  }

  /** Why the text ended; undefined before it has. */
  get finishReason(): FinishReason | undefined {
    return this.#generation?.finishReason;
  }

  get usage(): Usage {
    return this.#generation?.usage ?? { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  }
}
