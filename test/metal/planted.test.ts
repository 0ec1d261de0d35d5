// The proof of the checker: each planted fault is caught with its line, and correct kernels stay clean.

import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { TranslateError } from "../../scripts/msl/translate.ts";
import { compile, KernelError, type Mode, type RunOptions } from "./simulator.ts";

const read = (name: string) => readFileSync(join(import.meta.dir, "planted", name), "utf8");
const faults = read("faults.metal");
const uncompilable = "uninitialised_thread";

/** The source up to the first kernel, and each kernel's own text, padded so that its lines keep their numbers. */
function splitKernels(source: string): Map<string, { text: string; expected: string[] }> {
  const lines = source.split("\n");
  const kernels = new Map<string, { text: string; expected: string[] }>();
  let start = 0;
  for (let i = 0; i < lines.length; i++) {
    if (lines[i] !== "}") continue;
    const text = lines.slice(start, i + 1);
    const name = /kernel void (\w+)/.exec(text.join("\n"))?.[1];
    if (!name) continue; // a helper: it stays with the kernel after it
    const expected = text.flatMap((line, k) => {
      const comment = /\/\/ (.*)$/.exec(line);
      return comment && start + k > 0
        ? comment[1]!.split(" or ").map((kind) => `faults.metal:${start + k + 1}: ${kind}`)
        : [];
    });
    kernels.set(name, { text: text.join("\n"), expected });
    start = i + 1;
  }
  return kernels;
}

const planted = splitKernels(faults);
const compilable = faults.replace(/kernel void uninitialised_thread\(.*?\n}\n/s, (text) => text.replace(/[^\n]/g, ""));

const floats = (n: number) => new Float32Array(n).fill(1);
const plain: RunOptions = { grid: 1, group: 64, buffers: { 0: floats(64), 1: floats(64) } };
const special: Record<string, RunOptions> = {
  race_device: { ...plain, buffers: { 0: floats(64), 1: floats(64) } },
  race_between_threadgroups: { ...plain, grid: 2 },
  race_write_after_read_elsewhere: { ...plain, grid: 2 },
  race_read_between_threadgroups: { ...plain, grid: 2, buffers: { 0: floats(64), 1: floats(128) } },
  threadgroup_argument_overflow: { ...plain, threadgroup: { 0: 128 } },
  inactive_lane: { ...plain, group: 40 },
  different_tiles: { ...plain, group: 32, buffers: { 0: floats(128), 1: floats(64) } },
  uninitialised_device: { ...plain, fresh: [1] },
  misaligned: { ...plain, buffers: { 0: floats(80), 1: floats(64) } },
  bad_shift: { ...plain, buffers: { 0: new Int32Array(64).fill(1), 1: new Int32Array(64) } },
  transposed_by_some: { ...plain, group: 32, buffers: { 0: floats(64), 1: floats(64) } },
  int_overflow: { ...plain, buffers: { 0: new Int32Array(64).fill(1), 1: new Int32Array(64) } },
  index_overflow: { ...plain, buffers: { 0: new Uint32Array(64).fill(1), 1: new Uint32Array(64) } },
  size_below_zero: { ...plain, buffers: { 0: new Uint32Array(64).fill(1), 1: new Uint32Array(64) } },
  negated_least: { ...plain, buffers: { 0: new Int32Array(64).fill(1), 1: new Int32Array(64) } },
  division_by_zero: { ...plain, buffers: { 0: new Int32Array(64), 1: new Int32Array(64) } },
};

/** The errors of a run, one a line. */
function errorsOf(run: () => void): string[] {
  try {
    run();
    return [];
  } catch (error) {
    if (error instanceof KernelError || error instanceof TranslateError) return error.message.split("\n");
    throw error;
  }
}

describe("the checked build", () => {
  const library = compile(compilable, { name: "faults.metal", mode: "check" });

  for (const [name, { expected }] of planted) {
    if (name === uncompilable) continue;
    test.each([0, 1, 2])(`catches ${name} (seed %d)`, (seed) => {
      const errors = errorsOf(() => library.run(name, { ...(special[name] ?? plain), seed }));
      expect(expected.length).toBeGreaterThan(0);
      expect(errors.length).toBeGreaterThan(0);
      expect(errors.filter((error) => !expected.some((text) => error.startsWith(text)))).toEqual([]);
    });
  }

  test("rejects an uninitialised thread variable when it compiles", () => {
    const [error] = errorsOf(() => compile(faults, { name: "faults.metal", mode: "check" }));
    expect(error).toStartWith(planted.get(uncompilable)!.expected[0]!);
  });

  test("stays usable after errors", () => {
    for (const name of ["read_past_buffer", "divergent_barrier", "read_past_buffer"]) {
      expect(errorsOf(() => library.run(name, plain))).toHaveLength(1);
    }
  });
});

