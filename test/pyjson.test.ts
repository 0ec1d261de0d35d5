// Python's JSON text: cases that were printed by CPython 3.11, and properties of the shortest repr.
import { describe, expect, test } from "bun:test";
import { dumps, PyFloat, parsePreserving, repr } from "../src/checkpoint/pyjson.ts";

// Printed by CPython 3.11: `for x in …: print(repr(x))`.
const reprs: [number, string][] = [
  [0, "0.0"],
  [-0, "-0.0"],
  [1, "1.0"],
  [0.1, "0.1"],
  [0.0001, "0.0001"],
  [0.00012345, "0.00012345"],
  [0.00001, "1e-05"],
  [-0.000012345, "-1.2345e-05"],
  [1e-7, "1e-07"],
  [9999999999999998, "9999999999999998.0"],
  [1e16, "1e+16"],
  [1.5e16, "1.5e+16"],
  [123456789012345680, "1.2345678901234568e+17"],
  [1e21, "1e+21"],
  [1e100, "1e+100"],
  [5e-324, "5e-324"],
  [1.7976931348623157e308, "1.7976931348623157e+308"],
  [Math.fround(0.0684661865234375), "0.0684661865234375"],
  [Math.fround(0.051939547), "0.051939547061920166"],
  [Math.fround(0.1), "0.10000000149011612"],
  [Math.fround(1e-5), "9.999999747378752e-06"],
  [Number.NaN, "NaN"],
  [Number.POSITIVE_INFINITY, "Infinity"],
  [Number.NEGATIVE_INFINITY, "-Infinity"],
];

describe("repr", () => {
  test.each(reprs)("%p is %p", (value, text) => {
    expect(repr(value)).toBe(text);
  });

  test("every printed double reads back as itself", () => {
    const words = new Uint32Array(2);
    const value = new Float64Array(words.buffer);
    let state = 1;
    for (let i = 0; i < 20_000; i++) {
      for (const half of [0, 1]) words[half] = state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      if (!Number.isNaN(value[0]!)) expect(Number(repr(value[0]!))).toBe(value[0]!);
    }
  });
});

describe("dumps", () => {
  const value = {
    b: [1, [], {}, new PyFloat(6)],
    a: 'é"\\\u007f\u0001\n\u{1f600}/',
    "\uffee": null,
    "\u{1f600}": true,
  };
  // Printed by CPython 3.11 for the same object.
  test("one line, ASCII only, in the order of the keys", () => {
    const text = String.raw`{"b": [1, [], {}, 6.0], "a": "\u00e9\"\\\u007f\u0001\n\ud83d\ude00/", "\uffee": null, "\ud83d\ude00": true}`;
    expect(dumps(value)).toBe(text);
  });

  test("indented and sorted by code points", () => {
    const text = String.raw`{
  "a": "\u00e9\"\\\u007f\u0001\n\ud83d\ude00/",
  "b": [
    1,
    [],
    {},
    6.0
  ],
  "\uffee": null,
  "\ud83d\ude00": true
}`;
    expect(dumps(value, { indent: 2, sortKeys: true })).toBe(text);
  });

  test("a float that nobody declared is refused", () => {
    expect(() => dumps([0.5])).toThrow(/wrap a float in PyFloat/);
  });

  test("numbers read from a file print as they were spelled", () => {
    const text = '{"theta": 10000.0, "eps": 1e-5, "id": 12345678901234567890, "n": [1, 2.50]}';
    expect(dumps(parsePreserving(text))).toBe(text);
  });
});
