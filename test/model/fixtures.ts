// The tiny models that tests run: made once by tiny.py, each with what transformers makes of it.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { openSafetensors } from "../../src/checkpoint/safetensors.ts";

const folder = join(import.meta.dir, "../fixtures/models");

/** The folder of a tiny model. */
export const tiny = (name: string) => join(folder, name);

/** All of them: names of families, and of variants of them. */
export const tinyNames = readdirSync(folder).sort();

/**
 * What transformers computes in float32: logits of a decoder, hidden states of an encoder, [sequences, length,
 * columns].
 */
export function expectedOf(name: string): { ids: number[][]; values: Float32Array; columns: number; largest: number } {
  using file = openSafetensors(join(tiny(name), "expected.safetensors"));
  const [sequences, length] = file.tensor("ids").shape as [number, number];
  const flat = Array.from(file.tensor("ids").values as Int32Array);
  const result = file.tensors.has("logits") ? file.tensor("logits") : file.tensor("hidden");
  const values = Float32Array.from(result.values as Float32Array);
  return {
    ids: Array.from({ length: sequences }, (_, i) => flat.slice(i * length, (i + 1) * length)),
    values,
    columns: result.shape[2]!,
    largest: values.reduce((most, value) => Math.max(most, Math.abs(value)), 0),
  };
}

/** The largest difference of two arrays. */
export function difference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`${a.length} numbers beside ${b.length}`);
  let most = 0;
  for (let i = 0; i < a.length; i++) most = Math.max(most, Math.abs(a[i]! - b[i]!));
  return most;
}

/** What a promise is rejected with. */
export async function rejection(promise: Promise<unknown>): Promise<Error> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  throw new Error("nothing was thrown");
}