describe("the fast build", () => {
  const library = compile(compilable, { name: "faults.metal", mode: "fast" });
  const page = (bytes: number) => new Float32Array((4096 - bytes) / 4);

  test.each([
    ["read_past_buffer", 0, "at byte 3840 of buffer 0, which holds 3840 bytes", plain],
    ["write_past_buffer", 1, "at byte 256 of buffer 1, which holds 256 bytes", plain],
    [
      "threadgroup_overflow_by_pointer",
      1,
      "at byte",
      { ...plain, group: 128, buffers: { 0: floats(128), 1: floats(128) } },
    ],
    ["division_by_zero", 0, "by zero", special.division_by_zero!],
  ] as const)("names the kernel and the buffer of %s", (name, buffer, text, options) => {
    const buffers = buffer === 0 && name === "read_past_buffer" ? { 0: page(256), 1: floats(960) } : options.buffers;
    const group = name === "read_past_buffer" ? 960 : options.group;
    const [error] = errorsOf(() => library.run(name, { ...options, group, ...(buffers ? { buffers } : {}) }));
    expect(error).toStartWith("faults.metal:");
    expect(error).toContain(text);
    expect(error).toContain(`[kernel ${name}, thread (`);
  });

  test("notices a write into the room between a buffer's end and its guard page", () => {
    const options = { ...plain, group: 4, buffers: { 0: floats(5), 1: floats(3) } };
    expect(errorsOf(() => library.run("read_past_buffer", options))[0]).toContain("a write just past buffer 1");
  });
});

describe("a launch", () => {
  const source = `#include <metal_stdlib>
    using namespace metal;
    struct Shape { uint rows; uint columns; };
    constant uint steps [[function_constant(3)]];
    kernel void copy(device const float *x [[buffer(0)]], device float *y [[buffer(1)]],
                     constant Shape &shape [[buffer(2)]],
                     threadgroup float *room [[threadgroup(0)]], uint i [[thread_position_in_grid]]) {
      threadgroup float own[4096];
      if (i < shape.rows * steps) y[i] = x[i];
      own[i] = room[i] = 0.0f;
    }`;
  const library = compile(source);
  const good: RunOptions = {
    grid: 1,
    group: 64,
    constants: { 3: 1 },
    args: { 2: new Uint32Array([64, 1]) },
    buffers: { 0: floats(64), 1: new Float32Array(64) },
    threadgroup: { 0: 256 },
  };

  test("copies back what the kernel wrote", () => {
    library.run("copy", good);
    expect(good.buffers![1]).toEqual(floats(64));
    expect(library.threadgroupBytes("copy")).toBe(16384);
  });

  test.each([
    ["needs the function constant steps (index 3)", { constants: {} }],
    ["nothing is bound at buffer 1 (y)", { buffers: { 0: floats(64) } }],
    ["buffer 2 (shape) holds 4 bytes, but the kernel reads 8", { args: { 2: new Uint32Array(1) } }],
    ["buffer 1 (y) holds 2 bytes, but the kernel reads 4", { buffers: { 0: floats(64), 1: new Uint16Array(1) } }],
    ["no length is set for threadgroup argument 0 (room)", { threadgroup: {} }],
    ["threadgroup argument 0: 20 bytes, not a multiple of 16", { threadgroup: { 0: 20 } }],
    ["32784 bytes of threadgroup memory, at most 32768", { threadgroup: { 0: 16400 } }],
    ["a threadgroup of 1025 x 1 x 1 threads", { group: 1025 }],
    ["a threadgroup of 32 x 33 x 1 threads", { group: [32, 33, 1] as const }],
    ["an empty grid", { grid: 0 }],
  ])("is refused: %s", (text, change) => {
    expect(() => library.run("copy", { ...good, ...change })).toThrow(text);
  });

  test("takes function constants of any index and type, and leaves optional ones alone", () => {
    const optional = compile(`#include <metal_stdlib>
      using namespace metal;
      constant float factor [[function_constant(2000)]];
      constant half more [[function_constant(65)]];
      constant float extra = is_function_constant_defined(more) ? float(more) : 0.0f;
      constant float sum = (is_function_constant_defined(factor) ? factor : 10.0f) + extra;
      kernel void k(device float *o [[buffer(0)]]) { o[0] = sum; }`);
    const results = [{}, { 2000: 1.5 }, { 2000: 1.5, 65: 0.25, 7: 3 }].map((constants) => {
      const o = new Float32Array(1);
      optional.run("k", { constants, buffers: { 0: o }, grid: 1, group: 1 });
      return o[0];
    });
    expect(results).toEqual([10, 1.5, 1.75]);
  });

  test("of an unknown kernel names those that exist", () => {
    expect(() => library.run("paste", good)).toThrow("no kernel is named paste; there are copy");
  });
});

