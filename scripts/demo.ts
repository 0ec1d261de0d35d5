// `bun run demo`: real weights quantised in every format, what that saves and costs, and a layer on disk and back.
import { mkdirSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { findQuantized, type Stored4bit } from "../src/checkpoint/state.ts";
import { fromStateDict, toStateDict } from "../src/checkpoint/statedict.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { table } from "../src/cli/table.ts";
import { compare } from "../src/compare.ts";
import {
  Codebook,
  createFp8Map,
  createLinearMap,
  currentDevice,
  dequantize4bit,
  dequantizeBlockwise,
  devices,
  linear,
  matmulBlockwise,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
  version,
} from "../src/index.ts";
import { normal } from "../test/cases.ts";
import { expectedError } from "./theory.ts";

const device = currentDevice();
console.log(`bunsandbytes ${version} on ${device.kind}: ${device.description}`);
for (const report of devices()) if (!report.available) console.log(`  ${report.reason}`);

/** Every format that this library stores a weight in. */
const formats: [name: string, quantize: (w: Tensor) => QuantizedTensor][] = [
  ["nf4, block 64", (w) => quantize4bit(w)],
  ["nf4, block 64, nested scales", (w) => quantize4bit(w, { compressStatistics: true })],
  ["nf4, block 128", (w) => quantize4bit(w, { blocksize: 128 })],
  ["fp4, block 64", (w) => quantize4bit(w, { quantType: "fp4" })],
  ["af4, block 64", (w) => quantize4bit(w, { quantType: "af4" })],
  ...(["nf2", "nf3", "nf5", "nf6"] as const).map((name): [string, (w: Tensor) => QuantizedTensor] => [
    `${name}, block 64`,
    (w) => quantizeBlockwise(w, { code: Codebook.named(name) }),
  ]),
  ["8-bit dynamic, block 256", (w) => quantizeBlockwise(w, { blocksize: 256 })],
  ["8-bit linear, block 256", (w) => quantizeBlockwise(w, { code: createLinearMap(), blocksize: 256 })],
  ["8-bit fp8 e4m3, block 256", (w) => quantizeBlockwise(w, { code: createFp8Map(true, 4, 3), blocksize: 256 })],
];

/** The least time of each, in milliseconds, taken in turn: what another program on the machine costs is not ours. */
function times(a: () => Tensor, b: () => Tensor): [number, number] {
  const least: [number, number] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  const end = performance.now() + 150;
  for (let round = 0; round < 5 || performance.now() < end; round++) {
    for (const [i, run] of [a, b].entries()) {
      const started = Bun.nanoseconds();
      run().dispose();
      device.wait();
      least[i] = Math.min(least[i]!, (Bun.nanoseconds() - started) / 1e6);
    }
  }
  return least;
}

/** One table: a weight in every format, beside itself in fp32. */
function report(w: Tensor<"float32">): string {
  const [, k] = w.shape as [number, number];
  using x = Tensor.from(normal(k, 11), [1, k]);
  using dense = linear(x, w);
  const rows = formats.map(([name, quantize]) => {
    using q = quantize(w);
    using back = dequantizeBlockwise(q, { dtype: "float32" });
    using y = matmulBlockwise(x, q);
    const error = compare(w, back);
    const product = compare(dense, y);
    const [fast, slow] = times(
      () => matmulBlockwise(x, q),
      () => linear(x, w),
    );
    return [
      name,
      q.bitsPerElement.toFixed(2),
      `${((w.byteLength - q.byteLength) / 1024).toFixed(0)} KB`,
      (error.rmsError / error.rms).toFixed(4),
      expectedError(q.code, q.blocksize).toFixed(4),
      (product.rmsError / product.rms).toFixed(4),
      `${fast.toFixed(3)} ms`,
      `${(slow / fast).toFixed(2)}×`,
    ];
  });
  return table([["format", "bits", "saved", "error", "theory", "product error", "x·wᵀ", "speed-up"], ...rows]);
}

using large = Tensor.from(normal(4096 * 4096, 5, 0.02), [4096, 4096]);
console.log("\nThe size of a language model's layer: normal weights [4096, 4096], 65,536 KB as float32");
console.log(report(large));

console.log(
  "\nerror: ‖w − ŵ‖/‖w‖. theory: what independent normal weights give. product error, speed-up: of one row x against dense fp32.",
);

// ── Real weights ────────────────────────────────────────────────────────────────────────────────────────────────────

using fixture = openSafetensors(`${import.meta.dir}/../test/fixtures/minilm.safetensors`);
const layers = [...fixture.tensors.values()].filter((tensor) => tensor.shape.length === 2);
for (const { name, shape, values } of layers) {
  using w = Tensor.from(Float32Array.from(values as Float16Array), shape);
  console.log(`\nall-MiniLM-L6-v2 ${name} [${shape.join(", ")}], ${w.byteLength / 1024} KB as float32`);
  console.log(report(w));
}

// ── To disk, as bitsandbytes would save it, and back ────────────────────────────────────────────────────────────────

const folder = `${tmpdir()}/bunsandbytes-demo`;
mkdirSync(folder, { recursive: true });
const path = `${folder}/layer-nf4.safetensors`;
const { name, shape, values } = layers[0]!;
using half = Tensor.from(values as Float16Array, shape);
using q = quantize4bit(half, { compressStatistics: true });
await writeSafetensors(path, toStateDict(name, q));

using saved = openSafetensors(path);
using loaded = fromStateDict(findQuantized(saved.tensors).get(name) as Stored4bit);
const same = Bun.deepEquals(dequantize4bit(loaded).read(), dequantize4bit(q).read());
console.log(`\n${path}, ${(statSync(path).size / 1024).toFixed(0)} KB, in bitsandbytes' own layout:`);
for (const tensor of saved.tensors.values())
  console.log(`  ${tensor.name} ${tensor.dtype} [${tensor.shape.join(", ")}]`);
console.log(same ? "Read back: every weight is the same, bit for bit." : "Read back: DIFFERENT.");
if (!same) process.exit(1);
