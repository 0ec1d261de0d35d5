// Attention on tensor cores by itself on the simulator, against float64: texts in pages, windows, rows that lie.
import { describe, expect, test } from "bun:test";
import { wave } from "../cases.ts";
import { Store } from "../metal/arguments.ts";
import { launch, type Run } from "../metal/launch.ts";
import { relativeError, round } from "../reference.ts";

const simulates = process.platform === "linux" && process.arch === "x64";

interface Case {
  heads: number;
  kvHeads: number;
  d: number;
  /** [text, position, first key, end of keys] of each row. */
  rows: number[][];
  softcap?: number;
  run?: Run;
}

const capacity = 16;
const pagesEach = 8;

/** Two texts whose pages of 16 keys lie anywhere in the cache. */
const pages = Int32Array.from({ length: 2 * pagesEach }, (_, i) => (i * 7 + 3) % (2 * pagesEach));

const half = (x: number) => round(x, "float16");

function reference({ heads, kvHeads, d, rows, softcap = 0 }: Case, q: Float32Array, k: Float64Array, v: Float64Array) {
  const y = new Float64Array(rows.length * heads * d);
  for (const [row, [text, , first, end]] of rows.entries())
    for (let head = 0; head < heads; head++) {
      const at = (key: number) => {
        const slot = pages[text! * pagesEach + Math.floor(key / capacity)]!;
        return ((slot * kvHeads + Math.floor(head / (heads / kvHeads))) * capacity + (key % capacity)) * d;
      };
      const keys = Array.from({ length: Math.max(0, end! - first!) }, (_, i) => first! + i);
      const scores = keys.map((key) => {
        let sum = 0;
        for (let i = 0; i < d; i++) sum += q[(row * heads + head) * d + i]! * k[at(key) + i]!;
        return softcap ? softcap * Math.tanh(sum / softcap) : sum;
      });
      const weights = scores.map((score) => Math.exp(score - Math.max(...scores)));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      for (let i = 0; i < d; i++)
        y[(row * heads + head) * d + i] =
          keys.reduce((sum, key, n) => sum + weights[n]! * v[at(key) + i]!, 0) / (total || 1);
    }
  return y;
}

const causal = (length: number, text: number, start = 0, window = Number.POSITIVE_INFINITY) =>
  Array.from({ length }, (_, i) => [text, start + i, Math.max(0, start + i + 1 - window), start + i + 1]);

/** What attention_merge makes of parts: each head of a row has its largest score, its sum of weights, and its sums. */
function merged(y: Float32Array, parts: number, units: number, d: number): Float32Array {
  const at = (part: number, unit: number, i: number) => y[(part * units + unit) * (d + 2) + i]!;
  return Float32Array.from({ length: units * d }, (_, i) => {
    const unit = Math.floor(i / d);
    let most = -Infinity;
    for (let part = 0; part < parts; part++) most = Math.max(most, at(part, unit, 0));
    let [sum, whole] = [0, 0];
    for (let part = 0; part < parts; part++) {
      const share = Math.exp(at(part, unit, 0) - most);
      whole += at(part, unit, 1) * share;
      sum += at(part, unit, 2 + (i % d)) * share;
    }
    return whole > 0 ? sum / whole : whole;
  });
}

