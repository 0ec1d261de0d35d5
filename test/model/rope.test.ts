// Rotary frequencies at the sizes of real models, held to what transformers' own functions give, and their tables.
import { expect, test } from "bun:test";
import { Device } from "../../src/index.ts";
import type { RopeSpec } from "../../src/model/architecture.ts";
import { inverseFrequencies, RopeTable } from "../../src/model/rope.ts";

const plain: RopeSpec = {
  ...{ rotated: 128, theta: 10000, type: "default", factor: 1, originalPositions: 4096, attentionFactor: 1 },
  ...{ lowFrequency: 1, highFrequency: 4, betaFast: 32, betaSlow: 1, truncate: true },
  ...{ shortFactors: [], longFactors: [] },
};

/** Some of the 64 pairs: the first and last, and those where one rule goes over into another. */
const pairs = [0, 9, 18, 24, 30, 36, 45, 63];

/** By transformers 5, `ROPE_INIT_FUNCTIONS`. */
const cases: [string, Partial<RopeSpec>, number[]][] = [
  [
    "linear",
    { type: "linear", factor: 4 },
    [0.25, 0.0684604943, 0.0187473539, 0.00790569466, 0.00333380373, 0.00140585331, 0.000384981628, 2.88695483e-5],
  ],
  [
    "Llama 3.1's",
    { type: "llama3", theta: 5e5, factor: 8, originalPositions: 8192 },
    [1, 0.157972813, 0.0249554086, 0.00729266508, 0.00137189368, 7.78465546e-5, 1.22976389e-5, 3.06892588e-7],
  ],
  [
    "Qwen's YaRN",
    { type: "yarn", theta: 1e6, factor: 4, originalPositions: 32768 },
    [1, 0.143301263, 0.0205352511, 0.00537532149, 0.00106436096, 0.000179841154, 1.51074091e-5, 3.10234441e-7],
  ],
  [
    "gpt-oss' YaRN, between whole pairs",
    { type: "yarn", theta: 150000, factor: 32, truncate: false },
    [1, 0.187116534, 0.0317056961, 0.00679495931, 0.00105260219, 3.83088118e-5, 7.16821251e-6, 2.50977735e-7],
  ],
];

test.each(cases)("%s frequencies are transformers'", (_, change, want) => {
  const got = inverseFrequencies({ ...plain, ...change }, false);
  expect(got.length).toBe(64);
  for (const [i, pair] of pairs.entries()) expect(Math.abs(got[pair]! / want[i]! - 1)).toBeLessThan(1e-6);
});

test("longrope divides by the factors of short or of long texts", () => {
  const [shortFactors, longFactors] = [1, 3].map((step) => Array.from({ length: 64 }, (_, i) => 1 + i * step));
  const spec = { ...plain, type: "longrope" as const, shortFactors: shortFactors!, longFactors: longFactors! };
  for (const [long, step] of [
    [false, 1],
    [true, 3],
  ] as const)
    for (const [i, frequency] of inverseFrequencies(spec, long).entries())
      expect(Math.abs(frequency / (10000 ** (-i / 64) / (1 + i * step)) - 1)).toBeLessThan(1e-6);
});

test("a table has cosines and sines of as many positions as are asked for, times the attention's factor", () => {
  const spec = { ...plain, rotated: 8, attentionFactor: 1.5, type: "longrope" as const, originalPositions: 70 };
  using table = new RopeTable({ ...spec, shortFactors: [1, 1, 1, 1], longFactors: [2, 2, 2, 2] }, Device.open("cpu"));
  expect(table.shortMost).toBe(70);
  const short = table.for(60);
  for (const positions of [1, 60, short.shape[0]!]) expect(table.for(positions)).toBe(short);
  expect(table.for(70)).not.toBe(short);
  for (const [positions, factor] of [
    [70, 1],
    [71, 2],
    [200, 2],
  ] as const) {
    const made = table.for(positions);
    expect(made.shape[0]).toBeGreaterThanOrEqual(positions);
    const values = made.read();
    for (const position of [0, 1, positions - 1])
      for (let i = 0; i < 4; i++) {
        const angle = position * (10000 ** (-i / 4) / factor);
        expect(Math.abs(values[position * 8 + i]! - 1.5 * Math.cos(angle))).toBeLessThan(2e-5);
        expect(Math.abs(values[position * 8 + 4 + i]! - 1.5 * Math.sin(angle))).toBeLessThan(2e-5);
      }
  }
});
