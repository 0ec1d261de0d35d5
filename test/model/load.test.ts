// What a model's folder says beside its weights: how to sample, and files that are not what they should be.
import { afterAll, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Model } from "../../src/index.ts";
import { jsonListOf } from "../../src/model/folder.ts";
import { rejection, tiny } from "./fixtures.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-load-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let folders = 0;

/** A tiny llama with a file that says something else. */
function llama(name: string, text: string): string {
  const folder = join(scratch, `${folders++}`);
  cpSync(tiny("llama"), folder, { recursive: true });
  writeFileSync(join(folder, name), text);
  return folder;
}

const textOf = async (generation: object, more: object = {}) => {
  using model = await Model.load(llama("generation_config.json", JSON.stringify(generation)));
  return await model.generate("Hello", { maxTokens: 12, seed: 1, ...more }).text();
};

test("generation_config.json says how to sample where it says that one does, and options have the last word", async () => {
  const greedy = await textOf({});
  expect(await textOf({ temperature: 50, top_k: 0 })).toBe(greedy); // transformers does not sample either
  const warm = { do_sample: true, temperature: 50, top_k: 1000 };
  const sampled = await textOf(warm);
  expect(sampled).not.toBe(greedy);
  expect(await textOf(warm)).toBe(sampled);
  expect(await textOf(warm, { seed: 2 })).not.toBe(sampled);
  for (const one of [{ top_k: 1 }, { top_p: 1e-6 }, { min_p: 1 }])
    expect(await textOf({ ...warm, ...one })).toBe(greedy);
  expect(await textOf(warm, { temperature: 0 })).toBe(greedy);
  expect(await textOf({ repetition_penalty: 1.8 })).toBe(await textOf({}, { repetitionPenalty: 1.8 }));
  expect(await textOf({ repetition_penalty: 1.8 })).not.toBe(greedy);
});

test.each([
  ["config.json", "[]", "config.json is no JSON object."],
  ["config.json", "{", "config.json is not JSON: "],
  ["generation_config.json", "1", "generation_config.json is no JSON object."],
  ["tokenizer.json", "null", "tokenizer.json is no JSON object."],
  ["tokenizer.json", '{"model": ', "tokenizer.json is not JSON: "],
])("%s with %p is refused by its path", async (name, text, sentence) => {
  const folder = llama(name, text);
  expect((await rejection(Model.load(folder))).message).toStartWith(`${folder}/${sentence}`);
});

test("a list of objects is one of objects", () => {
  expect(jsonListOf(llama("modules.json", '[{"type": "a"}]'), "modules.json")).toEqual([{ type: "a" }]);
  for (const text of ["{}", "[1]", "null"]) {
    const folder = llama("modules.json", text);
    expect(() => jsonListOf(folder, "modules.json")).toThrow(`${folder}/modules.json is no list of JSON objects.`);
  }
});

test("a device and devices exclude each other, and weights without the embedding are another family's", async () => {
  const both = rejection(Model.load(tiny("llama"), { device: "cpu", devices: ["cpu"] }));
  expect((await both).message).toBe("Model.load: device and devices are both given, expected one of them.");
  const config = readFileSync(join(tiny("llama"), "config.json"), "utf8");
  const folder = join(scratch, "other");
  cpSync(tiny("bert"), folder, { recursive: true });
  writeFileSync(join(folder, "config.json"), config);
  expect((await rejection(Model.load(folder))).message).toBe(
    `${folder} has no model.embed_tokens.weight, which llama models have.`,
  );
});
