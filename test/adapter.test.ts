// Adapters of PEFT's: what adapter_config.json says of their arithmetic, what is refused by name, merging, and saving.
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { inspectCheckpoint, verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { fromStateDict } from "../src/checkpoint/statedict.ts";
import { mergeAdapter, quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { checkpoint, dequantizeBlockwise, nn, type QuantizedTensor, quantize4bit, Tensor } from "../src/index.ts";
import { llamaDirectory, llamaShapes, weights } from "./models.ts";
import { errorOf } from "./reference.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-adapter-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let folders = 0;
const fresh = () => join(scratch, `${folders++}`);

const module = "model.layers.0.mlp.up_proj";
const [rows, columns, rank] = [128, 64, 8];
const A = weights(rank * columns, 1);
const B = weights(rows * rank, 2);

type Parts = Record<string, [shape: number[], bytes: Float32Array]>;

/** An adapter's folder: A and B of one module, or what is given. */
async function adapter(config: object, parts: Parts = {}, prefix = "base_model.model."): Promise<string> {
  const folder = fresh();
  mkdirSync(folder);
  const all: Parts = {
    [`${prefix}${module}.lora_A.weight`]: [[rank, columns], A],
    [`${prefix}${module}.lora_B.weight`]: [[rows, rank], B],
    ...parts,
  };
  const tensors = Object.entries(all).map(([name, [shape, bytes]]) => ({ name, dtype: "F32" as const, shape, bytes }));
  await writeSafetensors(join(folder, "adapter_model.safetensors"), tensors);
  writeFileSync(
    join(folder, "adapter_config.json"),
    JSON.stringify({ peft_type: "LORA", r: rank, lora_alpha: 16, ...config }),
  );
  return folder;
}

/** `B · A`, in doubles. */
function product(): Float64Array {
  const made = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < columns; j++)
      for (let k = 0; k < rank; k++) made[i * columns + j]! += B[i * rank + k]! * A[k * columns + j]!;
  return made;
}

const open = (folder: string) => openCheckpoint(join(folder, "adapter_model.safetensors"));
const base = () => new nn.Linear4bit(Tensor.from(weights(rows * columns), [rows, columns]));

describe("Lora.load", () => {
  test.each<[string, object, number]>([
    ["alpha over r", {}, 2],
    ["rsLoRA", { use_rslora: true }, 16 / Math.sqrt(8)],
    ["alpha_pattern", { alpha_pattern: { up_proj: 4 } }, 0.5],
    ["a pattern for another module", { alpha_pattern: { "layers\\.1\\..*": 4 } }, 2],
    ["rank_pattern", { r: 64, rank_pattern: { [`^${module}`]: 8 } }, 2],
    ["no alpha: PEFT's 8", { lora_alpha: undefined }, 1],
  ])("scaling: %s", async (_, config, scaling) => {
    using opened = open(await adapter(config));
    using layer = nn.Lora.load(base(), opened, module);
    expect(layer.scaling).toBeCloseTo(scaling, 12);
    using given = nn.Lora.load(base(), opened, `base_model.model.${module}`, { alpha: 32 });
    expect(given.scaling).toBe(4);
  });

  test.each(["base_model.model._orig_mod.", "", "base_model.model."])("names that begin with %p", async (prefix) => {
    using opened = open(await adapter({}, {}, prefix));
    expect(errorOf(() => nn.Lora.load(base(), opened, `${module}x`).dispose()).message).toMatch(
      /has no lora_A and lora_B/,
    );
    if (prefix === "") return;
    using layer = nn.Lora.load(base(), opened, module);
    expect(layer.A.data.shape).toEqual([rank, columns]);
  });

  test.each<[string, object, Parts]>([
    ["use_dora", { use_dora: true }, {}],
    ["lora_bias", { lora_bias: true }, {}],
    ["fan_in_fan_out", { fan_in_fan_out: true }, {}],
    ["use_dora", {}, { [`base_model.model.${module}.lora_magnitude_vector`]: [[rows], weights(rows)] }],
  ])("%s is refused by name, with the next step", async (name, config, parts) => {
    using opened = open(await adapter(config, parts));
    expect(errorOf(() => nn.Lora.load(base(), opened, module)).message).toMatch(
      new RegExp(`has ${name}, which a layer can't have: merge it`),
    );
  });

  test.each<[object, RegExp]>([
    [{ peft_type: "IA3" }, /peft_type is "IA3"; LORA is supported/],
    [{ layer_replication: [[0, 2]] }, /layer_replication is set, which is not supported/],
    [{ of_tomorrow: true }, /of_tomorrow is set, which is not supported/],
    [{ r: 4 }, /says rank 4 of .*up_proj, whose lora_A has 8 rows/],
    [{ lora_alpha: "16" }, /its lora_alpha is "16", expected a number/],
    [{ alpha_pattern: { "(": 1 } }, /alpha_pattern "\(" is no regular expression/],
    [{ alpha_pattern: { "(a+)+": 1 } }, /alpha_pattern "\(a\+\)\+" .*can take for ever/],
  ])("%j is refused", async (config, message) => {
    using opened = open(await adapter(config));
    expect(errorOf(() => nn.Lora.load(base(), opened, module)).message).toMatch(message);
  });
});

describe("merging", () => {
  const model = fresh();
  const original = async () => {
    await llamaDirectory(model);
    using opened = openCheckpoint(model);
    return Float32Array.from(opened.tensors.get(`${module}.weight`)!.values as Float32Array);
  };
  const merged = async (folder: string) => {
    using opened = openCheckpoint(folder);
    return Float32Array.from(opened.tensors.get(`${module}.weight`)!.values as Float32Array);
  };

  test("W + scaling · B · A, and no other weight", async () => {
    const before = await original();
    const output = fresh();
    const report = await mergeAdapter(model, await adapter({ use_rslora: true }), { output });
    expect(report).toMatchObject({
      weights: 1,
      kept: Object.keys(llamaShapes).length - 1,
      carried: ["onnx/README.md", "tokenizer.json"],
    });
    const delta = product();
    const after = await merged(output);
    const scaling = 16 / Math.sqrt(8);
    for (const [i, value] of after.entries()) expect(value).toBeCloseTo(before[i]! + scaling * delta[i]!, 6);
    using a = openCheckpoint(model);
    using b = openCheckpoint(output);
    for (const [name, tensor] of a.tensors)
      if (name !== `${module}.weight`) expect(Buffer.compare(b.tensors.get(name)!.bytes, tensor.bytes)).toBe(0);
  });

  test("DoRA: each row at its length", async () => {
    const before = await original();
    const magnitude = weights(rows, 9).map((value) => 1 + Math.abs(value));
    const parts: Parts = { [`base_model.model.${module}.lora_magnitude_vector`]: [[rows], magnitude] };
    const output = fresh();
    await mergeAdapter(model, await adapter({ use_dora: true }, parts), { output });
    const after = await merged(output);
    const delta = product();
    for (let row = 0; row < rows; row++) {
      const at = (i: number) => before[row * columns + i]! + 2 * delta[row * columns + i]!;
      const length = Math.sqrt(Array.from({ length: columns }, (_, i) => at(i) ** 2).reduce((a, b) => a + b));
      for (let i = 0; i < columns; i++)
        expect(after[row * columns + i]!).toBeCloseTo((at(i) * magnitude[row]!) / length, 6);
    }
  });

  test("a quantised base is quantised again, where it changes", async () => {
    const before = await original();
    const quantised = fresh();
    await quantizeCheckpoint(model, { output: quantised, blocksize: 128, doubleQuant: true });
    const output = fresh();
    const report = await mergeAdapter(quantised, await adapter({}), { output });
    expect(report.weights).toBe(1);
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
    using a = openCheckpoint(quantised);
    using b = openCheckpoint(output);
    const dense = (from: typeof a) => {
      using q = fromStateDict(from.quantized.get(`${module}.weight`)!) as QuantizedTensor;
      using wide = dequantizeBlockwise(q, { dtype: "float32" });
      return wide.read();
    };
    const delta = product();
    const sum = dense(a).map((value, i) => value + 2 * delta[i]!);
    using again = quantize4bit(Tensor.from(sum, [rows, columns]), { blocksize: 128, compressStatistics: true });
    using expected = dequantizeBlockwise(again);
    const got = dense(b);
    const wrong = (expected.read() as Float32Array).filter((value, i) => Math.abs(value - got[i]!) > 1e-5);
    expect(wrong.length).toBeLessThan(rows * columns * 0.001); // at a threshold, the last bit of a sum decides
    expect(before.length).toBe(got.length);
    const other = "model.layers.0.mlp.gate_proj.weight";
    expect(Buffer.compare(a.tensors.get(other)!.bytes, b.tensors.get(other)!.bytes)).toBe(0);
  });

  test("weights by columns, as GPT-2 has them: transposed in floats, and not where they are quantised", async () => {
    const [input, name] = [fresh(), "h.0.mlp.c_fc"];
    const values = weights(columns * rows, 7);
    mkdirSync(input);
    const shape = [columns, rows];
    await writeSafetensors(join(input, "model.safetensors"), [
      { name: `transformer.${name}.weight`, dtype: "F32", shape, bytes: values },
    ]);
    writeFileSync(join(input, "config.json"), '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}');
    const parts: Parts = {
      [`base_model.model.transformer.${name}.lora_A.weight`]: [[rank, columns], A],
      [`base_model.model.transformer.${name}.lora_B.weight`]: [[rows, rank], B],
    };
    const lora = fresh();
    mkdirSync(lora);
    const tensors = Object.entries(parts).map(
      ([name, [shape, bytes]]) => ({ name, dtype: "F32", shape, bytes }) as const,
    );
    await writeSafetensors(join(lora, "adapter_model.safetensors"), tensors);
    const settings = { peft_type: "LORA", r: rank, lora_alpha: 16, fan_in_fan_out: true };
    writeFileSync(join(lora, "adapter_config.json"), JSON.stringify(settings));

    const [dense, small, quantised] = [fresh(), fresh(), fresh()];
    await mergeAdapter(input, lora, { output: dense });
    using after = openCheckpoint(dense);
    const delta = product();
    const sum = after.tensors.get(`transformer.${name}.weight`)!.values as Float32Array;
    for (const [i, value] of sum.entries())
      expect(value).toBeCloseTo(values[i]! + 2 * delta[(i % rows) * columns + Math.floor(i / rows)]!, 6);

    await quantizeCheckpoint(input, { output: small });
    expect((await mergeAdapter(small, lora, { output: quantised })).weights).toBe(1);
    const [worst] = await inspectCheckpoint(quantised, { errorAgainst: dense });
    expect(worst!.error!.relative).toBeLessThan(0.15); // quantised twice
  });

  test("an embedding: its rows by columns of A, put into the base's or into one that is saved whole", async () => {
    await llamaDirectory(model);
    const name = "model.embed_tokens";
    const [vocabulary, hidden] = llamaShapes[`${name}.weight`] as [number, number];
    const [a, b, whole] = [weights(rank * vocabulary, 3), weights(hidden * rank, 4), weights(vocabulary * hidden, 5)];
    const parts: Parts = {
      [`base_model.model.${name}.lora_embedding_A`]: [[rank, vocabulary], a],
      [`base_model.model.${name}.lora_embedding_B`]: [[hidden, rank], b],
    };
    using opened = openCheckpoint(model);
    const base = opened.tensors.get(`${name}.weight`)!.values as Float32Array;
    for (const [more, from] of [
      [{}, base],
      [{ [`base_model.model.${name}.weight`]: [[vocabulary, hidden], whole] }, whole],
    ] as [Parts, Float32Array][]) {
      const output = fresh();
      expect((await mergeAdapter(model, await adapter({}, { ...parts, ...more }), { output })).weights).toBe(2);
      using made = openCheckpoint(output);
      for (const [i, value] of (made.tensors.get(`${name}.weight`)!.values as Float32Array).entries()) {
        const [row, column] = [Math.floor(i / hidden), i % hidden];
        let delta = 0;
        for (let k = 0; k < rank; k++) delta += b[column * rank + k]! * a[k * vocabulary + row]!;
        expect(value).toBeCloseTo(from[i]! + 2 * delta, 6);
      }
    }
  });

  test.each<[string, object, Parts, string]>([
    [
      "DoRA without magnitudes",
      { use_dora: true },
      {},
      "use_dora is true, but model.layers.0.mlp.up_proj has no magnitude",
    ],
    [
      "magnitudes without DoRA",
      {},
      { [`${module}.lora_magnitude_vector`]: [[rows], weights(rows)] },
      "use_dora is false, but model.layers.0.mlp.up_proj has a magnitude",
    ],
    [
      "magnitudes of other rows",
      { use_dora: true },
      { [`${module}.lora_magnitude_vector`]: [[rows - 1], weights(rows - 1)] },
      "lora_magnitude_vector has 127 elements, expected 128",
    ],
    [
      "another width",
      {},
      { [`${module}.lora_A.weight`]: [[rank, columns - 1], weights(rank * (columns - 1))] },
      "lora_A.weight is [8, 63] and its B [128, 8], which do not fit model.layers.0.mlp.up_proj.weight [128, 64]",
    ],
    [
      "an embedding that was made larger before it was trained, as PEFT does",
      {},
      {
        "model.embed_tokens.base_layer.weight": [[100, columns], weights(100 * columns)],
        "model.embed_tokens.lora_embedding_A": [[rank, 100], weights(rank * 100)],
        "model.embed_tokens.lora_embedding_B": [[columns, rank], weights(columns * rank)],
      },
      "embed_tokens.base_layer.weight is [100, 64], but model.embed_tokens.weight [96, 64]: take the model that it was",
    ],
    [
      "an embedding's half",
      {},
      { "model.embed_tokens.lora_embedding_A": [[rank, 4], weights(rank * 4)] },
      "has no lora_embedding_B for model.embed_tokens",
    ],
  ])("refuses %s", async (_, config, parts, sentence) => {
    await original();
    const output = fresh();
    const named = Object.fromEntries(Object.entries(parts).map(([name, part]) => [`base_model.model.${name}`, part]));
    await expect(mergeAdapter(model, await adapter(config, named), { output })).rejects.toThrow(sentence);
    expect(existsSync(output)).toBe(false);
  });

  test("with a format, the merged model is quantised", async () => {
    await original();
    const output = fresh();
    const report = await mergeAdapter(model, await adapter({}), { output, quantType: "nf4" });
    expect(report.weights).toBe(7);
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
  });

  test("what fits no weight of the base is named, and no folder is left", async () => {
    await original();
    const stray: Parts = { "base_model.model.other.lora_A.weight": [[rank, columns], A] };
    const output = fresh();
    await expect(mergeAdapter(model, await adapter({}, stray), { output })).rejects.toThrow(
      /has base_model.model.other.lora_A.weight, for which the base has no weight/,
    );
    await expect(mergeAdapter(model, model, { output })).rejects.toThrow(
      /has no adapter_config.json; expected the folder/,
    );
    expect(existsSync(output)).toBe(false);
  });
});

test("saveAdapter tells of a leftover that it removed", async () => {
  const output = join(fresh(), "adapter");
  const leftover = join(dirname(output), ".adapter.0123456789abcdef.tmp");
  mkdirSync(leftover, { recursive: true });
  utimesSync(leftover, 0, 0);
  using layer = nn.Lora.init(base(), { r: 4, alpha: 8 });
  const { notes } = await checkpoint.saveAdapter({ q: layer }, { output });
  expect(notes).toEqual([`Removed ${leftover}, which was left empty.`]);
  expect(await checkpoint.saveAdapter({ q: layer }, { output, force: true })).toEqual({ notes: [] });
});

test("saveAdapter writes what load reads: ranks and alphas of their own stand in patterns", async () => {
  const output = fresh();
  using one = nn.Lora.init(base(), { r: 4, alpha: 8, seed: 3 });
  using two = nn.Lora.init(base(), { r: 2, alpha: 7, seed: 4 });
  await checkpoint.saveAdapter({ "a.q_proj": one, "b.q_proj": two }, { output, base: "org/name" });
  const config = JSON.parse(readFileSync(join(output, "adapter_config.json"), "utf8"));
  expect(config).toMatchObject({
    r: 4,
    lora_alpha: 8,
    rank_pattern: { "^b\\.q_proj": 2 },
    alpha_pattern: { "^b\\.q_proj": 7 },
    target_modules: ["a.q_proj", "b.q_proj"],
    base_model_name_or_path: "org/name",
  });
  using opened = open(output);
  for (const [name, layer] of [["a.q_proj", one] as const, ["b.q_proj", two] as const]) {
    using again = nn.Lora.load(base(), opened, name);
    expect(again.scaling).toBe(layer.scaling);
    expect(again.A.data.read()).toEqual(layer.A.data.read());
  }
});