describe.each(["fast", "check"] as const)("correct kernels in the %s build", (mode: Mode) => {
  const library = compile(read("correct.metal"), { name: "correct.metal", mode });
  const seeds = [0, 1, 7, 123456];
  const sequence = (n: number) => Array.from({ length: n }, (_, i) => ((i * 37) % 101) - 50);

  test.each(seeds)("sums (seed %d)", (seed) => {
    const [rows, columns] = [5, 300];
    const x = sequence(rows * columns);
    const y = new Float32Array(rows);
    const expected = Array.from({ length: rows }, (_, r) =>
      x.slice(r * columns, (r + 1) * columns).reduce((a, b) => a + b),
    );
    const options = { args: { 2: new Uint32Array([0, columns]) }, fresh: [1], grid: rows, group: 128, seed };
    library.run("sums_float_1", {
      ...options,
      constants: { 0: true, 1: 3 },
      buffers: { 0: new Float32Array(x), 1: y },
    });
    expect([...y]).toEqual(expected.map((sum) => 6 * sum));
    library.run("sums_half_2", {
      ...options,
      constants: { 0: false, 1: 3 },
      buffers: { 0: new Float16Array(x), 1: y },
    });
    expect([...y]).toEqual(expected.map((sum) => 2 * sum));
  });

  test.each(seeds)("exchange inside a simdgroup (seed %d)", (seed) => {
    const y = new Float32Array(64);
    library.run("simdgroup_exchange", {
      buffers: { 0: new Float32Array(sequence(64)), 1: y },
      fresh: [1],
      grid: 1,
      group: 64,
      seed,
    });
    expect([...y]).toEqual(sequence(64).map((_, i, all) => all[i ^ 1]!));
  });

  test.each(seeds)("atomics (seed %d)", (seed) => {
    const bins = new Uint32Array(8);
    const x = new Uint32Array(1000).map((_, i) => i * i);
    library.run("histogram", {
      buffers: { 0: x, 1: bins },
      args: { 2: new Uint32Array([1000, 0]) },
      grid: 8,
      group: 128,
      seed,
    });
    expect([...bins]).toEqual([...new Uint32Array(8)].map((_, bin) => x.filter((value) => value % 8 === bin).length));
  });

  test.each(seeds)("a ragged simdgroup (seed %d)", (seed) => {
    const x = new Uint32Array(40).map((_, i) => (i < 32 ? 2 * i : i));
    const y = new Uint32Array(40);
    library.run("ragged", { buffers: { 0: x, 1: y }, fresh: [1], grid: 1, group: 40, seed });
    const expected = [...x].map((_, i) => {
      const start = i < 32 ? 0 : 32;
      return x.slice(start, i).reduce((a, b) => a + b, 0) + (start ? 1000 : 0) + x[start]!;
    });
    expect([...y]).toEqual(expected);
  });

  test.each(seeds)("tiles of simdgroup matrices (seed %d)", (seed) => {
    const x = sequence(16 * 24);
    const w = sequence(24 * 16).map((value) => value / 8);
    const y = new Float32Array(256);
    const buffers = { 0: new Float16Array(x), 1: new Float16Array(w), 2: y };
    library.run("tiles", { buffers, fresh: [2], threadgroup: { 0: 16 * 12 * 2 }, grid: 1, group: 128, seed });
    const expected = Array.from({ length: 256 }, (_, i) => {
      let sum = 0;
      for (let k = 0; k < 24; k++) sum += x[(i >> 4) * 24 + k]! * w[k * 16 + (i & 15)]!;
      return sum;
    });
    expect([...y]).toEqual(expected);
  });

  test("vectors", () => {
    const x = new Uint8Array([1, 2, 200, 3, 255, 0, 7, 90]);
    const y = new Float32Array(8);
    library.run("vectors", { buffers: { 0: x, 1: y }, fresh: [1], grid: 1, group: 2 });
    expect([...y]).toEqual([67, 7, 9, 4, -19, 3, 183, 4]);
  });

  test("seeds shuffle threads and threadgroups, each in its own way", () => {
    const orders = [0, 1, 2, 1].map((seed) => {
      const order = new Uint32Array(512);
      library.run("arrival", { buffers: { 0: new Uint32Array(1), 1: order }, fresh: [1], grid: 8, group: 64, seed });
      return [...order];
    });
    const [inOrder, one, two, oneAgain] = orders as [number[], number[], number[], number[]];
    expect(inOrder).toEqual(inOrder.map((_, i) => i));
    for (const order of [one, two]) {
      expect(order.toSorted((a, b) => a - b)).toEqual(inOrder);
      expect(order.slice(0, 64)).not.toEqual(order.slice(0, 64).toSorted((a, b) => a - b));
      expect(order.filter((_, i) => i % 64 === 0).map((i) => i >> 6)).not.toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    }
    expect(one).not.toEqual(two);
    expect(one).toEqual(oneAgain);
  });
});
