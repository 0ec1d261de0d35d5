// Hugging Face directories: which modules are quantised, what config.json says, which files come along.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { otherFiles } from "../src/checkpoint/folder.ts";
import {
  chooseModules,
  quantMethod,
  readConfig,
  type TensorShape,
  withDtype,
  withoutQuantization,
  withQuantization,
} from "../src/checkpoint/huggingface.ts";
import { summarise } from "../src/checkpoint/inspect.ts";
import { dumps, parsePreserving } from "../src/checkpoint/pyjson.ts";
import { llamaDirectory, llamaShapes } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-hf-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const matrix = (name: string): TensorShape => ({ name, dtype: "F32", shape: [4, 4] });
const chosen = (names: string[], config = {}, skip: string[] = []) =>
  [...chooseModules(names.map(matrix), config, skip).weights].map((name) => name.replace(/\.weight$/, ""));

test("a summary has a row for each format, the one of the most bytes first", () => {
  const report = (format: string, bytes: number) => ({ name: "", shape: [], format, bytes, bitsPerWeight: 0 });
  const reports = [report("F32", 1), report("nf4", 2), report("int8", 5), report("nf4", 2), report("F32", 2)];
  expect(summarise(reports)).toEqual([
    { format: "int8", weights: 1, bytes: 5 },
    { format: "nf4", weights: 2, bytes: 4 },
    { format: "F32", weights: 2, bytes: 3 },
  ]);
});

describe("modules", () => {
  test("a llama's projections are quantised; embeddings, norms and head are not", () => {
    const shapes = Object.entries(llamaShapes).map(([name, shape]) => ({ name, shape, dtype: "F32" as const }));
    const { weights, kept, skipModules } = chooseModules(shapes, { model_type: "llama" });
    expect([...weights].length).toBe(7);
    expect([...weights].every((name) => name.includes("_proj"))).toBe(true);
    expect(Object.fromEntries(kept)).toEqual({
      "lm_head.weight": "the output head, which transformers keeps",
      "model.embed_tokens.weight": "an embedding, which bitsandbytes does not replace",
    });
    expect(skipModules).toBeUndefined();
  });

  test("embeddings and heads of other models are known by name", () => {
    const stay = [
      "bert.embeddings.word_embeddings.weight",
      "cls.predictions.decoder.weight",
      "wte.weight",
      "wpe.weight",
    ];
    stay.push(
      "shared.weight",
      "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
      "embed_out.weight",
    );
    stay.push(
      "model.decoder.embed_positions.weight",
      "lm_head.decoder.weight",
      "text_model.embeddings.token_embedding.weight",
    );
    stay.push("language_model.lm_head.weight", "score.weight", "model.layers.0.mlp.experts.3.up_proj.weight");
    expect(chosen(stay)).toEqual([]);
    const go = [
      "pooler.dense.weight",
      "lm_head.dense.weight",
      "classifier.weight",
      "embeddings_project.weight",
      "c_fc.weight",
    ];
    expect(chosen(go).map((name) => `${name}.weight`)).toEqual(go);
  });

  test("a score with a bias is not the last module, so it is quantised", () => {
    const bias = { name: "score.bias", dtype: "F32", shape: [4] } as const;
    expect(chooseModules([matrix("score.weight"), bias], {}).weights.size).toBe(1);
  });

  test("vectors, convolutions and integers stay", () => {
    const tensors: TensorShape[] = [
      { name: "norm.weight", dtype: "F32", shape: [4] },
      { name: "conv.weight", dtype: "F32", shape: [4, 4, 3, 3] },
      { name: "q.weight", dtype: "I64", shape: [4, 4] },
      { name: "fp8.weight", dtype: "F8_E4M3", shape: [4, 4] },
      { name: "table", dtype: "F32", shape: [4, 4] },
    ];
    expect(chooseModules(tensors, undefined).weights.size).toBe(0);
  });

  // What transformers 5.23's should_convert_module answers for the same arguments.
  test.each([
    ["layers.1", ["layers.11.fc1", "layers.2.fc2"]],
    ["layers.*", []],
    ["fc1", ["layers.1.fc2", "layers.2.fc2"]],
    ["layers.(1|2)", ["layers.11.fc1"]],
    ["1", ["layers.1.fc2", "layers.2.fc2"]],
    ["ayers", ["layers.1.fc1", "layers.1.fc2", "layers.11.fc1", "layers.2.fc2"]],
  ])("skip %p leaves %p", (pattern, left) => {
    const modules = ["layers.1.fc1", "layers.1.fc2", "layers.11.fc1", "layers.2.fc2"];
    expect(
      chosen(
        modules.map((name) => `${name}.weight`),
        {},
        [pattern],
      ),
    ).toEqual(left);
  });

  test("with skip, transformers' own list must hold the head too", () => {
    const names = ["lm_head.weight", "a.fc1.weight", "a.fc2.weight"];
    expect(chooseModules(names.map(matrix), {}, ["fc1"]).skipModules).toEqual(["fc1", "lm_head"]);
  });

  test("T5 keeps wo; a bad pattern is named", () => {
    expect(chosen(["a.wi.weight", "a.wo.weight"], { model_type: "t5" })).toEqual(["a.wi"]);
    expect(() => chosen(["a.weight"], {}, ["("])).toThrow(/skip "\(" is no regular expression/);
  });
});

