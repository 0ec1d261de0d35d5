// Ids as they come to text as it goes out: whole characters only, and nothing of a stop string.
import type { Tokenizer } from "./tokenizer.ts";

/** What stands for bytes that are no character, or not yet one. */
const replacement = "\ufffd";

/** Ids before the first one that are decoded along, since decoders treat the beginning of a text differently. */
const contextIds = 5;

/** Text of ids, in pieces: what may yet become another character is held back. */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  readonly #ids: number[];
  /** Ids from here on are decoded, and up to `#read` their text is out. */
  #context = 0;
  #read: number;

  /** @param prompt what stands before the text */
  constructor(tokenizer: Tokenizer, prompt: readonly number[] = []) {
    this.#tokenizer = tokenizer;
    this.#ids = prompt.slice(-contextIds);
    this.#read = this.#ids.length;
  }

  /** The text that another id completes; often none. */
  push(id: number): string {
    this.#ids.push(id);
    const { before, whole } = this.#decoded();
    if (whole.length <= before.length || whole.endsWith(replacement)) return "";
    this.#context = this.#read;
    this.#read = this.#ids.length;
    return whole.slice(before.length);
  }

  /** What is left, whole characters or not. */
  flush(): string {
    const { before, whole } = this.#decoded();
    this.#context = this.#read = this.#ids.length;
    return whole.slice(before.length);
  }

  #decoded(): { before: string; whole: string } {
    const before = this.#tokenizer.decode(this.#ids.slice(this.#context, this.#read));
    return { before, whole: this.#tokenizer.decode(this.#ids.slice(this.#context)) };
  }
}

/** Lets text through up to the first of some strings; what could be the beginning of one is held back. */
export class StopFilter {
  readonly #stops: readonly string[];
  #held = "";
  /** The string that was met. */
  met: string | undefined;

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((stop) => stop.length > 0);
  }

  push(text: string): string {
    if (this.met !== undefined) return "";
    const whole = this.#held + text;
    const first = this.#first(whole);
    if (first) {
      this.met = first.stop;
      this.#held = "";
      return whole.slice(0, first.at);
    }
    const held = Math.max(0, ...this.#stops.map((stop) => overlap(whole, stop)));
    this.#held = whole.slice(whole.length - held);
    return whole.slice(0, whole.length - held);
  }

  /** What was held back for nothing. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  #first(text: string): { at: number; stop: string } | undefined {
    const found = this.#stops.map((stop) => ({ at: text.indexOf(stop), stop })).filter(({ at }) => at >= 0);
    return found.sort((a, b) => a.at - b.at)[0];
  }
}

/** The longest end of a text that begins a stop string. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--)
    if (text.endsWith(stop.slice(0, length))) return length;
  return 0;
}
