// The clients that people have, against the server: OpenAI's package, Vercel's AI SDK, LangChain; and the AI SDK's
// provider that runs in the process.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOpenAI } from "@langchain/openai";
import {
  embedMany,
  generateText,
  jsonSchema,
  type LanguageModel,
  type ModelMessage,
  Output,
  streamText,
  tool,
} from "ai";
import OpenAI from "openai";
import { embeddingModel, languageModel } from "../../src/ai.ts";
import { Model } from "../../src/model/model.ts";
import { type Serving, serve } from "../../src/serve/index.ts";
import { settled } from "../settled.ts";
import { byteModel } from "./model.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-clients-"));
const path = join(folder, "byte");
let server: Serving;
let model: Model;
/** One for all tests: another's cache, which the collector frees at its own time, would be counted where bytes are. */
let inProcess: ReturnType<typeof languageModel>;

beforeAll(async () => {
  await byteModel(path);
  server = await serve({ models: [{ name: "byte", path, slots: 4, queue: 16 }], port: 0, apiKey: "key" });
  model = await Model.load(path);
  inProcess = languageModel(model);
});
afterAll(async () => {
  inProcess[Symbol.dispose]();
  model.dispose();
  await server.stop();
  rmSync(folder, { recursive: true });
});

const city = {
  type: "object" as const,
  properties: { city: { type: "string" as const, enum: ["Rome", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};

describe("openai", () => {
  const client = () => new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "key", maxRetries: 0 });
  const messages = [{ role: "user" as const, content: "hi" }];

  test("lists models, answers and streams", async () => {
    expect((await client().models.list()).data.map(({ id }) => id)).toEqual(["byte"]);
    const answer = await client().chat.completions.create({ model: "byte", messages, max_tokens: 6 });
    const stream = await client().chat.completions.create({ model: "byte", messages, max_tokens: 6, stream: true });
    let text = "";
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
    expect(text).toBe(answer.choices[0]!.message.content!);
    expect(answer.usage!.completion_tokens).toBe(6);
  });

  test("parses what a schema shapes", async () => {
    const answer = await client().chat.completions.parse({
      ...{ model: "byte", messages, max_tokens: 200, temperature: 1, seed: 2 },
      response_format: { type: "json_schema", json_schema: { name: "city", strict: true, schema: city } },
    });
    expect(["Rome", "Oslo"]).toContain(JSON.parse(answer.choices[0]!.message.content!).city);
  });

  test("gets its errors with the parameter's name", async () => {
    const wrong = client().chat.completions.create({ model: "byte", messages, temperature: 9 });
    const error = await wrong.then(
      () => undefined,
      (error) => error,
    );
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({ status: 400, param: "temperature" });
    const keyless = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "other", maxRetries: 0 });
    expect(keyless.models.list().then(() => {})).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
  });

  test("breaks a stream off", async () => {
    const stream = await client().chat.completions.create({ model: "byte", messages, max_tokens: 500, stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    expect((await client().chat.completions.create({ model: "byte", messages, max_tokens: 1 })).choices.length).toBe(1);
  });
});

/** The SDK over the server, and over the model in this process. */
const providers: [name: string, make: () => LanguageModel][] = [
  [
    "over HTTP",
    () =>
      createOpenAICompatible({
        ...{ name: "bunsandbytes", baseURL: `${server.url}/v1`, apiKey: "key", supportsStructuredOutputs: true },
      })("byte"),
  ],
  ["in the process", () => inProcess],
];

describe.each(providers)("the AI SDK, %s", (_, make) => {
  const settings = { maxRetries: 0, maxOutputTokens: 300, temperature: 1, seed: 3 };

  test("generateText and streamText give the same text, and count its tokens", async () => {
    const call = { model: make(), prompt: "hi", ...settings, maxOutputTokens: 12 };
    const { text, usage, finishReason } = await generateText(call);
    let streamed = "";
    for await (const piece of streamText(call).textStream) streamed += piece;
    expect(streamed).toBe(text);
    expect(usage.outputTokens).toBe(12);
    expect(finishReason).toBe("length");
  });

  test("an object of a schema", async () => {
    const schema = jsonSchema<{ city: string }>(city);
    const { output } = await generateText({
      model: make(),
      prompt: "?",
      ...settings,
      output: Output.object({ schema }),
    });
    expect(["Rome", "Oslo"]).toContain(output.city);
  });

  test("a tool is called, with arguments of its schema", async () => {
    const asked: string[] = [];
    const weather = tool({
      description: "the weather",
      inputSchema: jsonSchema<{ city: string }>(city),
      execute: ({ city }) => {
        asked.push(city);
        return { sunny: true };
      },
    });
    const { toolCalls, finishReason } = await generateText({
      ...{ model: make(), prompt: "?", ...settings, tools: { weather }, toolChoice: "required" as const },
    });
    expect(finishReason).toBe("tool-calls");
    expect(toolCalls[0]).toMatchObject({ toolName: "weather" });
    expect(["Rome", "Oslo"]).toContain(asked[0]!);
  });

  test("a call comes in a stream too, and what it gave goes into the next prompt", async () => {
    const weather = tool({
      inputSchema: jsonSchema<{ city: string }>(city),
      execute: ({ city }) => `sunny in ${city}`,
    });
    const call = { model: make(), ...settings, tools: { weather } };
    const stream = streamText({ ...call, prompt: "?", toolChoice: "required" });
    const inputs = new Map<string, string>();
    for await (const part of stream.fullStream)
      if (part.type === "tool-input-delta") inputs.set(part.id, `${inputs.get(part.id) ?? ""}${part.delta}`);
    const calls = await stream.toolCalls;
    expect(calls.map(({ toolCallId, input }) => [toolCallId, input])).toEqual(
      [...inputs].map(([id, text]) => [id, JSON.parse(text)]),
    );
    const { toolCallId, toolName, input } = calls[0]!;
    const turns = (value: string): ModelMessage[] => [
      { role: "user", content: "?" },
      { role: "assistant", content: [{ type: "tool-call", toolCallId, toolName, input }] },
      { role: "tool", content: [{ type: "tool-result", toolCallId, toolName, output: { type: "text", value } }] },
    ];
    const tokens = async (value: string) =>
      (await generateText({ ...call, messages: turns(value), toolChoice: "none", maxOutputTokens: 1 })).usage
        .inputTokens!;
    expect((await tokens("sunny all day")) - (await tokens("sun"))).toBe(10); // a token is a byte
  });

  test("a picture is refused", async () => {
    const content = [{ type: "file" as const, mediaType: "image/png", data: new Uint8Array([137, 80, 78, 71]) }];
    const asked = generateText({ model: make(), messages: [{ role: "user", content }], ...settings });
    expect(asked.then(() => "", String)).resolves.toContain("only text is read");
  });

  test("a text is broken off", async () => {
    const { textStream } = streamText({
      model: make(),
      prompt: "hi",
      ...settings,
      abortSignal: AbortSignal.timeout(1),
    });
    for await (const _ of textStream);
    const { text } = await generateText({ model: make(), prompt: "hi", ...settings, maxOutputTokens: 2 });
    expect(text.length).toBeGreaterThan(0);
  });
});

test("a model of the AI SDK in the process frees its cache where it ends, and then takes nothing more", async () => {
  const bytes = () => model.device.counters.bytes;
  const before = settled(model.device).bytes;
  const call = { prompt: "hi", maxRetries: 0, maxOutputTokens: 400 };
  const ended = languageModel(model);
  expect(bytes()).toBeGreaterThan(before);
  const running = generateText({ model: ended, ...call });
  const failed = running.then(
    () => undefined,
    (error: Error) => error.message,
  );
  await Bun.sleep(20);
  ended[Symbol.dispose]();
  expect(await failed).toContain("no longer in use");
  await Bun.sleep(20);
  expect(bytes()).toBe(before);
  expect(generateText({ model: ended, ...call }).then(() => {})).rejects.toThrow();
});

test("the AI SDK's embeddings, in the process and as the model's own", async () => {
  using encoder = await Model.load(join(import.meta.dir, "../fixtures/models/bert"));
  // The fixture has no tokenizer: its vectors are of ids, and the SDK's of texts.
  const texts = { encode: (text: string) => [...text].map((letter) => 5 + (letter.charCodeAt(0) % 50)) };
  const withTexts = new Proxy(encoder, {
    get: (target, key) => {
      if (key === "tokenizer") return texts;
      const value = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const { embeddings, usage } = await embedMany({ model: embeddingModel(withTexts), values: ["ab", "c"] });
  const vectors = await encoder.embed([texts.encode("ab"), texts.encode("c")]);
  expect(embeddings).toEqual(vectors.map((vector) => [...vector]));
  expect(usage.tokens).toBe(3);
});

test("LangChain answers and streams", async () => {
  const chat = new ChatOpenAI({
    ...{ model: "byte", apiKey: "key", maxTokens: 6, temperature: 0, maxRetries: 0 },
    configuration: { baseURL: `${server.url}/v1` },
  });
  const answer = await chat.invoke("hi");
  let text = "";
  for await (const chunk of await chat.stream("hi")) text += chunk.content;
  expect(text).toBe(answer.content as string);
  expect((answer as unknown as { usage_metadata: { output_tokens: number } }).usage_metadata.output_tokens).toBe(6);
});
