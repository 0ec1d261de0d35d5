// Models as people have them: what other programs left in a folder, and what is no model at all.
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import type { SafetensorsDtype } from "../src/checkpoint/header.ts";
import { quantMethod } from "../src/checkpoint/huggingface.ts";
import { verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { llamaDirectory, weights } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-strange-"));
afterAll(() => rmSync(scratch, { recursive: true }));

let made = 0;
const fresh = () => join(scratch, `out-${made++}`);

async function llama(config?: object): Promise<string> {
  const folder = fresh();
  await llamaDirectory(folder);
  const path = join(folder, "config.json");
  if (config) writeFileSync(path, JSON.stringify({ ...JSON.parse(readFileSync(path, "utf8")), ...config }));
  return folder;
}

describe("dtypes that stand behind the states of weights in a file", () => {
  test.each<[SafetensorsDtype, Uint8Array]>([
    ["BOOL", Uint8Array.of(1, 0, 1, 1)],
    ["F4", Uint8Array.of(0x12, 0x34)],
    ["F6_E2M3", Uint8Array.of(1, 2, 3)],
    ["F6_E3M2", Uint8Array.of(4, 5, 6)],
  ])("%s comes along", async (dtype, bytes) => {
    const input = fresh();
    mkdirSync(input);
    const mask = { name: "a.mask", dtype, shape: [4], bytes };
    const weight = { name: "b.weight", dtype: "F32" as const, shape: [64, 64], bytes: weights(64 * 64) };
    await writeSafetensors(join(input, "model.safetensors"), [mask, weight]);
    const output = fresh();
    await quantizeCheckpoint(input, { output });
    using opened = openCheckpoint(output);
    expect([...opened.tensors.get("a.mask")!.bytes]).toEqual([...bytes]);
    expect([...opened.quantized.keys()]).toEqual(["b.weight"]);
  });
});

test("config.json may hold what Python writes: infinities and NaN come through", async () => {
  const input = await llama();
  const path = join(input, "config.json");
  const odd = '"time_step_limit": [0.0, Infinity, -Infinity, NaN], "say": "Infinity, \\"NaN\\""';
  writeFileSync(path, readFileSync(path, "utf8").replace('"model_type"', `${odd}, "model_type"`));
  const output = fresh();
  await quantizeCheckpoint(input, { output });
  const written = readFileSync(join(output, "config.json"), "utf8");
  expect(written.replaceAll(/\s+/g, " ")).toContain('"time_step_limit": [ 0.0, Infinity, -Infinity, NaN ]');
  expect(written).toContain('"say": "Infinity, \\"NaN\\""');
});

describe("quantization_config", () => {
  test.each([
    [{}, undefined],
    [{ load_in_4bit: false, load_in_8bit: false, quant_method: "bitsandbytes" }, undefined],
    [{ load_in_4bit: false }, undefined],
    [null, undefined],
    [{ load_in_4bit: true, bnb_4bit_quant_type: "nf4" }, "nf4"],
    [{ group_size: 64, bits: 4 }, "mlx"],
    [{ quant_method: "gptq", bits: 4, group_size: 128 }, "gptq"],
  ])("%j is %p", (said, method) => {
    expect(quantMethod({ quantization_config: said as never })).toBe(method);
  });

  test("left over by a merge, it is replaced, and that is said", async () => {
    const input = await llama({ quantization_config: { load_in_4bit: true, bnb_4bit_quant_type: "fp4" } });
    const output = fresh();
    const { weights: quantised, notes } = await quantizeCheckpoint(input, { output });
    expect([quantised, notes]).toEqual([
      7,
      [expect.stringMatching(/said that weights are quantised \(fp4\), but none is/)],
    ]);
    expect(JSON.parse(readFileSync(join(output, "config.json"), "utf8")).quantization_config.bnb_4bit_quant_type).toBe(
      "nf4",
    );
  });

  test("of MLX, with its weights, is refused by name; with floats it goes", async () => {
    const said = { group_size: 64, bits: 4, mode: "affine" };
    const input = fresh();
    mkdirSync(input);
    const packed = { name: "a.weight", dtype: "U32" as const, shape: [64, 8], bytes: new Uint32Array(512) };
    await writeSafetensors(join(input, "model.safetensors"), [packed]);
    writeFileSync(join(input, "config.json"), JSON.stringify({ quantization: said, quantization_config: said }));
    await expect(quantizeCheckpoint(input, { output: fresh() })).rejects.toThrow(/quantised already \(mlx\)/);
    const output = fresh();
    await quantizeCheckpoint(await llama({ quantization: said }), { output });
    expect(JSON.parse(readFileSync(join(output, "config.json"), "utf8")).quantization).toBeUndefined();
  });
});

describe("what is no model", () => {
  test("an adapter, by its folder and by its file", async () => {
    const adapter = fresh();
    mkdirSync(adapter);
    const name = "base_model.model.a.lora_A.weight";
    const file = join(adapter, "adapter_model.safetensors");
    await writeSafetensors(file, [{ name, dtype: "F32", shape: [4, 64], bytes: weights(256) }]);
    writeFileSync(join(adapter, "adapter_config.json"), "{}");
    for (const input of [adapter, file])
      await expect(quantizeCheckpoint(input, { output: fresh() })).rejects.toThrow(
        /is an adapter, not a model; merge it/,
      );
  });

  test("config.json, or any other file, is not called damaged", async () => {
    const folder = await llama();
    for (const name of ["config.json", "tokenizer.json", ".gitattributes"])
      expect(() => openCheckpoint(join(folder, name))).toThrow(
        /is no safetensors file, nor an index of such; name the/,
      );
  });
});

test("a repository's folder of the Hugging Face cache is its main snapshot", async () => {
  const repository = join(scratch, "models--org--name");
  const model = await llama();
  const names = ["0".repeat(40), "1".repeat(40)] as const;
  for (const name of names) cpSync(model, join(repository, "snapshots", name), { recursive: true });
  expect(() => openCheckpoint(repository)).toThrow(/several: name one/);
  mkdirSync(join(repository, "refs"));
  writeFileSync(join(repository, "refs/main"), `${names[1]}\n`);
  using opened = openCheckpoint(repository);
  expect(opened.directory).toBe(join(repository, "snapshots", names[1]));
  const { carried } = await quantizeCheckpoint(repository, { output: fresh() });
  expect(carried).toContain("tokenizer.json");
});

test("sentence-transformers' dense layers come along with their weights", async () => {
  const input = await llama();
  mkdirSync(join(input, "2_Dense"));
  const dense = [{ name: "linear.weight", dtype: "F32" as const, shape: [64, 64], bytes: weights(64 * 64) }];
  await writeSafetensors(join(input, "2_Dense/model.safetensors"), dense);
  writeFileSync(join(input, "modules.json"), '[{"idx": 0, "path": ""}, {"idx": 2, "path": "2_Dense"}]');
  const output = fresh();
  const { carried } = await quantizeCheckpoint(input, { output });
  expect(carried).toContain("2_Dense/model.safetensors");
  expect(readFileSync(join(output, "2_Dense/model.safetensors"))).toEqual(
    readFileSync(join(input, "2_Dense/model.safetensors")),
  );
});

test.each(["F32", "BF16"] as const)("what float16 would make infinite stays %s, and that is said", async (dtype) => {
  const input = fresh();
  mkdirSync(input);
  const [name, far] = ["gpt_neox.layers.0.attention.masked_bias", Float32Array.of(1, -1e9)];
  const bytes = dtype === "F32" ? far : Uint16Array.from(new Uint32Array(far.buffer), (bits) => bits >>> 16);
  await writeSafetensors(join(input, "model.safetensors"), [
    { name, dtype, shape: [2], bytes },
    { name: "near.bias", dtype: "F32", shape: [2], bytes: Float32Array.of(65504, -65504) },
    { name: "b.weight", dtype: "F32", shape: [64, 64], bytes: weights(64 * 64) },
  ]);
  const output = fresh();
  const { notes, stays } = await quantizeCheckpoint(input, { output, dtype: "float16" });
  using opened = openCheckpoint(output);
  expect([name, "near.bias"].map((one) => opened.tensors.get(one)!.dtype)).toEqual([dtype, "F16"]);
  expect([...opened.tensors.get(name)!.bytes]).toEqual([...new Uint8Array(bytes.buffer)]);
  expect(stays![name]).toBe(`not a matrix of a linear layer; in ${dtype}, since it is beyond float16's 65504`);
  expect(notes).toContain(`Beyond float16's 65504, so as it was: ${name}.`);
  expect((await verifyCheckpoint(output)).problems).toEqual([]);
});

test("tensors are counted once: quantise and verify agree", async () => {
  const output = fresh();
  const { weights: quantised, kept } = await quantizeCheckpoint(await llama(), { output });
  expect((await verifyCheckpoint(output)).tensors).toBe(quantised + kept);
});
