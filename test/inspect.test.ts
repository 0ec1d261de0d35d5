// The tests of how handles look where they are printed: what console.log and JSON.stringify show.
import { expect, test } from "bun:test";
import { Codebook, Device, Int8Weight, nn, Parameter, quantize4bit, Tensor } from "../src/index.ts";
import { testDevices } from "./cases.ts";

const shown = (value: unknown) => Bun.inspect(value, { colors: false });

test.each(testDevices)("a tensor shows what it is and its values, as numpy does, on %s", (_, device) => {
  const on = `on ${device}`;
  expect(shown(Tensor.from([1, -2.5, 3], undefined, { device }))).toBe(`Tensor(float32 [3] ${on}) [   1, -2.5,    3]`);
  expect(shown(Tensor.from([7], [], { device }))).toBe(`Tensor(float32 [] ${on}) 7`);
  expect(shown(Tensor.from(Int8Array.of(1, 20, 3, 4), [2, 2], { device }))).toBe(
    `Tensor(int8 [2, 2] ${on})\n[[ 1, 20],\n [ 3,  4]]`,
  );
  const bits = Tensor.from([1, 2, 3, 4], [1, 2, 2], { dtype: "bfloat16", device });
  expect(shown(bits)).toBe(`Tensor(bfloat16 [1, 2, 2] ${on})\n[[[1, 2],\n  [3, 4]]]`);
  expect(shown(Tensor.from([Number.NaN, -0, Number.POSITIVE_INFINITY], undefined, { device }))).toEndWith(
    "[     NaN,        0, Infinity]",
  );
});

test("a large tensor shows the first and last of each dimension on a few lines", () => {
  using x = Tensor.from(
    Float32Array.from({ length: 500 }, (_, i) => i),
    [1, 500],
  );
  expect(shown(x)).toBe(
    "Tensor(float32 [1, 500] on cpu) [[  0,   1,   2, …, 497, 498, 499]]".replace("cpu", `${x.device}`),
  );
  using square = Tensor.zeros([1000, 1000]);
  expect(shown(square).split("\n").length).toBe(8);
});

test("columns are as wide as the widest number, wherever it stands", () => {
  const shownValues = (values: number[]) => shown(Tensor.from(values)).replace(/^.*?\) /, "");
  expect(shownValues([-1000, 1, 2])).toBe("[-1000,     1,     2]");
  expect(shownValues([1, -1000, 2])).toBe("[    1, -1000,     2]");
  expect(shownValues([1, 2, -1000])).toBe("[    1,     2, -1000]");
});

test("a handle that was disposed of says so", () => {
  const x = Tensor.zeros([2]);
  x.dispose();
  expect(shown(x)).toBe(`Tensor(float32 [2] on ${x.device}) disposed`);
});

test("every other handle is a line, and JSON shows no address", () => {
  using w = Tensor.zeros([64, 64]);
  const q = quantize4bit(w);
  const all = [q, Int8Weight.quantize(w), Codebook.named("nf3"), Device.open(), new Parameter(w), new nn.Linear4bit(w)];
  for (const one of all) expect(shown(one)).toMatch(new RegExp(`^${one.constructor.name}\\(.*\\)|^Codebook`));
  expect(shown(Codebook.named("nf2"))).toMatch(/^Codebook\(nf2\) \[ *-1, *0, *0\.\d+, *1\]$/);
  const json = JSON.stringify([w, ...all]);
  expect(json).not.toContain("ointer");
  expect(JSON.parse(json)[0]).toEqual({ dtype: "float32", shape: [64, 64], device: w.device.kind });
});
