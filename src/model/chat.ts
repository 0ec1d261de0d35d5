// Conversations: turns, the prompt that they become, and what is kept between them.
import { BnbError } from "../error.ts";
import type { TextFormat } from "./constraint.ts";
import type { GenerateOptions, Usage } from "./generation.ts";
import type { Model } from "./model.ts";
import type { SessionOptions } from "./pages.ts";
import type { Session } from "./session.ts";
import type { TextGeneration } from "./text.ts";
import type { ChatTemplateOptions, Message } from "./tokenizer.ts";

/** Options of {@link Model.chat}. */
export interface ChatOptions extends SessionOptions, Pick<ChatTemplateOptions, "tools" | "variables"> {
  /** What the model is told before the first turn. */
  system?: string | undefined;
  /** Earlier turns. */
  messages?: readonly Message[] | undefined;
  /**
   * What happens when a conversation outgrows the session: an error, the default, or its oldest turns are dropped, but
   * never the system's.
   */
  overflow?: "error" | "dropOldest" | undefined;
}

/** Options of {@link Chat.send}. */
export interface TurnOptions extends GenerateOptions {
  /** The form that the answer must have: JSON, JSON of a schema, or what a grammar allows. */
  format?: TextFormat | undefined;
}

/**
 * A conversation with a session of its own: each turn reads only what is new. Made by `model.chat()`.
 *
 * @example
 * ```ts
 * using model = await Model.load("./tiny-llama");
 * using chat = model.chat({ system: "Be brief." });
 * let answer = "";
 * for await (const text of chat.send("Hello", { maxTokens: 4 })) answer += text;
 * chat.messages.length; // → 3
 * chat.usage.completionTokens <= 4; // → true
 * ```
 */
export class Chat implements Disposable {
  readonly #model: Model;
  readonly #session: Session;
  readonly #options: ChatOptions;
  readonly #messages: Message[];
  #usage: Usage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  #busy = false;

  /** @internal Use `model.chat()`. */
  constructor(model: Model, options: ChatOptions) {
    this.#model = model;
    this.#options = options;
    this.#session = model.session(options);
    const { system, messages = [] } = options;
    this.#messages = [...(system === undefined ? [] : [{ role: "system", content: system }]), ...messages];
  }

  /** All turns so far. */
  get messages(): readonly Message[] {
    return this.#messages;
  }

  /** The tokens that the last answer took. */
  get usage(): Usage {
    return this.#usage;
  }

  /** The session that the conversation lies in. */
  get session(): Session {
    return this.#session;
  }

  /**
   * Says something, and streams the answer. Both become turns when the answer ends, or is broken off.
   *
   * @throws BnbError while another answer is under way, or where the conversation does not fit
   */
  async *send(content: string | Message, options: TurnOptions = {}): AsyncGenerator<string, void, void> {
    if (this.#busy) throw new BnbError("chat.send: another answer is under way: wait for it, or break it off.");
    this.#busy = true;
    const message: Message = typeof content === "string" ? { role: "user", content } : content;
    let generation: TextGeneration | undefined;
    let answer = "";
    try {
      const prompt = this.#prompt(message, options);
      generation = this.#model.generate(prompt, { ...options, session: this.#session });
      for await (const text of generation) {
        answer += text;
        yield text;
      }
    } finally {
      if (generation) {
        this.#usage = generation.usage;
        this.#messages.push(message, { role: "assistant", content: answer });
      }
      this.#busy = false;
    }
  }

  /** Takes back the last question and its answer. */
  undo(): void {
    const last = this.#messages.findLastIndex(({ role }) => role === "user");
    if (last >= 0) this.#messages.length = last;
  }

  /** Ids of the conversation with another turn; without its oldest turns where they don't fit and may go. */
  #prompt(message: Message, { maxTokens = 256 }: GenerateOptions): number[] {
    const { tools, variables, overflow = "error" } = this.#options;
    for (;;) {
      const ids = this.#model.tokenizer.applyChatTemplate([...this.#messages, message], { tools, variables });
      const { capacity } = this.#session;
      const room = capacity - Math.min(maxTokens, Math.floor(capacity / 2));
      if (overflow === "error" || ids.length <= room) return ids;
      const first = this.#messages.findIndex(({ role }) => role !== "system");
      if (first < 0) return ids; // which the session refuses, with how much is too long
      const next = this.#messages.findIndex(({ role }, i) => i > first && role === "user");
      this.#messages.splice(first, (next < 0 ? this.#messages.length : next) - first);
    }
  }

  [Symbol.dispose](): void {
    this.#session.dispose();
  }
}
