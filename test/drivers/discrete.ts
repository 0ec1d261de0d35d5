// What holds on a GPU with memory of its own: `bun test ./test/drivers/discrete.ts` with its environment.
import { dlopen } from "bun:ffi";
import { describe, expect, test } from "bun:test";
import { add } from "../../src/elementwise.ts";
import { embedding } from "../../src/embedding.ts";
import {
  BnbError,
  Device,
  dequantize4bit,
  type Int8RowsAndColumns,
  int8DoubleQuant,
  joinRows,
  matmul4bit,
  type QuantizedTensor,
  quantize4bit,
  Tensor,
} from "../../src/index.ts";
import { wave } from "../cases.ts";

const drivers = dlopen(process.env.BNB_DRIVER_LIBRARY!, {
  fake_drivers_set: { args: ["cstring", "i32"], returns: "void" },
  fake_drivers_get: { args: ["cstring"], returns: "i32" },
}).symbols;
type Knob = "fail_launch" | "fail_alloc" | "launches" | "serves" | "reads" | "writes" | "read_bytes" | "since_read";
const set = (knob: Knob, value: number) => drivers.fake_drivers_set(Buffer.from(`${knob}\0`), value);
const get = (knob: Knob) => drivers.fake_drivers_get(Buffer.from(`${knob}\0`));
/** How much a counter grows by an action. */
function growth(knob: Knob, action: () => void): number {
  const before = get(knob);
  action();
  return get(knob) - before;
}

const device = Device.open();
const lost =
  "discrete failed at work that was enqueued before: this fault was asked for. What it was to compute is lost";
const codeOf = (action: () => unknown): string => {
  try {
    action();
  } catch (error) {
    if (error instanceof BnbError) return `${error.code}: ${error.message}`;
    throw error;
  }
  return "nothing";
};

describe("a launch that fails", () => {
  test("marks its results: they can't be read or used, until they are written anew", () => {
    using x = Tensor.from([1, 2, 3], [3], { device });
    set("fail_launch", 1);
    using y = add(x, x);
    expect(codeOf(() => device.wait())).toContain(lost);
    expect(codeOf(() => device.wait())).toBe("nothing"); // told once,
    for (let i = 0; i < 2; i++) expect(codeOf(() => y.read())).toContain(lost); // but it stays lost
    expect(codeOf(() => add(y, x))).toContain(lost);
    expect([...x.read()]).toEqual([1, 2, 3]); // what it only read is whole
    using z = add(x, x);
    expect([...z.read()]).toEqual([2, 4, 6]);
    y.write(Float32Array.of(7, 8, 9));
    expect([...y.read()]).toEqual([7, 8, 9]);
  });
});

test("a driver may serve a product with a kernel and a grid of its own", () => {
  const rows = wave(64 * 96);
  using w = quantize4bit(Tensor.from(rows, [96, 64], { device }));
  using one = Tensor.from(rows.slice(0, 64), [1, 64], { device });
  using many = Tensor.from(rows, [96, 64], { device });
  let y: Tensor | undefined, ys: Tensor | undefined;
  expect(growth("serves", () => (y = matmul4bit(one, w)))).toBe(1);
  expect(growth("serves", () => (ys = matmul4bit(many, w)))).toBe(0); // the portable ones
  const first = ys!.read().slice(0, 96);
  for (const [i, value] of y!.read().entries()) expect(value).toBeCloseTo(first[i]!, 4);
});

/** Of an action: how often the host reads and writes memory, and launches after the last read. */
function traffic(action: () => void): { reads: number; writes: number; launchesAfter: number } {
  let reads = 0;
  const writes = growth("writes", () => {
    reads = growth("reads", action);
  });
  return { reads, writes, launchesAfter: get("since_read") };
}

test("rows of int8 are looked at by their largest magnitudes alone", () => {
  using x = Tensor.from(wave(64 * 1024), [64, 1024], { device });
  const made: Int8RowsAndColumns[] = [];
  expect(growth("reads", () => made.push(int8DoubleQuant(x)))).toBe(2); // rows, and columns
  expect(growth("read_bytes", () => made.push(int8DoubleQuant(x)))).toBeLessThan(64);
  expect(get("since_read")).toBe(0); // when all has been launched
  for (const { quantizedRow } of made) expect(quantizedRow.read()).toEqual(made[0]!.quantizedRow.read());
});

describe("quantising looks at one thing, whether all is finite, when everything has been launched", () => {
  test.each(["absmax", "leastSquares"] as const)("nested scales, %s", (scales) => {
    using x = Tensor.from(wave(32 * 1024), [32, 1024], { device }); // two groups of scales
    using row = Tensor.from(wave(1024).map(Math.abs), [1, 1024], { device });
    const options = { compressStatistics: true, scales };
    quantize4bit(x, options).dispose(); // from now on the codebooks are there
    const made: QuantizedTensor[] = [];
    expect(traffic(() => made.push(quantize4bit(x, options)))).toEqual({ reads: 1, writes: 0, launchesAfter: 0 });
    const weighed = { ...options, importance: row };
    if (scales === "leastSquares")
      expect(traffic(() => quantize4bit(x, weighed).dispose())).toEqual({ reads: 2, writes: 0, launchesAfter: 0 });
    expect(growth("read_bytes", () => made.push(quantize4bit(x, options)))).toBeLessThan(64);
    made.pop()!.dispose();
    using q = made[0]!;
    using joined = joinRows([q, q]);
    // The mean is read where somebody asks, and not by what uses the weight.
    expect(growth("reads", () => matmul4bit(row, q).dispose())).toBe(0);
    expect(growth("reads", () => dequantize4bit(q).dispose())).toBe(0);
    expect(growth("reads", () => expect(q.offset).toBe(joined.offset))).toBe(2);
  });
});

test("weights are joined without a look at their codes, which are copied", () => {
  const [rows, columns] = [64, 1024];
  const make = (seed: number) => {
    using x = Tensor.from(
      wave(rows * columns, seed).map((value) => seed * value),
      [rows, columns],
      { device },
    );
    return quantize4bit(x, { compressStatistics: true });
  };
  using a = make(1);
  using b = make(2);
  const made: QuantizedTensor[] = [];
  const codes = (rows * columns) / 2;
  expect(growth("read_bytes", () => made.push(joinRows([a, b])))).toBeWithin(2 * codes, 2.2 * codes);
  using joined = made[0]!;
  expect([a.offset === b.offset, joined.nested]).toEqual([false, false]); // so that scales are floats, made on the host
});

test("indices that the host has written are not read back", () => {
  using w = Tensor.from(wave(10 * 64), [10, 64], { device });
  using indices = Tensor.from(Int32Array.of(9, 0, 3), [3], { device });
  using pair = Tensor.from(Int32Array.of(0, 10), [2], { device });
  expect(traffic(() => embedding(indices, w).dispose())).toMatchObject({ reads: 0, writes: 0 });
  using last = pair.reshape([2]);
  expect(growth("reads", () => expect(codeOf(() => embedding(last, w))).toContain("indices[0, 1] is 10"))).toBe(1);
});

test("an operation whose memory can't be had says so, and leaves nothing behind", () => {
  using x = Tensor.from(wave(640), [10, 64], { device });
  add(x, x).dispose();
  const before = device.counters.bytes;
  for (let nth = 1; nth < 3; nth++) {
    set("fail_alloc", nth);
    expect(codeOf(() => quantize4bit(x))).toStartWith("out_of_memory: ");
  }
  set("fail_alloc", 0);
  expect(device.counters.bytes).toBe(before);
});