describe("skip", () => {
  const names = ["model.layers.10.mlp.up_proj.weight", `${"a".repeat(60)}!.weight`];
  test.each([
    "(a+)+",
    "(a|a)*b",
    "(a|aa)+$",
    "([a-z]+)*",
    ".*.*.*.*x",
    "(?=a+)a",
    "(a)\\1",
    "a{60}",
    "(a?){30}",
    "(?:a?b?)+",
    "a?".repeat(30),
  ])("%s, which can take for ever, is refused", (pattern) => {
    expect(() => chosen(names, {}, [pattern])).toThrow(/skip .* which can take for ever: give several simpler ones/);
  });

  test.each([
    "model.layers.10",
    "layers\\.\\d+\\.mlp",
    "model.*up_proj",
    "model\\.(layers|blocks)\\.1?0",
    "[a(b*]+",
    "(?:up|down)_proj",
  ])("%s is taken", (pattern) => {
    expect(() => chosen(names, {}, [pattern])).not.toThrow();
  });

  test("what is no regular expression is named, and so is a name beyond all measure", () => {
    expect(() => chosen(names, {}, ["("])).toThrow(/skip "\(" is no regular expression/);
    expect(() => chosen([`${"a".repeat(501)}.weight`], {}, ["b"])).toThrow(/a name of 501 characters/);
  });
});

describe("config.json", () => {
  const quantization = {
    quantType: "nf4",
    doubleQuant: true,
    computeDtype: "bfloat16",
    storage: "uint8",
    skipModules: undefined,
  } as const;

  // The text that transformers 5.23 wrote for BitsAndBytesConfig(load_in_4bit=True, nf4, double quant, compute bf16).
  test("quantization_config is transformers', sorted and spaced as it writes it", () => {
    expect(dumps(withQuantization({}, quantization), { indent: 2, sortKeys: true })).toBe(`{
  "quantization_config": {
    "_load_in_4bit": true,
    "_load_in_8bit": false,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": true,
    "llm_int8_enable_fp32_cpu_offload": false,
    "llm_int8_has_fp16_weight": false,
    "llm_int8_skip_modules": null,
    "llm_int8_threshold": 6.0,
    "load_in_4bit": true,
    "load_in_8bit": false,
    "quant_method": "bitsandbytes"
  }
}`);
  });

  test("it is read back, and taken out again", () => {
    const config = withQuantization({ a: 1 }, quantization);
    expect(quantMethod(config)).toBe("nf4");
    expect(quantMethod(withQuantization({}, { ...quantization, quantType: "int8" }))).toBe("int8");
    expect(quantMethod({ quantization_config: { quant_method: "gptq" } })).toBe("gptq");
    expect(withoutQuantization(config)).toStrictEqual({ a: 1 });
    expect(withoutQuantization({ a: 1, quantization: { bits: 4 } })).toStrictEqual({ a: 1 }); // MLX's
    expect(withoutQuantization({ a: 1, quantization: "mine" })).toStrictEqual({ a: 1, quantization: "mine" });
    expect(quantMethod({ a: 1 })).toBeUndefined();
  });

  test("the dtype goes under the key that is there", () => {
    expect(withDtype({ torch_dtype: "float32" }, "bfloat16")).toEqual({ torch_dtype: "bfloat16" });
    expect(withDtype({}, "bfloat16")).toEqual({ dtype: "bfloat16" });
  });

  test("numbers keep their spelling, and damage is named", () => {
    writeFileSync(join(scratch, "config.json"), '{"rope_theta": 10000.0, "eps": 1e-05}');
    expect(dumps(readConfig(scratch)!)).toBe('{"rope_theta": 10000.0, "eps": 1e-05}');
    for (const bad of ["{", "[]", "1"]) {
      writeFileSync(join(scratch, "config.json"), bad);
      expect(() => readConfig(scratch)).toThrow(join(scratch, "config.json"));
    }
    expect(dumps(parsePreserving("[1.50]"))).toBe("[1.50]");
    for (const config of [
      '{"model_type": {"toString": 1}}',
      '{"dtype": ["float16"]}',
      '{"quantization_config": {"quant_method": []}}',
    ]) {
      writeFileSync(join(scratch, "config.json"), config);
      expect(() => readConfig(scratch)).toThrow(/config.json: its \w+ is .*, expected text/);
    }
    writeFileSync(join(scratch, "config.json"), '{"quantization_config": "nf4"}');
    expect(() => readConfig(scratch)).toThrow(/its quantization_config is not an object/);
  });

  test("Infinity, NaN and numbers beyond doubles are read, and written again, as Python does", () => {
    const text = '{"a": [Infinity, -Infinity, NaN, 1e400], "b": "NaN"}';
    writeFileSync(join(scratch, "config.json"), text);
    expect(dumps(readConfig(scratch)!)).toBe(text);
    for (const bad of ["infinity", "+Infinity", "-NaN", "Infinityx", "nan"])
      expect(() => parsePreserving(`{"a": ${bad}}`)).toThrow(SyntaxError);
  });
});

test("tokenizer, licence and folders come along; weights, config and hidden files do not", async () => {
  const from = join(scratch, "from");
  await llamaDirectory(from);
  writeFileSync(join(from, "model.safetensors.index.json"), "{}");
  mkdirSync(join(from, "blobs"));
  writeFileSync(join(from, "blobs/merges"), "a b");
  symlinkSync("blobs/merges", join(from, "merges.txt"));
  const names = otherFiles(from).map(({ name }) => name);
  expect(names).toEqual(["blobs/merges", "merges.txt", "onnx/README.md", "tokenizer.json"]);
});
