// Models that are saved load again to the same numbers, in every form that weights are held in.
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { loadWeight } from "../../src/checkpoint/statedict.ts";
import { quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { quantizeToMlx } from "../../src/checkpoint/transform_mlx.ts";
import {
  Codebook,
  Device,
  dequantizeBlockwise,
  joinRows,
  type LoadOptions,
  Model,
  QuantizedTensor,
  Tensor,
} from "../../src/index.ts";
import { saveModel } from "../../src/model/save.ts";
import { normal, testDevices } from "../cases.ts";
import { difference, expectedOf, rejection, tiny } from "./fixtures.ts";
import { writeGguf } from "./gguf.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-save-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let folders = 0;
const fresh = () => join(scratch, `${folders++}`);

function logitsOf(model: Model, name: string): Float32Array {
  using session = model.session({ cacheDtype: "float32" });
  return session.forward(expectedOf(name).ids[0]!, { logits: "all" });
}

describe.each(testDevices)("on %s", (_, device) => {
  test.each<[string, LoadOptions]>([
    ["llama", {}],
    ["llama", { quantType: "nf4", blocksize: 32 }],
    ["llama", { quantType: "nf4", blocksize: 32, doubleQuant: true }],
    ["llama-yarn", { quantType: "fp4", blocksize: 64 }], // biases, heads of 12; some blocks go over rows: not joined
    ["llama", { quantType: "int8" }],
    ["phi", { quantType: "nf4" }], // a head of its own, with a bias
    ["qwen2_moe", { quantType: "nf4", blocksize: 32 }],
    ["gemma3", {}],
    ["olmo2", { quantType: "int8" }],
  ])("%s, %j", async (name, options) => {
    using model = await Model.load(tiny(name), { device, precision: "highest", ...options });
    const output = fresh();
    const seen: string[] = [];
    const report = await model.save({ output, onProgress: ({ tensor }) => seen.push(tensor) });
    using again = await Model.load(output, { device, precision: "highest" });
    expect(difference(logitsOf(again, name), logitsOf(model, name))).toBeLessThan(1e-6 * expectedOf(name).largest);
    using saved = openCheckpoint(output);
    using source = openCheckpoint(tiny(name));
    expect(seen.toSorted()).toEqual([...source.tensors.keys()].toSorted());
    expect(saved.quantized.size).toBe(report.weights);
    expect(report.weights > 0).toBe(options.quantType !== undefined);
    const savedBytes = [...saved.tensors.values()].reduce((sum, { bytes }) => sum + bytes.length, 0);
    if (!options.quantType) expect(report.inputBytes).toBe(savedBytes);
    else if (!options.doubleQuant) expect(Math.abs(report.inputBytes / savedBytes - 1)).toBeLessThan(0.25);
    const verified = await verifyCheckpoint(output);
    expect(verified.problems).toEqual([]);
  });

  test("what bitsandbytes has quantised stays in its format, and a second time is the first", async () => {
    const [quantised, output, second] = [fresh(), fresh(), fresh()];
    await quantizeCheckpoint(tiny("qwen3"), { output: quantised, quantType: "nf4", blocksize: 32 });
    using model = await Model.load(quantised, { device, precision: "highest" });
    await model.save({ output });
    using again = await Model.load(output, { device, precision: "highest" });
    await again.save({ output: second });
    const config = (folder: string) => JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
    expect(config(output)).toEqual(config(quantised));
    using a = openCheckpoint(quantised);
    using b = openCheckpoint(output);
    expect([...b.tensors.keys()].sort()).toEqual([...a.tensors.keys()].sort());
    for (const [key, tensor] of a.tensors) expect([key, tensor.bytes]).toEqual([key, b.tensors.get(key)!.bytes]);
    const bytes = (folder: string) => readFileSync(join(folder, "model.safetensors"));
    expect(bytes(second).equals(bytes(output))).toBe(true);
  });

  test("layers of two devices, and an encoder with its tables", async () => {
    const cpu = Device.open("cpu");
    using split = await Model.load(tiny("llama"), { devices: [device, cpu], quantType: "nf4", precision: "highest" });
    const output = fresh();
    await split.save({ output });
    using whole = await Model.load(output, { device, precision: "highest" });
    const { largest } = expectedOf("llama");
    expect(difference(logitsOf(whole, "llama"), logitsOf(split, "llama"))).toBeLessThan(1e-5 * largest);
    for (const name of ["mpnet", "nomic_bert"]) {
      using encoder = await Model.load(tiny(name), { device, quantType: "int8" });
      const folder = fresh();
      await encoder.save({ output: folder });
      using again = await Model.load(folder, { device });
      const { ids } = expectedOf(name);
      const [a, b] = [await encoder.embed(ids), await again.embed(ids)];
      for (const [i, vector] of a.entries()) expect(difference(vector, b[i]!)).toBeLessThan(1e-6);
    }
  });
});

test("a GGUF file becomes a folder, with its tokenizer", async () => {
  const file = join(scratch, "model.gguf");
  writeGguf(tiny("llama"), "llama", file);
  using model = await Model.load(file, { quantType: "nf4", precision: "highest" });
  const output = fresh();
  await model.save({ output, shardBytes: 4096 });
  expect(existsSync(join(output, "model.safetensors.index.json"))).toBe(true);
  using again = await Model.load(output, { precision: "highest" });
  expect(again.tokenizer.encode("Hello")).toEqual(model.tokenizer.encode("Hello"));
  const options = { maxTokens: 8, ignoreEos: true };
  expect(await again.generate("Hello", options).text()).toBe(await model.generate("Hello", options).text());
});

test.each(["GGUF", "MLX"])(
  "%s's own codes and scales become a folder, and nothing is quantised again",
  async (which) => {
    const file = join(scratch, which === "GGUF" ? "q8.gguf" : "mlx");
    if (which === "GGUF") writeGguf(tiny("llama"), "llama", file, true);
    else await quantizeToMlx(tiny("llama"), { output: file, blocksize: 32 });
    using model = await Model.load(file, { precision: "highest" });
    const output = fresh();
    const { weights } = await model.save({ output });
    expect(weights).toBeGreaterThan(9);
    using again = await Model.load(output, { precision: "highest" });
    expect([...logitsOf(again, "llama")]).toEqual([...logitsOf(model, "llama")]);
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
  },
);

/** As GGUF's Q4_K: scales and offsets as 6-bit codes by halves, in groups of 8 blocks. */
function nestedOffsets(rows: number, seed: number): QuantizedTensor {
  const [columns, blocks] = [64, rows * 2];
  const bytes = (count: number) =>
    Tensor.from(Uint8Array.from({ length: count }, (_, i) => i * seed)) as Tensor<"uint8">;
  const halves = (from: number) => Tensor.from(normal(blocks / 8, from)).cast("float16");
  return QuantizedTensor.fromParts({
    ...{ codes: bytes((rows * columns) / 2), absmax: bytes((blocks * 6) / 8), offsets: bytes((blocks * 6) / 8) },
    ...{ code: Codebook.named("af4"), blocksize: 32, shape: [rows, columns] },
    nested: {
      ...{ absmax: halves(seed), code: Codebook.named("nf6"), blocksize: 8, offset: 0.25 },
      offsetsAbsmax: halves(seed + 1),
    },
  });
}

test("rows of a joined weight with nested scales and offsets", async () => {
  const parts = [nestedOffsets(8, 3), nestedOffsets(4, 5), nestedOffsets(12, 7)];
  using weight = joinRows(parts);
  expect(weight.nested).toBe(true);
  const names = ["a.weight", "b.weight", "c.weight"];
  const kept = [0, 8, 12].map((from, i) => [names[i]!, { weight, rows: { from, to: [8, 12, 24][i]! } }] as const);
  const output = fresh();
  const origin = { path: tiny("llama"), config: undefined, texts: new Map() };
  await saveModel(new Map(kept), origin, {}, { output });
  using saved = openCheckpoint(output);
  for (const [i, part] of parts.entries()) {
    using back = loadWeight(saved, names[i]!) as QuantizedTensor;
    expect([back.shape, back.byteLength]).toEqual([part.shape, part.byteLength]);
    expect(back.absmax.read()).toEqual(part.absmax.read());
    expect(back.offsets!.read()).toEqual(part.offsets!.read());
    expect(back.codes.read()).toEqual(part.codes.read());
    expect([...dequantizeBlockwise(back).readFloat32()]).toEqual([...dequantizeBlockwise(part).readFloat32()]);
  }
});

test("what is refused, before anything is written", async () => {
  const output = fresh();
  const model = await Model.load(tiny("llama"));
  expect((await rejection(model.save({ output: tiny("llama") }))).message).toContain("llama");
  expect((await rejection(model.save({ output: 5 as never }))).message).toContain("output is 5");
  expect((await rejection(model.save({ output, outputs: 1 } as never))).message).toContain("outputs");
  model.dispose();
  expect((await rejection(model.save({ output }))).message).toContain("used after dispose");
});
