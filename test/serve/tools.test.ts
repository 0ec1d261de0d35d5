// Calls of functions in each family's style: the form that makes a model call one, and answers read piece by piece.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ChoiceEvent, choice } from "../../src/serve/answers.ts";
import type { TextEvent } from "../../src/serve/events.ts";
import { type Serving, serve } from "../../src/serve/index.ts";
import type { ToolStyle } from "../../src/serve/protocol.ts";
import { chat, events, post } from "./client.ts";
import { byteModel } from "./model.ts";

const styles = ["hermes", "llama3", "mistral"] as const;
const folder = mkdtempSync(join(tmpdir(), "bnb-tools-"));
afterAll(() => rmSync(folder, { recursive: true }));

const named = (name: string, key: string, values: string[]) => ({
  type: "function",
  function: {
    name,
    parameters: {
      type: "object",
      properties: { [key]: { enum: values } },
      required: [key],
      additionalProperties: false,
    },
  },
});
const tools = [named("weather", "city", ["Rome", "Oslo"]), named("clock", "zone", ["UTC", "CET"])];

describe.each(styles)("a model that calls as %s", (style) => {
  const path = join(folder, style);
  let server: Serving;
  beforeAll(async () => {
    await byteModel(path, { tools: style, positions: 4096 });
    server = await serve({ models: [{ name: "byte", path, slots: 2, queue: 8 }], port: 0 });
  });
  afterAll(() => server.stop());

  const ask = (more: object) =>
    post(server, "/v1/chat/completions", chat({ tools, max_tokens: 400, temperature: 1, ...more }));

  test("calls one of the functions where it must, whole and as a stream", async () => {
    for (const seed of [1, 2, 3]) {
      const body = { tool_choice: "required", parallel_tool_calls: false, seed };
      const { choices } = JSON.parse((await ask(body)).text);
      const [{ message, finish_reason: reason }] = choices;
      expect(reason).toBe("tool_calls");
      expect(message.content).toBeNull();
      const { name, arguments: given } = message.tool_calls[0].function;
      expect(tools.map(({ function: { name } }) => name)).toContain(name);
      expect(["Rome", "Oslo", "UTC", "CET"]).toContain(Object.values(JSON.parse(given))[0] as string);
      const deltas = events((await ask({ ...body, stream: true })).text).slice(0, -1);
      const called = deltas.flatMap(({ choices: [one] }) => one.delta.tool_calls ?? []);
      expect(called.map((call: { function: object }) => call.function)).toEqual([{ name, arguments: given }]);
      expect(deltas.map(({ choices: [one] }) => one.delta.content ?? "").join("")).toBe("");
    }
  });

  test("calls the one that is named", async () => {
    const { text } = await ask({ tool_choice: { type: "function", function: { name: "clock" } } });
    expect(JSON.parse(text).choices[0].message.tool_calls[0].function.name).toBe("clock");
  });

  test("tells in its prompt what there is to be called", async () => {
    const tokens = async (body: object) => JSON.parse((await ask({ max_tokens: 1, ...body })).text).usage.prompt_tokens;
    expect(await tokens({})).toBeGreaterThan((await tokens({ tools: undefined })) + JSON.stringify(tools).length);
  });
});

/** What a client sees of an answer that comes in such pieces. */
async function read(style: ToolStyle, pieces: readonly string[]): Promise<ChoiceEvent[]> {
  async function* said(): AsyncGenerator<TextEvent> {
    for (const text of pieces) yield { text, logprobs: [] };
    yield { reason: "stop", usage: { promptTokens: 1, cachedTokens: 0, completionTokens: 1 } };
  }
  return Array.fromAsync(choice(0, said(), style));
}

const call = (name: string, given: object) => ({ name, arguments: JSON.stringify(given) });

const answers: [what: string, style: ToolStyle, text: string, content: string, calls: object[]][] = [
  [
    "two calls amid text",
    "hermes",
    'Let me see.<tool_call>\n{"name": "a", "arguments": {"b": 1}}\n</tool_call>\n<tool_call>{"name": "c", "arguments": {}}</tool_call>',
    "Let me see.",
    [call("a", { b: 1 }), call("c", {})],
  ],
  ["a call that was cut", "hermes", '<tool_call>{"name": "a", "argu', '<tool_call>{"name": "a", "argu', []],
  ["text with angles", "hermes", "1 < 2 <b> <tool", "1 < 2 <b> <tool", []],
  ["a call", "llama3", '{"name": "a", "parameters": {"b": [1]}}', "", [call("a", { b: [1] })]],
  ["a call with its token", "llama3", '<|python_tag|>{"name": "a", "parameters": {}}', "", [call("a", {})]],
  ["JSON that is no call", "llama3", '{"b": 1}', '{"b": 1}', []],
  ["JSON amid text", "llama3", 'It is {"name": "a", "parameters": {}}', 'It is {"name": "a", "parameters": {}}', []],
  [
    "calls whose token is no text",
    "mistral",
    '[{"name": "a", "arguments": {"b": 1}}, {"name": "c", "arguments": {}}]',
    "",
    [call("a", { b: 1 }), call("c", {})],
  ],
  ["a call with its token", "mistral", '[TOOL_CALLS] [{"name": "a", "arguments": {}}]', "", [call("a", {})]],
  ["a list", "mistral", "[1, 2]", "[1, 2]", []],
];

test.each(answers)("%s, %s", async (_, style, text, content, calls) => {
  for (const pieces of [[text], [...text]]) {
    const all = await read(style, pieces);
    expect(all.flatMap((event) => ("text" in event ? [event.text] : [])).join("")).toBe(content);
    expect(all.flatMap((event) => ("calls" in event ? event.calls : []))).toEqual(calls as never);
    expect(all.at(-1)).toMatchObject({ reason: calls.length ? "tool_calls" : "stop" });
  }
});

test("text goes out as it comes where no call can follow", async () => {
  const pieces = ["It", " is", " {so", "}", " [1]"];
  for (const style of ["llama3", "mistral"] as const)
    expect((await read(style, pieces)).slice(0, -1)).toEqual(pieces.map((text) => ({ index: 0, text, logprobs: [] })));
});
