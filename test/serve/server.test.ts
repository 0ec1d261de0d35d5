// The server as a client sees it: answers, streams, forms, and which models it has.
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { Model } from "../../src/model/model.ts";
import { serve } from "../../src/serve/index.ts";
import { tiny } from "../model/fixtures.ts";
import { byteServer } from "./byte_server.ts";
import { chat, events } from "./client.ts";
import { byteModel } from "./model.ts";

const { folder, path, post, running, start } = byteServer([{ name: "bert", path: tiny("bert"), slots: 1, queue: 1 }]);

describe("answers", () => {
  test("a chat's answer is what the model itself writes", async () => {
    using model = await Model.load(path);
    const prompt = model.tokenizer.applyChatTemplate([{ role: "user", content: "hi" }]);
    const generation = model.generate(prompt, { maxTokens: 8 });
    const text = await generation.text();
    const { status, text: body } = await post("/v1/chat/completions", chat());
    const answer = JSON.parse(body);
    expect(status).toBe(200);
    expect(answer.object).toBe("chat.completion");
    expect(answer.choices).toEqual([
      {
        index: 0,
        message: { role: "assistant", content: text, refusal: null },
        logprobs: null,
        finish_reason: "length",
      },
    ]);
    expect(answer.usage).toMatchObject({
      prompt_tokens: prompt.length,
      completion_tokens: 8,
      total_tokens: prompt.length + 8,
    });
  });

  test("a stream has the same text in pieces, its usage where it is asked for, and an end", async () => {
    const { text: whole } = await post("/v1/chat/completions", chat());
    const { text, headers } = await post(
      "/v1/chat/completions",
      chat({ stream: true, stream_options: { include_usage: true } }),
    );
    const all = events(text);
    expect(headers.get("content-type")).toStartWith("text/event-stream");
    expect(all.at(-1)).toBe("[DONE]");
    expect(all.at(-2)).toMatchObject({ choices: [], usage: { completion_tokens: 8 } });
    expect(all[0].choices[0].delta).toEqual({ role: "assistant", content: "" });
    const pieces = all.slice(1, -2).map(({ choices: [choice] }) => choice.delta.content ?? "");
    expect(pieces.join("")).toBe(JSON.parse(whole).choices[0].message.content);
    expect(all.at(-3).choices[0].finish_reason).toBe("length");
  });

  test("what a prompt shares with the one before is told as cached", async () => {
    const messages = [{ role: "user", content: "a beginning that is not asked for anywhere else" }];
    const first = JSON.parse((await post("/v1/chat/completions", chat({ messages }))).text);
    const second = JSON.parse((await post("/v1/chat/completions", chat({ messages }))).text);
    expect(first.usage.prompt_tokens_details.cached_tokens).toBeLessThan(first.usage.prompt_tokens / 2);
    expect(second.usage.prompt_tokens_details.cached_tokens).toBe(second.usage.prompt_tokens - 1);
    expect(second.choices).toEqual(first.choices);
  });

  test("so is what it shares with a text that is still being written", async () => {
    await using pair = await start({}, 2);
    const beginning = "a long beginning that two clients have in common, word for word";
    const ask = (content: string, maxTokens: number) =>
      post("/v1/chat/completions", chat({ messages: [{ role: "user", content }], max_tokens: maxTokens }), {}, pair);
    const running = ask(`${beginning} and then`, 600);
    await Bun.sleep(30);
    const { usage } = JSON.parse((await ask(`${beginning} otherwise`, 2)).text);
    expect(usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(beginning.length);
    expect((await running).status).toBe(200);
    const alone = JSON.parse((await ask(`${beginning} otherwise`, 2)).text);
    expect(alone.usage.completion_tokens).toBe(2);
  });

  test("n answers have seeds of their own, and the same seed gives the same answers", async () => {
    const body = chat({ n: 3, seed: 5, temperature: 1 });
    const [a, b] = [await post("/v1/chat/completions", body), await post("/v1/chat/completions", body)];
    const contents = (text: string) =>
      JSON.parse(text).choices.map((choice: { message: { content: string } }) => choice.message.content);
    expect(contents(a.text)).toEqual(contents(b.text));
    expect(new Set(contents(a.text)).size).toBe(3);
  });

  test("logprobs are listed with their likeliest others", async () => {
    const { text } = await post("/v1/chat/completions", chat({ logprobs: true, top_logprobs: 3 }));
    const { content } = JSON.parse(text).choices[0].logprobs;
    expect(content.length).toBe(8);
    for (const { token, logprob, bytes, top_logprobs: top } of content) {
      expect(top.length).toBe(3);
      expect(top[0]).toEqual({ token, logprob, bytes }); // greedy
    }
  });

  test("a completion's logprobs say where each token stands in the text, in a stream too", async () => {
    const body = { model: "byte", prompt: "ab", max_tokens: 12, logprobs: 1 };
    const [choice] = JSON.parse((await post("/v1/completions", body)).text).choices;
    const { tokens, text_offset: offsets } = choice.logprobs;
    expect(offsets.length).toBe(12);
    expect(offsets).toEqual(tokens.map((_: string, i: number) => tokens.slice(0, i).join("").length));
    const { text } = await post("/v1/completions", { ...body, stream: true });
    const parts = events(text).slice(0, -1);
    expect(parts.flatMap(({ choices: [one] }) => one.logprobs?.text_offset ?? [])).toEqual(offsets);
  });

  test("completions take texts and ids, several at once", async () => {
    const { text } = await post("/v1/completions", {
      model: "byte",
      prompt: ["ab", "cd"],
      max_tokens: 3,
      stop: "\u0000",
    });
    const answer = JSON.parse(text);
    expect(answer.object).toBe("text_completion");
    expect(answer.choices.map(({ index }: { index: number }) => index)).toEqual([0, 1]);
    const ids = await post("/v1/completions", { model: "byte", prompt: [102, 103], max_tokens: 3 });
    expect(ids.status).toBe(200);
  });

  test("batched answers are those of the same requests one by one", async () => {
    const requests = Array.from({ length: 12 }, (_, i) =>
      chat({ messages: [{ role: "user", content: `question ${i} ${"x".repeat(7 * i)}` }] }),
    );
    const alone: string[] = [];
    for (const body of requests)
      alone.push(JSON.parse((await post("/v1/chat/completions", body)).text).choices[0].message.content);
    await using other = await start();
    const together = await Promise.all(requests.map((body) => post("/v1/chat/completions", body, {}, other)));
    expect(together.map(({ text }) => JSON.parse(text).choices[0].message.content)).toEqual(alone);
  });

  test("embeddings are the model's, as numbers and in base64", async () => {
    using model = await Model.load(tiny("bert"));
    const [vector] = await model.embed([[3, 4, 5]]);
    const plain = JSON.parse((await post("/v1/embeddings", { model: "bert", input: [[3, 4, 5]] })).text);
    expect(plain.data[0].embedding).toEqual([...vector!]);
    const packed = JSON.parse(
      (await post("/v1/embeddings", { model: "bert", input: [3, 4, 5], encoding_format: "base64" })).text,
    );
    expect(new Float32Array(Buffer.from(packed.data[0].embedding, "base64").buffer.slice(0))[0] ?? 0).toBeNumber();
    expect(Buffer.from(packed.data[0].embedding, "base64").equals(Buffer.from(vector!.buffer))).toBe(true);
  });
});

describe("forms", () => {
  test("every answer to a JSON schema parses and holds to it, many at once", async () => {
    const schema = {
      type: "object",
      properties: {
        name: { enum: ["a", "b"] },
        on: { type: "boolean" },
        list: { type: "array", items: { enum: [1, 2] }, maxItems: 3 },
      },
      required: ["name", "on", "list"],
      additionalProperties: false,
    };
    const { default: Ajv } = await import("ajv");
    const holds = new Ajv().compile(schema);
    const body = (seed: number) =>
      chat({
        seed,
        temperature: 1.5,
        max_tokens: 400,
        response_format: { type: "json_schema", json_schema: { name: "x", strict: true, schema } },
      });
    const answers = await Promise.all(Array.from({ length: 24 }, (_, i) => post("/v1/chat/completions", body(i))));
    for (const { text } of answers) {
      const [{ message, finish_reason: reason }] = JSON.parse(text).choices;
      expect(reason).toBe("stop");
      expect(holds(JSON.parse(message.content))).toBe(true);
    }
  });

  test("a grammar is held to", async () => {
    const format = { type: "grammar", grammar: 'root ::= ("yes" | "no") "!"' };
    const { text } = await post("/v1/chat/completions", chat({ response_format: format, max_tokens: 20 }));
    expect(["yes!", "no!"]).toContain(JSON.parse(text).choices[0].message.content);
  });

  test("a required function is called, with arguments of its schema", async () => {
    const parameters = {
      type: "object",
      properties: { city: { enum: ["Rome", "Oslo"] } },
      required: ["city"],
      additionalProperties: false,
    };
    const tools = [{ type: "function", function: { name: "weather", parameters } }];
    for (const stream of [false, true]) {
      const { text } = await post(
        "/v1/chat/completions",
        chat({ tools, tool_choice: "required", max_tokens: 300, stream }),
      );
      const choice = stream
        ? events(text).flatMap(
            (event) => event.choices?.filter((one: { delta: object }) => "tool_calls" in one.delta) ?? [],
          )[0].delta
        : JSON.parse(text).choices[0].message;
      const [call] = choice.tool_calls;
      expect(call).toMatchObject({ type: "function", function: { name: "weather" } });
      expect(["Rome", "Oslo"]).toContain(JSON.parse(call.function.arguments).city);
      expect(text).toContain('"finish_reason":"tool_calls"');
    }
  });
});

test("models are loaded when they are asked for, and let go where there is no room", async () => {
  const other = join(folder, "other");
  await byteModel(other);
  const models = [
    { name: "one", path, slots: 1, queue: 4 },
    { name: "two", path: other, slots: 1, queue: 4 },
  ];
  await using both = await serve({ models, port: 0, memory: 150_000 }); // one of them takes some 90 kB
  const metrics = async () => (await fetch(`${both.url}/metrics`)).text();
  expect(await metrics()).not.toContain('model="two"');
  expect((await post("/v1/chat/completions", chat({ model: "two" }), {}, both)).status).toBe(200);
  expect(await metrics()).toContain('model="two"');
  expect(await metrics()).not.toContain('model="one"');
  expect(await metrics()).toContain('cache_capacity_tokens{model="two"} 1024\n');
  expect((await post("/v1/chat/completions", chat({ model: "one" }), {}, both)).status).toBe(200);
});

test("the page is whole by itself, and lets only its own script run", async () => {
  const response = await fetch(running().url);
  const html = await response.text();
  const policy = response.headers.get("content-security-policy")!;
  const script = /<script type="module">([\s\S]*)<\/script>/.exec(html)![1]!;
  const hash = new Bun.CryptoHasher("sha256").update(script).digest("base64");
  expect(policy).toContain(`script-src 'sha256-${hash}'`);
  expect(html).not.toMatch(/(src|href)="https?:/);
});
