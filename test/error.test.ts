// The checks that open every entry of the C ABI, asked through an entry each: what is let in, and what is not, in which
// words. TypeScript checks the same before, in its own words.
import { expect, test } from "bun:test";
import { Codebook, Device, KvCache, quantize4bit, Tensor } from "../src/index.ts";
import { dtypes, native } from "../src/native.ts";

const device = Device.open("cpu");
const x = Tensor.zeros([4, 64], { device });
const q = quantize4bit(x);
const cache = new KvCache({ layers: 1, heads: 1, columns: 8, capacity: 4, device });
const code = Codebook.named("nf4");
const size = (value: number) => value as never; // sizes cross as pointers do

/** Entries of one handle each, that they give NULL or a status for. */
const entries = [
  ["device", "device_wait: device", device, (at) => native.bnb_device_wait(at)],
  ["tensor", "cast: x", x, (at) => native.bnb_cast(at, dtypes.float32)],
  ["codebook", "codebook_read: codebook", code, (at) => native.bnb_codebook_read(at, new Float32Array(16), size(64))],
  ["quantised matrix", "dequantize: q", q, (at) => native.bnb_dequantize(at, dtypes.float32)],
  ["cache", "cache_resize: cache", cache, (at) => native.bnb_cache_resize(at, size(1), size(4))],
] as const satisfies [string, string, unknown, (at: never) => unknown][];

type Entry = (at: unknown) => unknown;

test.each(entries)("a %s is one, and nothing else is", (kind, place, right, entry) => {
  const call = entry as Entry;
  const isGood = (result: unknown) => result !== null && (typeof result !== "number" || result === 0 || result > 5);
  expect(isGood(call((right as { pointer: unknown }).pointer))).toBe(true);
  expect(isGood(call(null))).toBe(false);
  expect(native.bnb_last_status()).toBe(1);
  expect(String(native.bnb_last_error())).toBe(`${place} is NULL, expected a ${kind}`);
  for (const [other, , handle] of entries) {
    if (other === kind) continue;
    expect(isGood(call((handle as { pointer: unknown }).pointer))).toBe(false);
    expect(String(native.bnb_last_error())).toBe(`${place} is not a ${kind}, or was freed`);
  }
});

test.each(["int8", "uint8", "int32"] as const)("%s is no float, in a tensor or as a wish", (dtype) => {
  const ending = `is ${dtype}, expected float32, float16 or bfloat16`;
  using wrong = Tensor.zeros([4, 64], { dtype, device });
  expect(native.bnb_cast(wrong.pointer, dtypes.float32)).toBeNull();
  expect(String(native.bnb_last_error())).toBe(`cast: x ${ending}`);
  expect(native.bnb_cast(x.pointer, dtypes[dtype])).toBeNull();
  expect(String(native.bnb_last_error())).toBe(`cast: dtype ${ending}`);
  expect(native.bnb_dequantize(q.pointer, dtypes[dtype])).toBeNull();
  expect(String(native.bnb_last_error())).toBe(`dequantize: dtype ${ending}`);
  expect(native.bnb_quantize(wrong.pointer, code.pointer, size(64), size(0), 0, null)).toBeNull();
  expect(String(native.bnb_last_error())).toBe(`quantize: x ${ending}`);
});

test.each([
  [0, 1, "[0, 1], expected at least one element"],
  [1, 0, "[1, 0], expected at least one element"],
  [2 ** 48 + 1, 1, "[281474976710657, 1], more than 2^48 elements"],
  [1, 2 ** 48 + 1, "[1, 281474976710657], more than 2^48 elements"],
  [2 ** 24, 2 ** 24 + 1, "[16777216, 16777217], more than 2^48 elements"],
])("[%d, %d] is no shape", (rows, columns, ending) => {
  expect(native.bnb_tensor_zeros(device.pointer, dtypes.uint8, size(rows), size(columns))).toBeNull();
  expect(native.bnb_last_status()).toBe(1);
  expect(String(native.bnb_last_error())).toEndWith(ending);
});

test.each([
  [2 ** 48, 1],
  [1, 2 ** 48],
  [2 ** 24, 2 ** 24],
])("[%d, %d] is one, for which there is no memory", (rows, columns) => {
  expect(native.bnb_tensor_zeros(device.pointer, dtypes.uint8, size(rows), size(columns))).toBeNull();
  expect(String(native.bnb_last_error())).toContain("281474976710656 bytes can't be had");
  expect(native.bnb_last_status()).toBe(3);
});

test.each([
  [0, 0, "rows is 0 from 0 on"],
  [4, 1, "rows is 1 from 4 on"],
  [1, 4, "rows is 4 from 1 on"],
])("a slice from row %d of %d rows is none of 4", (first, rows, what) => {
  expect(native.bnb_tensor_slice(x.pointer, size(first), size(rows))).toBeNull();
  expect(String(native.bnb_last_error())).toBe(`tensor_slice: ${what}, expected some of the 4 that there are`);
});

test("a tensor takes rows of its own dtype and columns, as many as there is room for", () => {
  using to = Tensor.zeros([4, 64], { device });
  const put = (first: number, from: Tensor) => native.bnb_tensor_put(to.pointer, size(first), from.pointer);
  using two = Tensor.from(new Float32Array(128).fill(7), [2, 64], { device });
  expect([put(0, two), put(2, two)]).toEqual([0, 0]);
  expect(to.read().every((value) => value === 7)).toBe(true);
  using halves = Tensor.zeros([2, 64], { dtype: "float16", device });
  using narrow = Tensor.zeros([2, 32], { device });
  for (const [first, from] of [
    [3, two],
    [5, two],
    [0, halves],
    [0, narrow],
    [0, to.slice(0, 2)],
  ] as const) {
    expect(put(first, from)).toBe(1);
    expect(String(native.bnb_last_error())).toStartWith("tensor_put: from ");
  }
});
