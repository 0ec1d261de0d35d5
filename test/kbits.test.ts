// The tests of what is particular to codes of 2, 3, 5, 6 and 7 bits: where each bit lies, how near the values are,
// and what must be refused. Their operations are in the tables of the operations' own tests.
import { describe, expect, test } from "bun:test";
import { expectedError } from "../scripts/theory.ts";
import {
  Codebook,
  createLinearMap,
  dequantizeBlockwise,
  QuantizedTensor,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { codebooksOfOtherBits, normal, testDevices } from "./cases.ts";
import { errorOf, relativeError, unpack } from "./reference.ts";

/** 2^bits values from -1 to 1, evenly spaced: no 0, and the code of 0 is the one below it. */
const even = (bits: number) => createLinearMap(true, bits, false);

/** Eight codes, bit by bit, and their bytes. */
const strings: [bits: number, codes: string, bytes: number[]][] = [
  [2, "11 00 10 01 01 10 00 11", [0b11001001, 0b01100011]],
  [3, "111 000 101 010 001 110 011 100", [0b11100010, 0b10100011, 0b10011100]],
  [5, "11111 00000 10101 01010 00001 11110 10000 01111", [0xf8, 0x2a, 0xa0, 0xfa, 0x0f]],
  [6, "111111 000000 101010 010101 000001 111110 100000 011111", [0xfc, 0x0a, 0x95, 0x07, 0xe8, 0x1f]],
  [7, "1111111 0000000 1010101 0101010 0000001 1111110 1000000 0111111", [0xfe, 0x02, 0xaa, 0xa0, 0x3f, 0xa0, 0x3f]],
];

/** The last byte, where a first code of ones is alone: codes of 0 follow, cut off. */
const alone = { 2: 0b11_01_01_01, 3: 0b111_011_01, 5: 0b11111_011, 6: 0b111111_01, 7: 0b1111111_0 } as const;

describe.each(testDevices)("on %s", (_, device) => {
  test.each(strings)("%d bits: codes are one string of bits", (bits, text, bytes) => {
    using code = even(bits);
    const codes = text.split(" ").map((digits) => Number.parseInt(digits, 2));
    const x = Float32Array.from(codes, (c) => code.values[c]!);
    using q = quantizeBlockwise(Tensor.from(x, [8], { device }), { code });
    expect([...q.codes.read()]).toEqual(bytes);
    expect(q.bits).toBe(bits);
    expect(q.code).toEqual(code.values);
    expect(q.byteLength).toBe(bits + 4);

    const parts = { codes: q.codes, absmax: q.absmax, code, blocksize: 64, shape: [2, 4] };
    expect(dequantizeBlockwise(QuantizedTensor.fromParts(parts)).read()).toEqual(x);
    using one = quantizeBlockwise(Tensor.from(x.slice(0, 1), [1], { device }), { code });
    expect([...one.codes.read()]).toEqual([alone[bits as 2]]);
  });

  test.each(Object.entries(codebooksOfOtherBits))("%s: no value is nearer than the chosen one", (_, code) => {
    const { values } = code;
    const x = normal(2048, 7);
    using q = quantizeBlockwise(Tensor.from(x, [32, 64], { device }), { code });
    const [codes, absmax] = [q.codes.read(), q.absmax.read()];
    for (const [i, value] of x.entries()) {
      const scaled = value / absmax[i >> 6]!;
      const chosen = Math.abs(values[unpack(codes, code.bits, i)]! - scaled);
      expect(chosen).toBeLessThanOrEqual(Math.min(...values.map((v) => Math.abs(v - scaled))) + 2e-7);
    }
  });

  test("errors are those of theory", () => {
    const x = normal(1 << 16, 3, 0.02);
    using tensor = Tensor.from(x, [256, 256], { device });
    for (const name of ["nf2", "nf3", "nf6"] as const) {
      using q = quantizeBlockwise(tensor, { code: Codebook.named(name) });
      const error = relativeError(dequantizeBlockwise(q).readFloat32(), x);
      expect(Math.abs(error / expectedError(q.code, 64) - 1)).toBeLessThan(0.02);
    }
  });

  test("the block is 64 where none is asked for, and 4096 for 8 bits", () => {
    using w = Tensor.from(normal(4096), [64, 64], { device });
    using q = quantizeBlockwise(w, { code: Codebook.named("nf3") });
    expect([q.blocksize, q.bitsPerElement, q.quantType]).toEqual([64, 3.5, undefined]);
    expect(`${q}`).toContain("QuantizedTensor(3-bit [64, 64], blocksize 64");
    expect(quantizeBlockwise(w).blocksize).toBe(4096);
    expect(quantizeBlockwise(w, { code: Codebook.named("nf4") }).quantType).toBe("nf4");
  });

  test("what does not fit is refused, with a sentence", () => {
    const code = Codebook.named("nf3");
    using w = Tensor.from(normal(128), [2, 64], { device });
    for (const blocksize of [8, 17, 48, 8192])
      expect(errorOf(() => quantizeBlockwise(w, { code, blocksize })).message).toContain(
        `blocksize is ${blocksize}, expected a power of two from 16 to 4096 for 3-bit codes`,
      );
    const bytes = (count: number) => Tensor.from(new Uint8Array(count), [count], { device });
    const absmax = Tensor.from(new Float32Array(2), [2], { device });
    const parts = { codes: bytes(48), absmax, code, blocksize: 64, shape: [2, 64] };
    QuantizedTensor.fromParts(parts).dispose();
    const message = (change: object) => errorOf(() => QuantizedTensor.fromParts({ ...parts, ...change })).message;
    for (const count of [47, 49, 64])
      expect(message({ codes: bytes(count) })).toContain(
        `codes is uint8 [1, ${count}], expected uint8 with 48 elements`,
      );
    expect(message({ code: Codebook.named("nf2") })).toContain("expected uint8 with 32 elements");
    expect(message({ blocksize: 96 })).toContain("blocksize is 96");
    const nested = { absmax, code, blocksize: 256, offset: 0 };
    // Two scales of 3 bits lie in a byte.
    expect(message({ absmax: bytes(2), nested })).toContain("absmax is uint8 [1, 2], expected uint8 with 1 elements");
  });
});
