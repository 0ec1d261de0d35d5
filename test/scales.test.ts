// The tests of scales of least squared error: the rule to the last bit, the best there is, and what must be
// refused.
import { describe, expect, test } from "bun:test";
import { errorTable, path, readErrors } from "../scripts/scales.ts";
import {
  Codebook,
  dequantizeBlockwise,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  type ScalesOptions,
  Tensor,
} from "../src/index.ts";
import { codebooks4, codebooks8, codebooksOfOtherBits, floatDTypes, normal, testDevices } from "./cases.ts";
import { coder, errorOf, pack, relativeError } from "./reference.ts";
import { leastError, leastSquaresScales } from "./scales_reference.ts";

type Options = ScalesOptions & { blocksize: number; nested?: boolean };

const quantize = (x: Tensor, code: Codebook, options: Options) => quantizeBlockwise(x, { ...options, code });

const dequantize = (q: QuantizedTensor) => dequantizeBlockwise(q, { dtype: "float32" }).read();

/** Codes of x for given scales: the nearest to x · (1 / scale), each step in fp32. */
function codesFor(x: Float32Array, values: Float32Array, blocksize: number, scales: Float32Array): Uint8Array {
  const codeOf = coder(values);
  return Uint8Array.from(x, (value, i) => {
    const inverse = Math.fround(1 / scales[Math.floor(i / blocksize)]!);
    return codeOf(Math.max(-1, Math.min(1, Math.fround(value * inverse))));
  });
}

/** Weights of columns: most of them ordinary, some zero, one large. */
const importanceOf = (columns: number) =>
  normal(columns, 9).map((x, i) => (i === 5 ? 300 : x > 0.9 ? 0 : Math.fround(Math.abs(x))));

const books = { ...codebooks4, ...codebooks8, ...codebooksOfOtherBits };

// Once, by the fastest forms: what others find is the same, as the tests below say.
const measures = testDevices.some(([kind]) => kind === "cpu") && !process.env.BNB_ISA;
test.skipIf(!measures)(
  "docs/scales.md has the errors that are measured",
  async () => {
    const measured = readErrors(errorTable());
    expect(measured.length).toBe(16);
    expect(readErrors(await Bun.file(path).text())).toEqual(measured);
  },
  30_000,
);

