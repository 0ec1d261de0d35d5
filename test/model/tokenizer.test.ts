// A tokenizer's and its templates' damage, and which template a prompt is made by.
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer, type TokenizerFiles } from "../../src/model/tokenizer.ts";
import { tiny } from "./fixtures.ts";

const jsonOf = (name: string) => JSON.parse(readFileSync(join(tiny("llama"), name), "utf8"));
const files: TokenizerFiles = { tokenizer: jsonOf("tokenizer.json"), config: {}, path: "./model" };
const turns = [{ role: "user", content: "hi" }];

test("files that are none", () => {
  expect(() => new Tokenizer({ ...files, tokenizer: {} })).toThrow(/^\.\/model\/tokenizer\.json can't be used: /);
});

test.each<[string, string | undefined, RegExp]>([
  ["no template", undefined, /\.\/model has no chat template: use generate\(\) with a prompt of your own/],
  ["a damaged one", "{% for %}", /\.\/model: the chat template is damaged: /],
  ["one that refuses", "{{ raise_exception('No tools.') }}", /\.\/model: the chat template refuses .*No tools\./],
])("%s is told with the model's path", (_, template, message) => {
  const tokenizer = new Tokenizer({ ...files, template });
  expect(tokenizer.hasChatTemplate).toBe(template !== undefined);
  expect(() => tokenizer.renderChat(turns)).toThrow(message);
});

test("of several templates the one for tools is used with tools, and one in a file of its own wins", () => {
  const chat_template = [
    { name: "default", template: "plain" },
    { name: "tool_use", template: "tools: {{ tools | length }}" },
    { name: "broken" },
    null,
  ];
  const config = { chat_template };
  const several = new Tokenizer({ ...files, config });
  expect([several.renderChat(turns), several.renderChat(turns, { tools: [{}, {}] })]).toEqual(["plain", "tools: 2"]);
  const filed = new Tokenizer({ ...files, config, template: "file{% if add_generation_prompt %}+{% endif %}" });
  expect([filed.renderChat(turns), filed.renderChat(turns, { addGenerationPrompt: false })]).toEqual(["file+", "file"]);
  expect(new Tokenizer({ ...files, config: { chat_template: "{{ messages[0].content }}" } }).renderChat(turns)).toBe(
    "hi",
  );
});
