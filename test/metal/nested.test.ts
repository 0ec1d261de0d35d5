// The test of the kernels for scales that are quantised in turn by themselves, on the simulator, fast and with every
// access checked: their mean against integers of any size, and what readers see of codes.
import { describe, expect, test } from "bun:test";
import { normal } from "../cases.ts";
import { meanOfScales } from "../reference.ts";
import { kernelCodes } from "./arguments.ts";
import { launch, runs } from "./launch.ts";
import { dynamic } from "./memory.ts";

const absolute = (count: number, seed: number) => normal(count, seed).map(Math.abs);
/** They add up to 257 · (1 + 2^-24), and a unit, 2^-46. */
const aboveTie = new Float32Array(257);
aboveTie.set([256, 0.5 + 2 ** -24, 0.5 + 2 ** -16, 2 ** -46]);

const hostile: readonly { name: string; scales: Float32Array }[] = [
  ...[1, 5, 255, 257, 1000, 5000].map((count) => ({ name: `${count} scales`, scales: absolute(count, count) })),
  { name: "a tie between two floats", scales: Float32Array.of(1, 1 + 2 ** -23) },
  { name: "a tie whose even side is above", scales: Float32Array.of(1 + 2 ** -23, 1 + 2 ** -22) },
  { name: "what a 257th of a unit puts above a tie", scales: aboveTie },
  { name: "a mean that rounds up to a power of two", scales: Float32Array.of(2, 2, 2 - 2 ** -23) },
  { name: "all magnitudes", scales: Float32Array.from({ length: 600 }, (_, i) => 1.7 * 2 ** ((i % 277) - 149)) },
  { name: "one far above the rest", scales: new Float32Array(3000).fill(1e-3).with(1234, 3e38) },
  { name: "the largest floats", scales: new Float32Array(700).fill(3.4028234663852886e38) },
  { name: "subnormal numbers", scales: Float32Array.from({ length: 300 }, (_, i) => i * 2 ** -149) },
  { name: "a mean below the normal numbers", scales: new Float32Array(333).with(7, 2 ** -124) },
  { name: "zeros", scales: new Float32Array(40) },
];

describe.each(runs)("nested, $mode, seed $seed", (run) => {
  /** What is left of scales, and the mean, with so many threadgroups at the parts of the sum. */
  function centre(given: Float32Array, parts: number) {
    const [scales, offset] = [given.slice(), new Float32Array(1)];
    const bits = new Uint32Array(scales.buffer);
    const largest = new Uint32Array(parts);
    for (const [i, word] of bits.entries()) largest[i % parts] = Math.max(largest[i % parts]!, word);
    const sums = new BigUint64Array(2 * parts);
    const common = { ...run, family: "nested", constants: [], args: [scales.length, parts, 0], group: 256 };
    launch({ ...common, kernel: "nested_sum", buffers: [scales, largest, sums], grid: [parts, 1, 1] });
    launch({ ...common, kernel: "nested_centre", buffers: [scales, largest, sums, offset], grid: [2, 1, 1] });
    return { scales, mean: offset[0]! };
  }

  test.each(hostile)("the mean of $name, and what is left", ({ scales }) => {
    for (const parts of [1, 3]) {
      const left = centre(scales, parts);
      expect(left.mean).toBe(meanOfScales(scales));
      const least = 2 ** -126; // what is smaller is nothing to a GPU
      const normalOrZero = (x: number) => (Math.abs(x) < least ? 0 : x);
      const want = scales.map((scale) => normalOrZero(normalOrZero(scale) - normalOrZero(left.mean)));
      expect<Float32Array>(left.scales.map(normalOrZero)).toEqual(want);
    }
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY])("the mean is no number where one is %d", (bad) => {
    const { scales, mean } = centre(absolute(600, 1).with(599, bad), 2);
    expect(mean).toBeNaN();
    expect(scales.every(Number.isNaN)).toBe(true);
  });

  test.each([1, 256, 100])("what readers see of codes, in blocks of %d", (block) => {
    for (const count of [1, 255, 1300]) {
      const codes = Uint8Array.from(normal(count, 3), (x) => Math.abs(x * 1e4) % 256);
      const absmax = absolute(Math.ceil(count / block), 5);
      const scales = new Float32Array(count);
      launch({
        ...{ ...run, family: "nested", kernel: "nested_scales", constants: [], args: [count, 0, block], group: 256 },
        buffers: [codes, absmax, kernelCodes(dynamic), Float32Array.of(0.7), scales],
        grid: [2, 1, 1],
      });
      const want = Float32Array.from(codes, (code, i) => {
        const product = Math.fround(dynamic[code]! * absmax[Math.floor(i / block)]!);
        return product + Math.fround(0.7);
      });
      expect<Float32Array>(scales).toEqual(want);
    }
  });
});
