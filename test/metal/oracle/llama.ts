// Holds the translator to llama.cpp: every Metal source of it is accepted, and three of its products come out right.
//
// Run by `bun run test:oracle`, never by `bun test`: it downloads.
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { translate } from "../../../scripts/msl/translate.ts";
import { compile, type RunOptions } from "../simulator.ts";
import { typeCheck } from "../toolchain.ts";
import { crates } from "./download.ts";

const root = join(crates({ "llama-cpp-sys-2": "0.1.161" })["llama-cpp-sys-2"]!, "llama.cpp/ggml/src");
const metal = join(root, "ggml-metal");
const kernels = join(metal, "kernels");
const dialect = { dialect: "any", includes: [kernels, root, metal] } as const;
const read = (file: string) => readFileSync(join(kernels, file), "utf8");

const files = readdirSync(kernels).filter((file) => file.endsWith(".metal"));
const parts = new Set(
  files.flatMap((file) => [...read(file).matchAll(/#include "(\w+\.metal)"/g)].map((match) => match[1]!)),
);
const wholes = files.filter((file) => !parts.has(file));

test.each(wholes)("%s is accepted", (file) => {
  const { cpp, kernels: found } = translate(read(file), file, dialect);
  typeCheck(cpp, file, "c++20");
  expect(found.length).toBeGreaterThan(0);
});

/** Blocks of 32 weights: a scale as half, and 16 bytes, low nibbles first. */
function weights(rows: number, columns: number, decode: (code: number) => number) {
  const bytes = new Uint8Array((rows * columns * 18) / 32);
  const values = new Float64Array(rows * columns);
  const view = new DataView(bytes.buffer);
  let state = 99;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 8;
  };
  for (let block = 0; block < (rows * columns) / 32; block++) {
    const scale = Math.f16round(0.01 + (random() % 100) / 1000);
    view.setFloat16(block * 18, scale, true);
    for (let i = 0; i < 16; i++) {
      const byte = random() & 255;
      bytes[block * 18 + 2 + i] = byte;
      values[block * 32 + i] = scale * decode(byte & 15);
      values[block * 32 + 16 + i] = scale * decode(byte >> 4);
    }
  }
  return { bytes, values };
}

/** A structure of arguments, from its C declaration: fields in order, each on a multiple of its size. */
function structure(fields: readonly (readonly [bytes: 2 | 4 | 8, value: number])[]): Uint8Array<ArrayBuffer> {
  const view = new DataView(new ArrayBuffer(128));
  let at = 0;
  for (const [bytes, value] of fields) {
    at = Math.ceil(at / bytes) * bytes;
    if (bytes === 8) view.setBigInt64(at, BigInt(value), true);
    else if (bytes === 4) view.setInt32(at, value, true);
    else view.setInt16(at, value, true);
    at += bytes;
  }
  return new Uint8Array(view.buffer, 0, Math.ceil(at / 8) * 8);
}

const int = (...values: number[]) => values.map((value): [4, number] => [4, value]);
const long = (...values: number[]) => values.map((value): [8, number] => [8, value]);
const short = (...values: number[]) => values.map((value): [2, number] => [2, value]);

function relativeError(
  actual: Float32Array,
  x: Float32Array,
  w: Float64Array,
  m: number,
  n: number,
  k: number,
): number {
  let wrong = 0;
  let right = 0;
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let c = 0; c < k; c++) sum += x[i * k + c]! * w[j * k + c]!;
      wrong += (actual[i * n + j]! - sum) ** 2;
      right += sum ** 2;
    }
  }
  return Math.sqrt(wrong / right);
}

const iq4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
const activations = (count: number) =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(i * 0.7) + 0.01 * (i % 17));

test.each([
  ["kernel_mul_mv_q4_0_f32", (code: number) => code - 8, 4],
  ["kernel_mul_mv_iq4_nl_f32", (code: number) => iq4[code]!, 2],
] as const)("%s is right", (name, decode, rowsPerSimdgroup) => {
  const [n, k, simdgroups] = [24, 512, 2];
  const { bytes, values } = weights(n, k, decode);
  const row = (k / 32) * 18;
  const x = activations(k);
  const fields = [
    ...[...int(k, n, 1), ...long(18, row, row * n, row * n), ...int(k, 1, 1), ...long(4, 4 * k, 4 * k, 4 * k)],
    ...[...int(n, 1, rowsPerSimdgroup), ...short(1, 1)],
  ];
  const y = new Float32Array(n).fill(Number.NaN);
  compile(read("mul_mv.metal"), { ...dialect, name: "mul_mv.metal", only: [name] }).run(name, {
    constants: { 600: simdgroups, 601: 8, 602: 1, 603: 1, 604: 1, 605: false },
    args: { 0: structure(fields) },
    buffers: { 1: bytes, 2: x, 3: y },
    threadgroup: { 0: 128 },
    grid: [n / (rowsPerSimdgroup * simdgroups), 1, 1],
    group: [32, simdgroups, 1],
  });
  expect(relativeError(y, x, values, 1, n, k)).toBeLessThan(1e-6);
});

test.each([
  [64, 32, false],
  [72, 40, true],
])("kernel_mul_mm_q4_0_f32 is right for %d by %d", (n, m, ragged) => {
  const k = 256;
  const { bytes, values } = weights(n, k, (code) => code - 8);
  const row = (k / 32) * 18;
  const x = activations(m * k);
  const fields = [
    ...[...int(k, 1), ...long(row, row * n, row * n), ...int(1), ...long(4, 4 * k, 4 * k * m, 4 * k * m)],
    ...[...int(n, m), ...short(1, 1)],
  ];
  const y = new Float32Array(n * m).fill(Number.NaN);
  const options: RunOptions = {
    constants: { 700: false, 701: ragged, 702: 1, 703: 1, 704: 1, 705: 1, 706: false },
    args: { 0: structure(fields) },
    buffers: { 1: bytes, 2: x, 3: y },
    threadgroup: { 0: 8192 },
    grid: [Math.ceil(m / 32), Math.ceil(n / 64), 1],
    group: [128, 1, 1],
  };
  const only = ["kernel_mul_mm_q4_0_f32"];
  compile(read("mul_mm.metal"), { ...dialect, name: "mul_mm.metal", only }).run(only[0]!, options);
  expect(relativeError(y, x, values, m, n, k)).toBeLessThan(1e-3); // it rounds x and w to half
});
