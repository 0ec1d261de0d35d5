// Decoding by recorded steps: the same logits as without, whatever sessions do in between, and no memory that stays.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Model } from "../../src/model/model.ts";
import { pageTokens } from "../../src/model/pages.ts";
import type { Session } from "../../src/model/session.ts";
import { byteModel } from "../serve/model.ts";
import { settled } from "../settled.ts";
import { difference, tiny } from "./fixtures.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-recorded-"));
const path = join(folder, "byte");
beforeAll(() => byteModel(path));
afterAll(() => rmSync(folder, { recursive: true }));

const ids = (length: number, seed = 0) => Array.from({ length }, (_, i) => 5 + ((i * 5 + seed * 11) % 256));
const load = () => Model.load(path, { precision: "highest" });

/** In half precision what one way rounds up another rounds down. */
const exact = { cacheDtype: "float32" } as const;

/** The logits after each token of a text, all read at once. */
function atOnce(model: Model, text: readonly number[]): Float32Array {
  using session = model.session(exact);
  return session.forward(text, { logits: "all" });
}

/** Operations that the device is asked for meanwhile. */
function operations(model: Model, action: () => void): number {
  const { operations } = model.device.counters;
  action();
  return model.device.counters.operations - operations;
}

/** The logits of a step of some sessions at once. */
function together(sessions: readonly Session[], next: readonly number[]): Float32Array {
  const segments = sessions.map((session, i) => session.segment([next[i]!], "last"));
  using logits = sessions[0]!.decoder.forward(segments, sessions[0]!.shared.cache);
  for (const [i, session] of sessions.entries()) session.advance([next[i]!]);
  return logits!.read();
}

describe("a token more of a text", () => {
  test("has the logits of the text read at once, far past the pages that the step was recorded for", async () => {
    using model = await load();
    const text = ids(9 * pageTokens + 5);
    const want = atOnce(model, text);
    const columns = want.length / text.length;
    using session = model.session(exact);
    session.forward(text.slice(0, 3));
    for (let at = 3; at < text.length; at++)
      expect(difference(session.forward([text[at]!]), want.subarray(at * columns, (at + 1) * columns))).toBeLessThan(
        1e-4,
      );
  });

  test("is asked for as one operation from the second time on, and others are not in the way", async () => {
    using model = await load();
    const [a, b] = model.sessions(2, exact) as [Session, Session];
    a.forward(ids(3));
    const first = operations(model, () => void a.forward([7]));
    expect(first).toBeGreaterThan(10);
    expect(operations(model, () => void a.forward([8]))).toBeLessThan(first / 5);
    b.forward(ids(40, 1)); // writes to the cache, and is a pass of its own
    a.rewind(3);
    const again = a.forward([7]);
    using other = model.session(exact);
    other.forward(ids(3));
    expect(difference(again, other.forward([7]))).toBeLessThan(1e-5);
    for (const session of [a, b]) session.dispose();
  });

  test("of several texts at once, whose number and lengths change", async () => {
    using model = await load();
    const sessions = model.sessions(20, exact);
    const texts = sessions.map((_, i) => ids(i + 1, i));
    for (const [i, session] of sessions.entries()) session.forward(texts[i]!);
    for (const count of [1, 2, 20, 2, ...Array.from({ length: 18 }, (_, i) => i + 1), 20]) {
      const next = sessions.slice(0, count).map((_, i) => 5 + ((i * 31 + count) % 256));
      const logits = together(sessions.slice(0, count), next);
      for (const [i, id] of next.entries()) texts[i]!.push(id);
      const columns = logits.length / count;
      for (const i of [0, count - 1]) {
        const want = atOnce(model, texts[i]!).slice(-columns);
        expect(difference(logits.subarray(i * columns, (i + 1) * columns), want)).toBeLessThan(1e-4);
      }
    }
    for (const session of sessions) session.dispose();
  });

  test("does not write over what somebody still has", async () => {
    using model = await load();
    using session = model.session(exact);
    session.forward(ids(5));
    const next = (id: number) => {
      const logits = session.decoder.forward([session.segment([id], "last")], session.shared.cache)!;
      session.advance([id]);
      return logits;
    };
    using first = next(9);
    using second = next(10);
    const want = atOnce(model, [...ids(5), 9, 10]);
    const columns = want.length / 7;
    expect(difference(first.read(), want.subarray(5 * columns, 6 * columns))).toBeLessThan(1e-4);
    expect(difference(second.read(), want.subarray(6 * columns))).toBeLessThan(1e-4);
  });

  test("after the cache has grown", async () => {
    using model = await load();
    const [a, b] = model.sessions(2, exact) as [Session, Session];
    a.forward(ids(3));
    a.forward([7]);
    const { slots } = a.shared.cache;
    b.forward(ids(20 * pageTokens, 1)); // more pages than there were at first
    expect(a.shared.cache.slots).toBeGreaterThan(slots);
    const want = atOnce(model, [...ids(3), 7, 8, 9, 10]);
    const after = (token: number) => want.slice(((token - 1) * want.length) / 7, (token * want.length) / 7);
    expect(difference(a.forward([8]), after(5))).toBeLessThan(1e-4);
    expect(difference(a.forward([9, 10]), after(7))).toBeLessThan(1e-4); // of two at once, from where the cache is now
    for (const session of [a, b]) session.dispose();
  });

  test("takes memory that goes with the sessions", async () => {
    using model = await load();
    const decode = () => {
      using session = model.session();
      session.forward(ids(3));
      for (let i = 0; i < 5; i++) session.forward([i + 5]);
    };
    decode(); // tables of positions are made then, and stay
    const { bytes } = settled(model.device);
    for (let i = 0; i < 3; i++) decode();
    expect(model.device.counters.bytes).toBe(bytes);
  });

  test.each(["int8", "nf4"] as const)("of weights in %s", async (quantType) => {
    for (const name of ["llama", "gemma2", "phi"]) {
      using model = await Model.load(tiny(name), { quantType });
      using session = model.session(exact);
      session.forward([5, 6, 7]);
      session.forward([8]);
      const got = session.forward([9]);
      using other = model.session(exact);
      other.forward([5, 6, 7, 8]);
      using recorded = other.decoder.forward([other.segment([9, 10], "all")], other.shared.cache)!; // and this is not
      const want = recorded.read().subarray(0, got.length);
      // LLM.int8()'s outliers are columns of all rows of a product.
      const largest = want.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      expect(difference(got, want)).toBeLessThan((quantType === "int8" ? 2e-2 : 1e-4) * largest);
    }
  });

  test("of a mixture of experts is not recorded, for it asks which they are", async () => {
    using model = await Model.load(tiny("mixtral"), { precision: "highest" });
    using session = model.session();
    session.forward([5, 6, 7]);
    const first = operations(model, () => void session.forward([8]));
    expect(operations(model, () => void session.forward([9]))).toBeGreaterThan(first / 2);
  });
});
