// A batch's answers are those of the same requests one by one: id for id under `highest`, and under `high` wherever one
// token is clearly the best.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Model } from "../../src/model/model.ts";
import { Engine } from "../../src/serve/engine.ts";
import { byteModel } from "./model.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-batch-"));
const path = join(folder, "byte");
beforeAll(() => byteModel(path, { eos: [] }));
afterAll(() => rmSync(folder, { recursive: true }));

/** Prompts of 1 to some 300 tokens, of which some begin alike. */
const prompts = Array.from({ length: 24 }, (_, i) => {
  const length = 1 + ((i * 37) % 300);
  return Array.from({ length }, (_, at) => 5 + ((at * 7 + (at < 40 ? i % 3 : i) * 13) % 256));
});
const maxTokens = 48;

async function alone(model: Model): Promise<(readonly number[])[]> {
  const all: (readonly number[])[] = [];
  for (const prompt of prompts) {
    const generation = model.generate(prompt, { maxTokens });
    await generation.text();
    all.push(generation.ids);
  }
  return all;
}

/** Through an engine of few places, so that texts join and leave while others are read and written. */
async function together(model: Model): Promise<number[][]> {
  using engine = new Engine(model, { slots: 7, queue: prompts.length });
  const texts = prompts.map(async (prompt, i) => {
    await Bun.sleep(3 * (i % 5));
    const { promise, resolve, reject } = Promise.withResolvers<number[]>();
    const ids: number[] = [];
    engine.submit({
      ...{ prompt, options: { maxTokens, logprobs: 0 } },
      onText: (_, tokens) => ids.push(...tokens.map(({ id }) => id)),
      onEnd: () => resolve(ids),
      onError: reject,
    });
    return promise;
  });
  return await Promise.all(texts);
}

/** How far the best logit after these ids is above the next, as a share of the largest. */
function lead(model: Model, ids: readonly number[]): number {
  using session = model.session();
  const [best, next] = [...session.forward(ids)].sort((a, b) => b - a);
  return (best! - next!) / Math.abs(best!);
}

// Not of int8: the columns that LLM.int8() holds for outliers are those of all rows of a product.
describe.each(["nf4", "fp4", "float32"] as const)("weights of %s", (type) => {
  const load = (precision: "highest" | "high") =>
    Model.load(path, { ...(type !== "float32" && { quantType: type }), precision });

  test("under highest, id for id", async () => {
    using model = await load("highest");
    expect(await together(model)).toEqual((await alone(model)).map((ids) => [...ids]));
  }, 60_000);

  test("under high, wherever the best leads by more than a thousandth", async () => {
    using model = await load("high");
    const [apart, batch] = [await alone(model), await together(model)];
    let same = 0;
    for (const [i, ids] of apart.entries()) {
      const at = ids.findIndex((id, at) => batch[i]![at] !== id);
      same += at < 0 ? ids.length : at;
      if (at >= 0) expect(lead(model, [...prompts[i]!, ...ids.slice(0, at)])).toBeLessThan(1e-3);
    }
    expect(same).toBeGreaterThan((prompts.length * maxTokens) / 2);
  }, 60_000);
});
