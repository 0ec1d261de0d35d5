// The events of one text on their way from who writes it to who reads it.
import type { FinishReason, Usage } from "../model/generation.ts";
import type { ListedChoice } from "./protocol.ts";

/** A piece of a text, or its end. */
export type TextEvent =
  | { readonly text: string; readonly logprobs: readonly ListedChoice[] }
  | { readonly reason: FinishReason; readonly usage: Usage };

/** Keeps what is pushed until it is read. */
export class TextEvents {
  readonly #events: TextEvent[] = [];
  #failure: { error: unknown } | undefined;
  #wake = () => {};
  /** Whether the text has ended, well or not. */
  ended = false;

  push(event: TextEvent): void {
    this.#events.push(event);
    this.ended ||= "reason" in event;
    this.#wake();
  }

  fail(error: unknown): void {
    this.#failure ??= { error };
    this.ended = true;
    this.#wake();
  }

  /** All events up to the end. Throws the failure, or the signal's reason, as soon as there is one. */
  async *read(signal: AbortSignal | undefined): AsyncGenerator<TextEvent, void, void> {
    const stop = () => this.#wake();
    signal?.addEventListener("abort", stop, { once: true });
    try {
      for (;;) {
        signal?.throwIfAborted();
        if (this.#failure) throw this.#failure.error;
        const event = this.#events.shift();
        if (event) {
          yield event;
          if ("reason" in event) return;
        } else
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
      }
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }
}
