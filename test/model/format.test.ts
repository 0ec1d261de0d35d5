// Texts and turns that are held to a form.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Model, type TextFormat } from "../../src/index.ts";
import { byteModel } from "../serve/model.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-format-"));
let model: Model;
beforeAll(async () => {
  await byteModel(join(folder, "byte"));
  model = await Model.load(join(folder, "byte"));
});
afterAll(() => {
  model.dispose();
  rmSync(folder, { recursive: true });
});

const schema = {
  type: "object",
  properties: { city: { enum: ["Rome", "Oslo"] }, tags: { type: "array", items: { enum: [1, 2] }, maxItems: 2 } },
  required: ["city", "tags"],
  additionalProperties: false,
};

describe.each([1, 2, 3])("seed %i", (seed) => {
  const options = { maxTokens: 300, temperature: 1.3, seed };

  test("a text is JSON of a schema", async () => {
    const text = await model.generate("?", { ...options, format: { type: "schema", schema } }).text();
    const { city, tags } = JSON.parse(text);
    expect(["Rome", "Oslo"]).toContain(city);
    expect(tags.length).toBeLessThanOrEqual(2);
  });

  test("so is a turn of a chat, and the next is free again", async () => {
    using chat = model.chat();
    let answer = "";
    for await (const text of chat.send("?", { ...options, format: { type: "schema", schema } })) answer += text;
    expect(["Rome", "Oslo"]).toContain(JSON.parse(answer).city);
    expect(chat.messages.at(-1)).toEqual({ role: "assistant", content: answer });
    let free = "";
    for await (const text of chat.send("?", { ...options, maxTokens: 8 })) free += text;
    expect(() => JSON.parse(free)).toThrow();
  });

  test("a text is what a grammar derives", async () => {
    const grammar = 'root ::= [a-c]+ "-" ("x" | "yz")';
    const text = await model.generate("?", { ...options, format: { type: "grammar", grammar } }).text();
    expect(text).toMatch(/^[a-c]+-(x|yz)$/);
  });
});

test("a form that can't be understood is refused, with the reason", async () => {
  const refused = (format: object) => model.generate("?", { format: format as TextFormat }).text();
  expect(refused({ type: "grammar", grammar: "root ::=" })).rejects.toThrow("can't be understood");
  expect(refused({ type: "xml" })).rejects.toThrow('format.type is "xml"');
});
