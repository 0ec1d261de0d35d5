// The simulator's arithmetic as that of Apple's GPUs: subnormals, fast functions, the order of sums. Each mode shows
// what a kernel that leans on another would do there.
import { describe, expect, test } from "bun:test";
import { compile, type RunOptions, type View } from "./simulator.ts";

const bits = (...words: number[]) => new Float32Array(Uint32Array.from(words).buffer);
const bitsOf = (view: View) => [...new Uint32Array(view.buffer)];

/** y[i] = an expression of x[i]. */
function run(expression: string, x: Float32Array<ArrayBuffer>, options: Partial<RunOptions> = {}, functions?: "fast") {
  const source = `#include <metal_stdlib>\nusing namespace metal;
kernel void k(device const float *x [[buffer(0)]], device float *y [[buffer(1)]], uint i [[thread_index_in_threadgroup]]) {
  y[i] = ${expression};
}`;
  const y = new Float32Array(x.length);
  const library = compile(source, functions ? { functions } : {});
  library.run("k", { buffers: { 0: x, 1: y }, grid: 1, group: x.length, ...options });
  return y;
}

describe("subnormal numbers of fp32", () => {
  const least = 2 ** -126;

  test("count as zeros of their sign, as operands and as results", () => {
    const x = Float32Array.of(least, -least, least / 4, -least / 4);
    expect(bitsOf(run("x[i] * 0.5f", x))).toEqual([0, 0x80000000, 0, 0x80000000]);
    expect([...run("x[i] * 4.0f", x)]).toEqual([4 * least, -4 * least, 0, -0]);
    expect([...run("x[i] > 0.0f ? 1.0f : 2.0f", x)]).toEqual([1, 2, 2, 2]);
    expect([...run("1.0f / x[i]", Float32Array.of(2 ** 127))]).toEqual([0]);
  });

  test("keep their bits where nothing is computed, and in half precision", () => {
    const x = bits(1, 0x80000001, 0x007fffff, 0x3f800000);
    expect(bitsOf(run("x[i]", x))).toEqual(bitsOf(x));
    expect(bitsOf(run("as_type<float>(as_type<uint>(x[i]) + 1u)", x))).toEqual(bitsOf(x).map((word) => word + 1));
    expect([...run("float(half(x[i]) * 0.5h)", Float32Array.of(2 ** -14, 2 ** -20))]).toEqual([2 ** -15, 2 ** -21]);
  });

  test("are numbers where the mode is off", () => {
    expect([...run("x[i] * 0.5f", Float32Array.of(least), { flush: false })]).toEqual([least / 2]);
  });
});

describe("functions that are not precise::", () => {
  const x = Float32Array.from({ length: 256 }, (_, i) => 0.37 * (i + 1));
  const roots = x.map(Math.sqrt);

  test("have other last bits where the host leaves them fast", () => {
    expect(run("sqrt(x[i])", x)).toEqual(roots);
    const fast = run("sqrt(x[i])", x, {}, "fast");
    expect(fast).not.toEqual(roots);
    for (const [i, root] of roots.entries()) expect(Math.abs(fast[i]! / root - 1)).toBeLessThan(1e-6);
    expect(run("precise::sqrt(x[i])", x, {}, "fast")).toEqual(roots);
    expect([...run("sqrt(x[i])", Float32Array.of(0, Number.POSITIVE_INFINITY), {}, "fast")]).toEqual([
      0,
      Number.POSITIVE_INFINITY,
    ]);
  });

  test("promise nothing about NaN, so that it can come through a clamp to where an index is made of it", () => {
    const nan = Float32Array.of(Number.NaN, 1);
    expect([...run("clamp(x[i], -1.0f, 0.5f)", nan)]).toEqual([-1, 0.5]);
    expect([...run("clamp(x[i], -1.0f, 0.5f)", nan, {}, "fast")]).toEqual([Number.NaN, 0.5]);
    expect([...run("max(x[i], 0.25f)", nan, {}, "fast")]).toEqual([Number.NaN, 1]);
    expect([...run("precise::clamp(x[i], -1.0f, 0.5f)", nan, {}, "fast")]).toEqual([-1, 0.5]);
    expect([...run("precise::max(x[i], 0.25f)", nan, {}, "fast")]).toEqual([0.25, 1]);
  });
});

describe("sums over lanes", () => {
  const x = Float32Array.from({ length: 32 }, (_, i) => 1.1 ** i);
  const seeds = [0, 1, 2, 3, 4, 5, 6, 7];

  test("come in an order of the seed's", () => {
    const sums = seeds.map((seed) => run("simd_sum(x[i])", x, { seed })[0]!);
    expect(new Set(sums).size).toBeGreaterThan(1);
    for (const sum of sums) expect(Math.abs(sum / sums[0]! - 1)).toBeLessThan(1e-6);
    expect(run("simd_sum(x[i])", x, { seed: 3 })[0]).toBe(sums[3]!);
  });

  test("of integers, and the largest, are the same in each", () => {
    for (const seed of seeds) {
      expect(new Set(run("float(simd_sum(int(x[i])))", x, { seed }))).toEqual(
        new Set(run("float(simd_sum(int(x[i])))", x)),
      );
      expect(run("simd_max(x[i])", x, { seed })[0]).toBe(x[31]!);
    }
  });
});
