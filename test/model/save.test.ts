// Models that are saved load again to the same numbers, in every form that weights are held in.
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { Device, type LoadOptions, Model } from "../../src/index.ts";
import { testDevices } from "../cases.ts";
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

test("what is refused, before anything is written", async () => {
  const file = join(scratch, "q8.gguf");
  writeGguf(tiny("llama"), "llama", file, true);
  using gguf = await Model.load(file);
  const output = fresh();
  expect((await rejection(gguf.save({ output }))).message).toMatch(/weight is in a form of GGUF's or MLX's/);
  expect(existsSync(output)).toBe(false);
  const model = await Model.load(tiny("llama"));
  expect((await rejection(model.save({ output: tiny("llama") }))).message).toContain("llama");
  expect((await rejection(model.save({ output: 5 as never }))).message).toContain("output is 5");
  expect((await rejection(model.save({ output, outputs: 1 } as never))).message).toContain("outputs");
  model.dispose();
  expect((await rejection(model.save({ output }))).message).toContain("used after dispose");
});
