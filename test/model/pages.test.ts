// Sessions of one cache: pages are shared while texts are alike, and nobody writes into what another holds.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Model } from "../../src/model/model.ts";
import { pageTokens } from "../../src/model/pages.ts";
import { byteModel } from "../serve/model.ts";
import { settled } from "../settled.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-pages-"));
const path = join(folder, "byte");
beforeAll(() => byteModel(path));
afterAll(() => rmSync(folder, { recursive: true }));

const ids = (length: number, seed = 0) => Array.from({ length }, (_, i) => 5 + ((i * 5 + seed * 11) % 256));

/** The logits after a text, by a session of its own. */
async function loaded(): Promise<{ model: Model; logits: (text: readonly number[]) => Float32Array }> {
  const model = await Model.load(path, { precision: "highest" });
  const logits = (text: readonly number[]) => {
    using session = model.session();
    return session.forward(text);
  };
  return { model, logits };
}

const near = (a: Float32Array, b: Float32Array) => {
  for (const [i, value] of a.entries()) expect(Math.abs(value - b[i]!)).toBeLessThan(1e-4);
};

describe("sessions that share a cache", () => {
  test.each([1, pageTokens - 1, pageTokens, pageTokens + 1, 3 * pageTokens])(
    "go their own ways after %i tokens in common, whoever writes first",
    async (common) => {
      const { model, logits } = await loaded();
      using _ = model;
      const [a, b, c] = model.sessions(3);
      const beginning = ids(common);
      a!.forward(beginning);
      b!.adopt(a!, common);
      c!.adopt(b!, common);
      const [moreA, moreB, moreC] = [ids(40, 1), ids(3, 2), ids(pageTokens, 3)];
      near(b!.forward(moreB), logits([...beginning, ...moreB]));
      near(a!.forward(moreA), logits([...beginning, ...moreA]));
      near(c!.forward(moreC), logits([...beginning, ...moreC]));
      near(b!.forward(moreA), logits([...beginning, ...moreB, ...moreA]));
      for (const session of [a, b, c]) session!.dispose();
    },
  );

  test("rewind into what they share without harm to the other", async () => {
    const { model, logits } = await loaded();
    using _ = model;
    const [a, b] = model.sessions(2);
    const beginning = ids(3 * pageTokens);
    a!.forward(beginning);
    b!.adopt(a!, beginning.length);
    a!.rewind(pageTokens + 5);
    near(a!.forward(ids(70, 1)), logits([...beginning.slice(0, pageTokens + 5), ...ids(70, 1)]));
    near(b!.forward(ids(2, 2)), logits([...beginning, ...ids(2, 2)]));
  });

  test("count what they share once, and give all back", async () => {
    const { model } = await loaded();
    using _ = model;
    const sessions = model.sessions(6);
    const { shared } = sessions[0]!;
    sessions[0]!.forward(ids(2 * pageTokens));
    for (const other of sessions.slice(1)) other.adopt(sessions[0]!, 2 * pageTokens);
    expect(shared.tokensHeld).toBe(2 * pageTokens);
    for (const [seed, session] of sessions.entries()) session.forward(ids(1, seed));
    expect(shared.tokensHeld).toBe((2 + 6) * pageTokens);
    for (const session of sessions) session.rewindTo(ids(pageTokens));
    expect(shared.tokensHeld).toBe(pageTokens);
    for (const session of sessions.slice(1)) session.dispose();
    expect(shared.tokensHeld).toBe(pageTokens);
    shared.cache.steps.clear(); // recorded steps have memory of their own, and go with the cache
    const [held, bytes] = [settled(model.device).bytes, shared.cache.byteLength];
    sessions[0]!.dispose();
    expect(held - model.device.counters.bytes).toBe(bytes);
  });

  test("grow past the pages that there are at first, up to all that fits", async () => {
    const { model, logits } = await loaded();
    using _ = model;
    const { positions } = model.architecture;
    const sessions = model.sessions(3);
    const texts = sessions.map((_, i) => ids(positions - 1, i));
    for (const [i, session] of sessions.entries())
      for (let at = 0; at < positions - 1; at += 50) session.forward(texts[i]!.slice(at, at + 50));
    for (const [i, session] of sessions.entries()) near(session.forward([7]), logits([...texts[i]!, 7]));
  });
});
