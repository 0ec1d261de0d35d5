// How well a model foretells a text.
import { BnbError } from "../error.ts";
import type { Model } from "./model.ts";
import { logSumExp } from "./sample.ts";

/** What {@link perplexity} finds. */
export interface Perplexity {
  /** e to the mean of -log p of each token after the first of its window. */
  readonly perplexity: number;
  /** Tokens that were foretold. */
  readonly tokens: number;
}

/**
 * The perplexity of ids, in windows that do not overlap: as of transformers' logits on the same windows.
 *
 * @param options.window tokens; what is left over at the end is one more, if it has at least two
 */
export async function perplexity(
  model: Model,
  ids: readonly number[],
  options: { window: number; onProgress?: (done: number, total: number) => void },
): Promise<Perplexity> {
  if (ids.length < 2) throw new BnbError(`perplexity: the text has ${ids.length} tokens, expected at least 2.`);
  using session = model.session({ capacity: options.window, cacheDtype: "float32" });
  let [sum, tokens] = [0, 0];
  for (let at = 0; at + 1 < ids.length; at += options.window) {
    const part = ids.slice(at, at + options.window);
    session.rewind(0);
    const logits = session.forward(part, { logits: "all" });
    const columns = logits.length / part.length;
    for (let i = 0; i + 1 < part.length; i++, tokens++) {
      const row = logits.subarray(i * columns, (i + 1) * columns);
      sum += logSumExp(row) - row[part[i + 1]!]!;
    }
    options.onProgress?.(Math.min(ids.length, at + options.window), ids.length);
    await new Promise(setImmediate);
  }
  return { perplexity: Math.exp(sum / tokens), tokens };
}