describe.skipIf(!simulates)("many rows over a cache of f16", () => {
  const cases: [string, Case][] = [
    ["a prompt", { heads: 2, kvHeads: 1, d: 64, rows: causal(70, 1) }],
    ["a chunk behind others", { heads: 3, kvHeads: 3, d: 128, rows: causal(40, 0, 77) }],
    ["heads of 96, and a window", { heads: 2, kvHeads: 1, d: 96, rows: causal(100, 1, 0, 21) }],
    ["scores that are capped", { heads: 1, kvHeads: 1, d: 64, rows: causal(66, 0), softcap: 2 }],
    [
      "texts by turns, and a row that sees nothing",
      { heads: 2, kvHeads: 2, d: 64, rows: [...causal(20, 1), [0, 3, 2, 2], ...causal(30, 0), ...causal(9, 1, 100)] },
    ],
    [
      "nothing out of place, or without order",
      { heads: 2, kvHeads: 1, d: 64, rows: [...causal(65, 1, 3), ...causal(4, 0)], run: { mode: "check", seed: 5 } },
    ],
  ];

  /** By the kernel for many rows, or by the one for few, with the keys in so many parts. */
  function run(of: Case, rows = of.rows, parts = 0): { got: Float32Array; want: Float64Array } {
    const { heads, kvHeads, d, softcap = 0, run = { mode: "fast", seed: 0 } } = of;
    const q = wave(rows.length * heads * d, 3).map(half);
    const stored = (seed: number) => new Float16Array(wave(2 * pagesEach * kvHeads * capacity * d, seed));
    const [k, v] = [stored(4), stored(5)];
    const size = rows.length * heads * (parts > 1 ? d + 2 : d);
    const y = new Float32Array(Math.max(1, parts) * size).fill(Number.NaN);
    const unused = new Float32Array(1);
    const reach = pagesEach * capacity;
    const args = [rows.length, heads, kvHeads, d, 0, 0, 0, 0, 0, 0, 0, 2 * pagesEach, capacity, 2, reach, pagesEach, 4];
    const launched = {
      ...{ family: "attention_tile", kernel: `attention_${parts ? "few" : "tile"}_${d}`, large: true, ...run },
      args: [...args, 0, Math.max(1, parts), ...new Uint32Array(Float32Array.of(0, softcap, 0, 0).buffer)],
      buffers: [q, Int32Array.from(rows.flat()), k, v, unused, unused, unused, y, pages].map(
        (buffer) => new Uint8Array(buffer.buffer),
      ),
      constants: [Store.float32, Store.float16, 1, 0, 0, 0, Number(parts > 1), 1],
      grid: parts ? ([kvHeads, rows.length, parts] as const) : ([heads, Math.ceil(rows.length / 64), 1] as const),
      group: 128,
      shared: (parts ? 2 * 4 * 32 : 4 * 64) * (2 * d + 16),
    };
    launch(launched, 0); // the result is none of the last
    const got = parts > 1 ? merged(y, parts, rows.length * heads, d) : y;
    return { got, want: reference(of, q, Float64Array.from(k), Float64Array.from(v)) };
  }

  test.each(cases)("few rows by themselves: %s", (_, of) => {
    for (const parts of [1, 3]) {
      const { got, want } = run({ ...of, rows: of.rows.slice(-5) }, undefined, parts);
      expect(relativeError(got, want)).toBeLessThan(6e-4);
    }
  });

  test.each([9, 16])("%i heads that share keys", (heads) => {
    const { got, want } = run({ heads, kvHeads: 1, d: 64, rows: causal(2, 1, 90) }, undefined, 2);
    expect(relativeError(got, want)).toBeLessThan(6e-4);
  });

  test.each(cases)("%s", (_, of) => {
    const { got, want } = run(of);
    expect(relativeError(got, want)).toBeLessThan(6e-4);
  });

  test.each([[[2, 0, 0, 1]], [[0, 1000, 0, 1]], [[0, 0, 0, 129]], [[0, 0, 3, 1]], [[-1, 0, 0, 1]]])(
    "a row that can't be so gives zeros, and leaves the others alone: %p",
    (lie) => {
      const rows = causal(20, 0);
      const of: Case = { heads: 1, kvHeads: 1, d: 64, rows: rows.toSpliced(7, 1, [0, 0, 0, 0]) };
      const { got, want } = run(of, rows.toSpliced(7, 1, lie));
      expect([...got.subarray(7 * 64, 8 * 64)]).toEqual(new Array(64).fill(0));
      expect(relativeError(got, want)).toBeLessThan(6e-4);
    },
  );
});
