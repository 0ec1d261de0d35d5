// Owns the test that every codebook has upstream's bits, and that codebooks of the user's own are checked.
import { describe, expect, test } from "bun:test";
import { Codebook, createDynamicMap, createFp8Map, createLinearMap, createNormalMap } from "../src/index.ts";
import tables from "./golden/tables.json";
import { errorOf } from "./reference.ts";

/** Upstream's floats of a table, from their bits; 0 and -0 are one value. */
function golden(name: keyof typeof tables): number[] {
  return tables[name].hex.map((hex) => new Float32Array(Uint32Array.of(Number.parseInt(hex, 16)).buffer)[0]! + 0);
}

const plain = (codebook: Codebook) => [...codebook.values].map((value) => value + 0);

describe("upstream's values, bit for bit", () => {
  test.each([
    ["nf4", Codebook.named("nf4")],
    ["fp4", Codebook.named("fp4")],
    ["af4", Codebook.named("af4")],
    ["dynamic_signed", Codebook.named("dynamic")],
    ["dynamic_unsigned", Codebook.named("dynamic_unsigned")],
    ["dynamic_signed", createDynamicMap()],
    ["dynamic_s_e7_b8", createDynamicMap(true, 7, 8)],
    ["dynamic_signed_b5", createDynamicMap(true, 4, 5)],
    ["linear_signed", createLinearMap()],
    ["linear_unsigned", createLinearMap(false)],
    ["linear_s4", createLinearMap(true, 4)],
    ["fp8_e5m2", createFp8Map(true, 5, 2, 8)],
    ["fp8_e4m3", createFp8Map(true, 4, 3, 8)],
    ["fp4_e2m1", createFp8Map(true, 2, 1, 4)],
  ] as const)("%s", (name, codebook) => {
    expect(plain(codebook)).toEqual(golden(name));
  });
});

test("int8 is a signed byte over 127", () => {
  const { values } = Codebook.named("int8");
  for (const code of [0, 1, 127, -1, -127, -128])
    expect(values[code & 255]).toBe(Math.fround(code * Math.fround(1 / 127)));
});

/** The inverse of the normal distribution function by bisection of a series, slowly and independently of the library. */
function normalQuantile(p: number): number {
  const cumulative = (x: number) => {
    let term = x;
    let sum = x;
    for (let n = 1; n < 200; n++) sum += term *= (x * x) / (2 * n + 1);
    return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
  };
  let [low, high] = [-6, 6];
  for (let i = 0; i < 200; i++) {
    const middle = (low + high) / 2;
    if (cumulative(middle) < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

test("the normal map holds the quantiles, over the largest", () => {
  const offset = 0.9677083;
  const values = [...createNormalMap(offset).values].filter((value) => value !== 0);
  const at = (count: number, i: number) => offset + ((0.5 - offset) * i) / count;
  const largest = normalQuantile(offset);
  const want = [
    ...Array.from({ length: 7 }, (_, i) => -normalQuantile(at(7, i)) / largest),
    ...Array.from({ length: 8 }, (_, i) => normalQuantile(at(8, i)) / largest).reverse(),
  ];
  expect(values.length).toBe(15);
  for (const [i, value] of values.entries()) expect(value).toBeCloseTo(want[i]!, 6);
  // With the exact zero these are the sixteen values of NF4, which upstream computed once and wrote down.
  const nf4 = [...Codebook.named("nf4").values].filter((value) => value !== 0);
  for (const [i, value] of values.entries()) expect(value).toBeCloseTo(nf4[i]!, 4);
});

describe("codebooks of the user's own", () => {
  test("keep their order", () => {
    const values = Float32Array.from({ length: 16 }, (_, i) => Math.sin(i));
    using codebook = Codebook.from(values);
    expect(codebook.values).toEqual(values);
    expect(codebook.bits).toBe(4);
  });

  test.each([
    ["empty", [], "values is empty"],
    ["of another count", [1, 2, 3], "12 bytes, expected 16 or 256 floats"],
    ["with a NaN", Array.from({ length: 16 }, (_, i) => (i === 5 ? Number.NaN : i)), "values[5] is nan"],
    [
      "with an infinity",
      Array.from({ length: 256 }, (_, i) => (i === 9 ? Number.POSITIVE_INFINITY : i)),
      "values[9] is inf",
    ],
  ] as [string, number[], string][])("are refused: %s", (_, values, message) => {
    expect(errorOf(() => Codebook.from(values)).message).toContain(message);
  });

  test("maps whose bits do not add up are refused", () => {
    expect(errorOf(() => createDynamicMap(true, 9, 8)).message).toContain("max_exponent_bits is 9, expected 1 to 7");
    expect(errorOf(() => createDynamicMap(true, 7, 9)).message).toContain("total_bits is 9, expected 2 to 8");
    expect(errorOf(() => createLinearMap(true, 1)).message).toContain("total_bits is 1, expected 2 to 8");
    expect(errorOf(() => createFp8Map(true, 5, 3, 8)).message).toContain("5 exponent and 3 precision bits");
    expect(errorOf(() => createNormalMap(0.4)).message).toContain("offset is 0.4");
    expect(errorOf(() => Codebook.named("nf5" as "nf4")).message).toContain('name is "nf5", expected nf4');
  });
});
