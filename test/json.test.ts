// JSON read byte by byte, held against JavaScript's own parser: the same texts are taken, with the same values, less
// what Rust refuses, and more what Python takes.
import { describe, expect, test } from "bun:test";
import { JsonReader, parseJson } from "../src/checkpoint/json.ts";
import { mutateBytes, mutateJson } from "./faults/mutate.ts";
import { Random } from "./faults/random.ts";

const sample = JSON.stringify({
  __metadata__: { format: "pt", é: '\u0001\u{1f600}\\"/' },
  "a.b": { dtype: "F32", shape: [2, 3, 0], data_offsets: [0, 24], x: [null, true, false, -0.5, 1e-7, [], {}, [[1]]] },
  "": " \t",
});

/** What a parser makes of a text, or that it refuses it. */
function outcome(parse: () => unknown): { value: unknown } | "refused" {
  try {
    return { value: parse() };
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return "refused";
  }
}

/** Whether a text that JavaScript takes has what Rust refuses, or is nested more than 100 deep. */
function isBeyondRust(value: unknown, depth = 0): boolean {
  if (typeof value === "string") return !value.isWellFormed();
  if (typeof value === "number") return !Number.isFinite(value);
  if (typeof value !== "object" || value === null) return false;
  if (depth === 100) return true;
  return Object.entries(value).some(([key, item]) => !key.isWellFormed() || isBeyondRust(item, depth + 1));
}

test("damaged texts are taken and refused as by JSON.parse", () => {
  let taken = 0;
  const wrong: unknown[] = [];
  for (let seed = 0; seed < 2500; seed++) {
    const random = new Random(seed);
    const bytes = random.oneIn(2)
      ? Buffer.from(mutateJson(random, sample) ?? "")
      : mutateBytes(random, Buffer.from(sample), [0, 1, 20, sample.length - 1]);
    const theirs = outcome(() => JSON.parse(utf8(bytes)));
    const expected = theirs !== "refused" && isBeyondRust(theirs.value) ? "refused" : theirs;
    const found = outcome(() => parseJson(bytes));
    if (found !== "refused") taken++;
    if (!Bun.deepEquals(found, expected, true)) wrong.push([seed, found, expected]);
  }
  expect(wrong).toEqual([]);
  expect(taken).toBeGreaterThan(250);
});

/** The text, where the bytes are one. */
function utf8(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new SyntaxError("not UTF-8");
  }
}

describe("what Python takes", () => {
  const python = (text: string) => parseJson(Buffer.from(text), { python: true });
  test.each(["NaN", "Infinity", "-Infinity", "1e400", '"\\ud800"'])("%s", (text) => {
    expect(() => parseJson(Buffer.from(text))).toThrow(SyntaxError);
    expect(() => python(text)).not.toThrow();
    expect(() => python(`[${text}]x`)).toThrow(/at byte \d+: expected nothing/);
  });
});

describe("the reader", () => {
  const reader = (text: string) => new JsonReader(Buffer.from(text));

  test.each(["0", "7", "9007199254740991", " 12 "])("counts %p", (text) => {
    expect(reader(text).count()).toBe(Number(text));
  });

  test.each(["-1", "-0", "1.0", "1e3", "01", "9007199254740992", "18446744073709551616", "x", "", "1x", "+1"])(
    "does not count %p, and leaves it",
    (text) => {
      const at = reader(text);
      expect(at.count()).toBeUndefined();
      expect(at.peek()).toBe(text.slice(0, 1));
    },
  );

  test("counts nothing that any letter, sign or point follows", () => {
    const signs = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+-.";
    for (const sign of signs) expect([sign, reader(`1${sign}`).count()]).toEqual([sign, undefined]);
    for (const end of ",]} :@[`{") expect([end, reader(`1${end}`).count()]).toEqual([end, 1]);
  });

  test("passes over a value and quotes its beginning", () => {
    const at = reader(`[{"a": [${"1,".repeat(1000)}1]}, 2]`);
    const seen: unknown[] = [];
    at.array(() => seen.push(seen.length === 0 ? at.skip().length : at.count()));
    expect(seen).toEqual([202, 2]);
    at.end();
  });

  test("keeps a key that JavaScript has a meaning for, and the last of two of one name", () => {
    const value = parseJson(Buffer.from('{"__proto__": {"x": 1}, "a": 1, "a": 2}')) as Record<string, unknown>;
    expect(Object.entries(value)).toEqual([
      ["__proto__", { x: 1 }],
      ["a", 2],
    ]);
    expect(value.x).toBeUndefined();
  });
});