describe.each(testDevices)("least squares on %s", (_, device) => {
  const tensorOf = (x: ArrayLike<number>, shape: readonly number[] = [x.length]) =>
    Tensor.from(Float32Array.from(x), shape, { device });

  describe("the rule, to the last bit", () => {
    const cases = Object.entries(books).flatMap(([name, code], i) =>
      (code.bits === 8 ? [[7, 64][i % 2]!, [100, i === 4 ? 1 : 33][i % 2]!] : [32, 128]).map((blocksize, j) => ({
        ...{ name, code, blocksize, dtype: floatDTypes[(i + j) % 3]!, weighed: (i + j) % 2 === 1 },
      })),
    );
    test.each(cases)("$name, block $blocksize, $dtype, weighed $weighed", ({ code, blocksize, dtype, weighed }) => {
      const [rows, columns] = [3, 59];
      const weights = weighed ? importanceOf(columns) : undefined;
      using x = tensorOf(normal(rows * columns, blocksize, 3), [rows, columns]).cast(dtype);
      using importance = weights && tensorOf(weights);
      using q = quantize(x, code, { blocksize, scales: "leastSquares", importance });
      const values = code.values;
      const numbers = x.readFloat32();
      const want = leastSquaresScales(numbers, values, blocksize, weights);
      expect(q.absmax.read() as Float32Array).toEqual(want);
      expect(q.codes.read()).toEqual(pack(codesFor(numbers, values, blocksize, want), values));
    });

    test("a block that is larger than what the CPU keeps of one", () => {
      const x = normal(4133, 4);
      using tensor = tensorOf(x);
      const code = books.linear!;
      using q = quantize(tensor, code, { blocksize: 5000, scales: "leastSquares" });
      expect(q.absmax.read() as Float32Array).toEqual(leastSquaresScales(x, code.values, 5000));
    });

    test.each([1e-45, 1e-39, 9.9e-39, 1.2e-38, 1e-30, 1e30, 3e38])("magnitudes about %d", (size) => {
      const x = normal(64, 8).map((value) => (value / 4) * size);
      using tensor = tensorOf(x);
      using q = quantize4bit(tensor, { scales: "leastSquares" });
      const [scale] = q.absmax.read();
      const absmax = Math.max(...x.map(Math.abs));
      if (absmax <= 1e-38) expect(scale).toBe(absmax);
      else expect(scale! / absmax).toBeWithin(0.3, 1.61);
      expect(dequantize(q).every(Number.isFinite)).toBe(true);
    });
  });

  describe("against the best that any scale can do", () => {
    // The squared error in excess of the best, of all blocks together: alike, and weighed as activations weigh them.
    test.each(["nf4", "fp4", "af4", "unsorted"])("%s: 0.4 % more at most, 4 % where columns are weighed", (name) => {
      const code = codebooks4[name]!;
      const blocksize = 32;
      const x = normal(24 * blocksize, 6);
      const weights = normal(blocksize, 9).map((value) => value ** 2);
      using tensor = tensorOf(x, [24, blocksize]);
      using importance = tensorOf(weights);
      for (const [options, w, excess] of [
        [{}, weights.map(() => 1), 0.004],
        [{ importance }, weights, 0.04],
      ] as const) {
        using q = quantize(tensor, code, { blocksize, scales: "leastSquares", ...options });
        const back = dequantize(q);
        let [got, best] = [0, 0];
        for (let i = 0; i < x.length; i += blocksize) {
          const block = x.subarray(i, i + blocksize);
          best += leastError(block, w, code.values);
          for (const [j, value] of block.entries()) got += w[j]! * (value - back[i + j]!) ** 2;
        }
        expect(got).toBeGreaterThanOrEqual(best * (1 - 1e-6));
        expect(got).toBeLessThanOrEqual(best * (1 + excess));
      }
    });

    test("weights that lie on a codebook's values at some scale are stored without error", () => {
      const values = codebooks4.nf4!.values;
      const x = Float32Array.from({ length: 64 }, (_, i) => Math.fround(0.37 * values[1 + ((i * 7) % 14)]!));
      using tensor = tensorOf(x);
      using plain = quantize4bit(tensor);
      using q = quantize4bit(tensor, { scales: "leastSquares" });
      expect(relativeError(dequantize(plain), x)).toBeGreaterThan(0.03);
      expect(relativeError(dequantize(q), x)).toBeLessThan(1e-6);
    });
  });

  test.each(Object.entries(books))("%s: no block is worse than with the largest magnitude", (_, code) => {
    const blocksize = 32;
    const columns = 48;
    const kinds: ((i: number, x: number) => number)[] = [
      (_, x) => x,
      (_, x) => x ** 5,
      (i, x) => (i % 7 ? 0 : x),
      (i) => Math.sin(i) * 1e-20,
      (i, x) => (i % 31 ? x : 1000),
      (i, x) => Math.sign(x) + (i % 32) * 1e-4,
    ];
    const x = kinds.flatMap((kind, k) => [...normal(2 * columns, k + 1)].map((value, i) => kind(i, value)));
    const weights = importanceOf(columns);
    const weightOf = (i: number) => weights[i % columns]!;
    using tensor = tensorOf(x, [x.length / columns, columns]);
    using importance = tensorOf(weights);
    for (const [options, w] of [[{}, () => 1] as const, [{ importance }, weightOf] as const]) {
      using plain = quantize(tensor, code, { blocksize });
      using q = quantize(tensor, code, { blocksize, scales: "leastSquares", ...options });
      const [before, after, scales] = [dequantize(plain), dequantize(q), q.absmax.read()];
      const exact = tensor.readFloat32();
      for (let block = 0; block < scales.length; block++) {
        const places = Array.from({ length: blocksize }, (_, i) => block * blocksize + i).filter((i) => i < x.length);
        const error = (of: Float32Array) => places.reduce((sum, i) => sum + w(i) * (exact[i]! - of[i]!) ** 2, 0);
        expect(error(after)).toBeLessThanOrEqual(error(before));
        expect(scales[block]).toBeGreaterThan(0);
      }
    }
  });

  test("a codebook whose values all have the other sign still gets a positive scale", () => {
    const x = normal(64, 3).map((value) => -1 - Math.abs(value));
    using tensor = tensorOf(x);
    const code = Codebook.from(Array.from({ length: 16 }, (_, i) => (i + 1) / 16));
    using q = quantize4bit(tensor, { quantType: code, scales: "leastSquares" });
    expect(q.absmax.read() as Float32Array).toEqual(leastSquaresScales(x, code.values, 64));
    expect(q.absmax.read()[0]).toBeGreaterThan(0);
  });

  describe("particular blocks", () => {
    const quantized = (x: ArrayLike<number>, options: ScalesOptions = {}) => {
      using tensor = tensorOf(x);
      return quantize4bit(tensor, { scales: "leastSquares", ...options });
    };

    test("zeros: bitsandbytes' bytes", () => {
      using q = quantized(new Float32Array(64));
      expect(q.codes.read()).toEqual(new Uint8Array(32).fill(0x77));
      expect(q.absmax.read() as Float32Array).toEqual(new Float32Array(1));
    });

    test.each([1, -1, 0.1, -3.7])("all the same, %d: exact", (value) => {
      using q = quantized(new Float32Array(64).fill(value));
      expect(dequantize(q)).toEqual(new Float32Array(64).fill(value));
    });

    test("an outlier is kept: clipping it would cost more than all the rest", () => {
      const x = normal(64, 3);
      x[17] = 100;
      using q = quantized(x);
      expect(dequantize(q)[17]).toBeWithin(95, 105);
    });

    test("an outlier that does not count is clipped, and the rest is as if it were not there", () => {
      const x = normal(64, 3);
      x[17] = 1e30;
      using weights = tensorOf(Float32Array.from(x, (_, i) => Number(i !== 17)));
      using q = quantized(x, { importance: weights });
      const without = x.with(17, 0);
      using rest = quantized(without);
      expect(relativeError(dequantize(q).with(17, 0), without)).toBeLessThan(0.11);
      expect(q.absmax.read()[0]! / rest.absmax.read()[0]!).toBeWithin(0.8, 1.25);
    });

    test("a last block that is not full has a scale of its own", () => {
      const x = normal(64 + 13, 5);
      using q = quantized(x);
      using rest = quantized(x.subarray(64));
      expect(q.absmax.read()[1]).toBe(rest.absmax.read()[0]!);
    });

    test("where nothing counts it is the largest magnitude", () => {
      const x = normal(128, 5);
      using weights = tensorOf(Float32Array.from(x, (_, i) => Number(i >= 64)));
      using q = quantized(x, { importance: weights });
      using plain = quantize4bit(tensorOf(x));
      expect(q.absmax.read()[0]).toBe(plain.absmax.read()[0]!);
      expect(q.absmax.read()[1]).not.toBe(plain.absmax.read()[1]!);
      expect(q.codes.read().subarray(0, 32)).toEqual(plain.codes.read().subarray(0, 32));
    });
  });

  test("importance: the same for all is none, its size is of no account, and it lowers the weighed error", () => {
    const [rows, columns] = [8, 64];
    const x = normal(rows * columns, 12);
    const weights = importanceOf(columns);
    using tensor = tensorOf(x, [2, rows / 2, columns]);
    const run = (importance?: Tensor) => quantize4bit(tensor, { scales: "leastSquares", importance });
    using even = run();
    using alike = run(tensorOf(new Float32Array(columns).fill(7)));
    using weighed = run(tensorOf(weights));
    using large = run(tensorOf(weights.map((w) => w * 2 ** 100)));
    using tiny = run(tensorOf(weights.map((w) => Math.round(w * 2 ** 20) * 2 ** -149)));
    using coarse = run(tensorOf(weights.map((w) => Math.round(w * 2 ** 20))));
    using half = run(tensorOf(weights).cast("bfloat16"));
    expect(alike.codes.read()).toEqual(even.codes.read());
    expect(relativeError(alike.absmax.read(), even.absmax.read())).toBeLessThan(1e-5);
    expect(large.absmax.read()).toEqual(weighed.absmax.read());
    expect(tiny.absmax.read()).toEqual(coarse.absmax.read());
    expect(relativeError(half.absmax.read(), weighed.absmax.read())).toBeLessThan(0.1);
    const error = (q: QuantizedTensor) =>
      dequantize(q).reduce((sum, value, i) => sum + weights[i % columns]! * (value - x[i]!) ** 2, 0);
    expect(error(weighed)).toBeLessThan(0.9 * error(even));
  });

  test.each([
    ["nf4", 32],
    ["linear", 64],
  ])("nested scales, %s: codes are those for the scales that readers see, and nearly as good", (name, blocksize) => {
    const code = books[name]!;
    const x = normal(1900, 7).map((value, i) => value * (1 + (i % 5)));
    using tensor = tensorOf(x);
    using plain = quantize(tensor, code, { blocksize, scales: "leastSquares" });
    using q = quantize(tensor, code, { blocksize, scales: "leastSquares", nested: true });
    const codes = q.absmax.read();
    const { absmax, code: map } = q.state2!;
    const outer = absmax.read();
    const scales = Float32Array.from(codes, (c, b) =>
      Math.fround(Math.fround(map[c]! * outer[Math.floor(b / 256)]!) + q.offset),
    );
    expect(q.codes.read()).toEqual(pack(codesFor(x, code.values, blocksize, scales), code.values));
    const error = (of: QuantizedTensor) => relativeError(dequantize(of), x);
    expect(error(q)).toBeLessThan(error(plain) * (code.bits === 8 ? 1.1 : 1.01));
    using largest = quantize(tensor, code, { blocksize, nested: true });
    expect(error(q)).toBeLessThan(error(largest) * 0.98);
  });

  test("where quantising the scales leaves some below zero, codes are still the nearest", () => {
    // One block of large numbers among small ones, whose scales are a hair above zero.
    const x = normal(64 * 16, 3).map((value, i) => (i < 64 ? value : value * 1e-4));
    using tensor = tensorOf(x);
    using q = quantize4bit(tensor, { scales: "leastSquares", compressStatistics: true });
    const { absmax, code: map } = q.state2!;
    const [outer] = absmax.read();
    const smallest = Math.min(...Array.from(q.absmax.read(), (c) => map[c]! * outer!)) + q.offset;
    expect(smallest).toBeLessThan(0);
    using plain = quantize4bit(tensor, { compressStatistics: true });
    const error = (of: QuantizedTensor) => relativeError(dequantize(of).subarray(64), x.subarray(64));
    expect(error(q)).toBeLessThan(0.1 * error(plain));
  });

  describe("is refused, with a sentence", () => {
    const message = (options: ScalesOptions, x = normal(128, 2)) => {
      using tensor = tensorOf(x, [2, x.length / 2]);
      const { code, message } = errorOf(() => quantize4bit(tensor, options));
      expect(code).toBe("invalid");
      return message;
    };

    test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])("%d in the input", (value) => {
      for (const [at, place] of [
        [0, "0, 0"],
        [70, "1, 6"],
        [127, "1, 63"],
      ] as const)
        expect(message({ scales: "leastSquares" }, normal(128, 2).with(at, value))).toMatch(
          new RegExp(`x\\[${place}\\] is -?(nan|inf), expected finite`),
        );
    });

    test.each([Number.NaN, Number.POSITIVE_INFINITY, -1, -1e-45])("an importance of %d", (value) => {
      using importance = tensorOf(new Float32Array(64).fill(1).with(63, value));
      expect(message({ scales: "leastSquares", importance })).toMatch(
        /importance\[63\] is .*, expected a finite number of at least 0/,
      );
    });

    test("an importance of the wrong size or dtype, or without a use", () => {
      using short = tensorOf(new Float32Array(63));
      using integer = Tensor.from(new Int32Array(64), [64], { device });
      using right = tensorOf(new Float32Array(64));
      expect(message({ scales: "leastSquares", importance: short })).toContain(
        "importance has 63 elements, expected 64",
      );
      expect(message({ scales: "leastSquares", importance: integer })).toContain("importance is int32, expected");
      expect(message({ importance: right })).toContain('importance is given, but scales is "absmax"');
    });

    test("an unknown name", () => {
      expect(message({ scales: "best" as "absmax" })).toContain(
        'scales is "best", expected "absmax" or "leastSquares"',
      );
      expect(message({ scales: "toString" as "absmax" })).toContain('scales is "toString"');
    });
  });
});
