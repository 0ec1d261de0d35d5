// Tests that every codebook has upstream's bits, and that codebooks of the user's own are checked.
import { describe, expect, test } from "bun:test";
import {
  Codebook,
  createDynamicMap,
  createFp8Map,
  createLinearMap,
  createNormalMap,
  quantize4bit,
  Tensor,
} from "../src/index.ts";
import kbits from "./golden/kbits.json";
import tables from "./golden/tables.json";
import { errorOf } from "./reference.ts";

const floatOf = (hex: string) => new Float32Array(Uint32Array.of(Number.parseInt(hex, 16)).buffer)[0]!;

/** Upstream's floats of a table, from their bits; 0 and -0 are one value. */
const golden = (name: keyof typeof tables) => tables[name].hex.map((hex) => floatOf(hex) + 0);

/** A codebook's values, with the zeros among them that upstream fills its maps up with. */
function plain({ values }: Codebook, size: number): number[] {
  const zero = values.indexOf(0);
  return [...values.subarray(0, zero), ...new Float32Array(size - values.length), ...values.subarray(zero)].map(
    (value) => value + 0,
  );
}

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
    expect(plain(codebook, golden(name).length)).toEqual(golden(name));
  });

  test.each(Object.entries(kbits))("of fewer bits: %s", (name, hex) => {
    const [kind, sign, bits, exponentBits] = name.split(" ") as [string, string, string, string];
    const signed = sign === "signed";
    using codebook =
      kind === "linear" ? createLinearMap(signed, +bits) : createDynamicMap(signed, +exponentBits, +bits);
    expect(codebook.bits).toBe(+bits);
    // Upstream's zeros number 256 less these; ours as many as 2^bits leave.
    expect([...codebook.values].filter((value) => value !== 0)).toEqual(hex.map(floatOf));
  });
});

test("int8 is a signed byte over 127", () => {
  const { values } = Codebook.named("int8");
  for (const code of [0, 1, 127, -1, -127, -128])
    expect(values[code & 255]).toBe(Math.fround(code * Math.fround(1 / 127)));
});

/**
 * The inverse of the normal distribution function by bisection of a series, slowly and independently of the
 * library.
 */
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

test.each([2, 3, 4, 5, 6, 7, 8])("the normal map of %d bits holds the quantiles, over the largest", (bits) => {
  const half = 2 ** (bits - 1);
  const offset = bits === 4 ? 0.9677083 : 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2;
  const at = (count: number, i: number) => offset + ((0.5 - offset) * i) / count;
  const largest = normalQuantile(offset);
  for (const extra of [true, false]) {
    const above = extra ? half : half - 1;
    const want = [
      ...Array.from({ length: half - 1 }, (_, i) => -normalQuantile(at(half - 1, i)) / largest),
      ...Array.from({ length: extra ? 1 : 2 }, () => 0),
      ...Array.from({ length: above }, (_, i) => normalQuantile(at(above, i)) / largest).reverse(),
    ];
    const { values } = createNormalMap(undefined, extra, bits);
    expect(values.length).toBe(2 ** bits);
    for (const [i, value] of values.entries()) expect(value).toBeCloseTo(want[i]!, 5);
  }
});

test("the normal map of 4 bits is NF4, which upstream computed once and wrote down", () => {
  const nf4 = Codebook.named("nf4").values;
  for (const [i, value] of createNormalMap().values.entries()) expect(value).toBeCloseTo(nf4[i]!, 4);
});

test("nf2, nf3, nf5 and nf6 are normal maps", () => {
  for (const bits of [2, 3, 5, 6] as const)
    expect(Codebook.named(`nf${bits}`).values).toEqual(createNormalMap(undefined, true, bits).values);
});

test("a signed linear map without a zero is even", () => {
  expect([...createLinearMap(true, 2, false).values].map((value) => +value.toFixed(6))).toEqual([
    -1, -0.333333, 0.333333, 1,
  ]);
});

/** Upstream's create_dynamic_map, in float64, line by line. */
function dynamicMap(maxExponentBits: number, totalBits: number): number[] {
  const valueBits = totalBits - 1;
  const data: number[] = [0, 1];
  const decade = (items: number, exponent: number) => {
    const boundary = (i: number) => 0.1 + (0.9 * i) / (items - 1);
    for (let i = 0; i + 1 < items; i++) {
      const mean = ((boundary(i) + boundary(i + 1)) / 2) * 10 ** exponent;
      data.push(mean, -mean);
    }
  };
  for (let i = 0; i < maxExponentBits; i++)
    decade(Math.trunc(2 ** (i + valueBits - maxExponentBits) + 1), i - (maxExponentBits - 1));
  const additional = 2 ** (valueBits - maxExponentBits) - 1;
  if (additional > 0) decade(additional + 1, 0);
  return data.sort((a, b) => a - b);
}

test.each([2, 3, 4, 5, 6, 7, 8])("createDynamicMap(true, %i, b), as upstream's own tests call it", (bits) => {
  const { values } = createDynamicMap(true, bits, bits);
  expect(values.length).toBe(2 ** bits);
  for (const [i, want] of dynamicMap(bits, bits).entries()) expect(values[i]).toBeCloseTo(want, 6);
  expect(errorOf(() => createDynamicMap(false, bits, bits)).message).toContain("maxExponentBits");
});

test("a named codebook is everybody's: to dispose of it changes nothing", () => {
  {
    using c = Codebook.named("nf4");
    c.dispose();
  }
  expect(Codebook.named("nf4").values[0]).toBe(-1);
  expect(quantize4bit(Tensor.from([1, -1])).quantType).toBe("nf4");
});

describe("codebooks of the user's own", () => {
  test("keep their order", () => {
    const values = Float32Array.from({ length: 16 }, (_, i) => Math.sin(i));
    using codebook = Codebook.from(values);
    expect(codebook.values).toEqual(values);
    expect(codebook.bits).toBe(4);
  });

  test.each([
    ["empty", [], "values has 0 numbers"],
    ["of too few", [1, 2], "values has 2 numbers, expected 4, 8, 16, 32, 64, 128 or 256"],
    ["of a count between", Array.from({ length: 12 }, (_, i) => i), "12 numbers, expected 4, 8, 16"],
    ["of too many", Array.from({ length: 512 }, (_, i) => i), "512 numbers, expected 4, 8, 16"],
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
    expect(errorOf(() => createDynamicMap(true, 9, 8)).message).toContain(
      "maxExponentBits is 9, expected a whole number from 1 to 8",
    );
    expect(errorOf(() => createDynamicMap(true, 7, 9)).message).toContain(
      "totalBits is 9, expected a whole number from 2 to 8",
    );
    expect(errorOf(() => createLinearMap(true, 1)).message).toContain(
      "totalBits is 1, expected a whole number from 2 to 8",
    );
    expect(errorOf(() => createFp8Map(true, 5, 3, 8)).message).toContain("exponentBits is 5 and precisionBits 3");
    for (const offset of [0, 0.4, 1, Number.NaN])
      expect(errorOf(() => createNormalMap(offset)).message).toMatch(
        /offset is (?:0|0.4|1|-?nan|NaN), expected a number of more than/,
      );
    expect(errorOf(() => createNormalMap(undefined, true, 9)).message).toContain(
      "totalBits is 9, expected a whole number from 2 to 8",
    );
    expect(errorOf(() => Codebook.named("nf7" as "nf4")).message).toContain('name is "nf7", expected "nf4"');
  });
});
