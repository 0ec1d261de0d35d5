// The test of the search for scales by itself, on the simulator, fast and with every access checked, against its
// rule; and of quantising by scales that are given.
import { describe, expect, test } from "bun:test";
import type { FloatDType } from "../../src/index.ts";
import { codebooks4, codebooks8, codebooksOfOtherBits, floatDTypes, normal } from "../cases.ts";
import { coder, pack } from "../reference.ts";
import { leastSquaresScales, rangeOf } from "../scales_reference.ts";
import { kernelCodes, Store, shiftOf, wide } from "./arguments.ts";
import { launch, runs } from "./launch.ts";
import { load, store } from "./memory.ts";

const word = (x: number) => new Uint32Array(Float32Array.of(x).buffer)[0]!;
const f = Math.fround;

/** First and ratio of struct scales_args. */
function range(values: Float32Array): number[] {
  const { first, ratio } = rangeOf(values);
  return [word(first), word(ratio)];
}

const books = { ...codebooks4, ...codebooks8, ...codebooksOfOtherBits };

describe.each(runs)("scales, $mode, seed $seed", (run) => {
  test.each(Object.entries(books))("%s", (_, { values }) => {
    const blocks = values.length === 256 ? [7, 64, 300] : [32, 64, 256];
    for (const [i, block] of blocks.entries()) {
      const [rows, columns] = [3, [45, 31, 70][i]!];
      const dtype = floatDTypes[i]!;
      const x = store(normal(rows * columns, block, 3), dtype);
      const weights = normal(columns, 9).map((w) => (w > 0.9 ? 0 : f(Math.abs(w))));
      for (const weighed of [0, 1]) {
        const absmax = new Float32Array(Math.ceil(x.length / block));
        const args = [...wide(x.length), block, columns, ...range(values)];
        const buffers = [x, kernelCodes(values), weighed ? weights : absmax, absmax];
        launch({
          ...run,
          ...{ family: "scales", kernel: "scales", constants: [Store[dtype], weighed], args, buffers },
          ...{ grid: [2, 1, 1], group: 256 },
        });
        const want = leastSquaresScales(load(x, dtype), values, block, weighed ? weights : undefined);
        expect<Float32Array>(absmax).toEqual(want);
      }
    }
  });

  test("weights of columns, by the largest's power of two; what is none is above them all", () => {
    const weigh = (importance: Float32Array, dtype: FloatDType) => {
      const [memory, columns] = [store(importance, dtype), importance.length];
      const [weights, largest] = [new Float32Array(columns), new Uint32Array(1)];
      launch(
        {
          ...run,
          ...{ family: "scales", kernel: "scales_weights", constants: [Store[dtype], 1], grid: [1, 1, 1], group: 256 },
          args: [0, 0, 0, columns, 0, 0],
          buffers: [memory, weights, largest],
        },
        2,
      );
      return { given: load(memory, dtype), weights, largest: largest[0]! };
    };
    for (const [i, columns] of [1, 255, 600].entries()) {
      const { given, weights, largest } = weigh(normal(columns, 3).map(Math.abs).with(0, -0), floatDTypes[i]!);
      const most = Math.max(...given);
      expect(largest).toBe(word(most || 0));
      const unit = 2 ** (127 - Math.max(1, word(most || 0) >>> 23));
      expect(weights.map((w) => w + 0)).toEqual(given.map((w) => w * unit + 0));
    }
    // What is subnormal weighs as much as if it were not.
    const steps = Float32Array.from({ length: 300 }, (_, step) => step);
    expect(
      weigh(
        steps.map((step) => step * 2 ** -149),
        "float32",
      ).weights,
    ).toEqual(steps.map((step) => step * 2 ** -23));
    expect(weigh(steps.map((step) => step * 2 ** -149).with(7, 2 ** -100), "float32").weights[299]).toBe(
      299 * 2 ** -49,
    );
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, -1, -(2 ** -149), Number.NEGATIVE_INFINITY])
      expect(weigh(normal(300, 5).map(Math.abs).with(299, bad), "float32").largest).toBeGreaterThanOrEqual(0x7f800000);
  });

  test("a NaN or an infinity shows in its block's scale, and only there", () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const x = normal(96, 5).with(49, bad);
      const absmax = new Float32Array(3);
      const { values } = codebooks4.nf4!;
      launch({
        ...run,
        ...{ family: "scales", kernel: "scales", constants: [Store.float32, 0], grid: [1, 1, 1], group: 256 },
        args: [...wide(96), 32, 96, ...range(values)],
        buffers: [x, kernelCodes(values), absmax, absmax],
      });
      expect([...absmax].map(Number.isFinite)).toEqual([true, false, true]);
    }
  });

  test.each([
    ["quantize", 32],
    ["quantize_odd", 37],
  ])("%s takes scales that are given, one below zero among them", (kernel, block) => {
    const { values } = kernel === "quantize" ? codebooks4.nf4! : codebooks8.linear!;
    const x = normal(100, 3);
    const scales = Float32Array.of(1.5, -2, 0.75, 1e-39).slice(0, Math.ceil(100 / block));
    const absmax = scales.slice();
    const codes = new Uint8Array(values.length === 256 ? 100 : 50);
    launch(
      {
        ...run,
        ...{ family: "quantize", kernel, constants: [Store.float32, Store.codes(values.length === 256 ? 8 : 4), 1] },
        args: [...wide(100), block, shiftOf(block)],
        buffers: [x, kernelCodes(values), codes, absmax],
        grid: [1, 1, 1],
        group: 512,
      },
      0,
    );
    const codeOf = coder(values);
    const want = Uint8Array.from(x, (value, i) => {
      const scale = scales[Math.floor(i / block)]!;
      const inverse = Math.abs(scale) > 1e-38 ? f(1 / scale) : f(1e38);
      return codeOf(Math.max(-1, Math.min(1, f(value * inverse))));
    });
    expect(absmax).toEqual(scales);
    expect(codes).toEqual(pack(want, values) as Uint8Array<ArrayBuffer>);
  });
});

describe.each(runs)("finite, $mode, seed $seed", (run) => {
  test("each threadgroup tells the largest magnitude that it saw, and says nothing of others' numbers", () => {
    const groups = 3;
    for (const count of [1, 255, 769, 2000])
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        for (const at of [0, 31, 32, 254, 255, 256, 511, 768, 1535, 1999]) {
          const x = Float32Array.from({ length: count }, (_, i) => -(i % 256) - 1);
          x[at % count] = bad;
          const found = new Uint32Array(groups);
          const grid = [groups, 1, 1] as const;
          launch({
            ...run,
            ...{
              family: "finite",
              kernel: "finite",
              constants: [],
              args: [count],
              buffers: [x, found],
              grid,
              group: 256,
            },
          });
          const largest = new Uint32Array(groups);
          for (const [i, value] of x.entries()) {
            const group = Math.floor(i / 256) % groups;
            largest[group] = Math.max(largest[group]!, word(value) & 0x7fffffff);
          }
          expect([...found]).toEqual([...largest]);
        }
      }
  });
});
