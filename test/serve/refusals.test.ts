// What the server refuses: each wrong request in OpenAI's shape, strangers, what is too large and too many.
import { describe, expect, test } from "bun:test";
import { byteServer } from "./byte_server.ts";
import { chat } from "./client.ts";

const { post, running, start } = byteServer();

describe("refusals", () => {
  const chats = "/v1/chat/completions";
  const anyJson = { type: "json_object" };
  const cases: [name: string, body: object | string, param: string | null, sentence: string, route: string][] = [
    ["not json", "{", null, "The body is not JSON", chats],
    ["no model", { messages: [] }, "model", "expected a text", chats],
    ["no messages", { model: "byte" }, "messages", "expected a list", chats],
    ["a role", chat({ messages: [{ content: "x" }] }), "messages[0].role", "expected", chats],
    [
      "a picture",
      chat({ messages: [{ role: "user", content: [{ type: "image_url" }] }] }),
      "messages[0].content",
      "only text is read",
      chats,
    ],
    ["temperature", chat({ temperature: "hot" }), "temperature", "expected a number from 0 to 2", chats],
    ["max_tokens", chat({ max_tokens: 0.5 }), "max_tokens", "expected a whole number", chats],
    ["n", chat({ n: 1000 }), "n", "expected a whole number from 1 to 128", chats],
    ["stop", chat({ stop: [1] }), "stop", "expected a text", chats],
    ["logit_bias", chat({ logit_bias: { 3: 1 } }), "logit_bias", "is not supported", chats],
    ["response_format", chat({ response_format: { type: "xml" } }), "response_format.type", "expected", chats],
    [
      "a grammar",
      chat({ response_format: { type: "grammar", grammar: "root ::=" } }),
      null,
      "can't be understood",
      chats,
    ],
    [
      "tool_choice",
      chat({ tools: [{ type: "function", function: { name: "f" } }], tool_choice: { function: { name: "g" } } }),
      "tool_choice",
      "expected",
      chats,
    ],
    [
      "a form beside a call",
      chat({
        tools: [{ type: "function", function: { name: "f" } }],
        tool_choice: "required",
        response_format: anyJson,
      }),
      "tool_choice",
      "exclude each other",
      chats,
    ],
    ["usage of no stream", chat({ stream_options: {} }), "stream_options", "but stream is not true", chats],
    ["others of no logprobs", chat({ top_logprobs: 2 }), "top_logprobs", "but logprobs is not true", chats],
    [
      "texts together",
      { model: "byte", prompt: ["a", "b"], n: 65 },
      "n",
      "ask for 130 texts, expected at most 128",
      "/v1/completions",
    ],
    [
      "too long",
      chat({ messages: [{ role: "user", content: "x".repeat(2000) }] }),
      null,
      "more than leave room",
      chats,
    ],
    ["embeddings of a decoder", { model: "byte", input: "x" }, null, "makes no embeddings", "/v1/embeddings"],
  ];

  test.each(cases)("%s", async (_, body, param, sentence, route) => {
    const { status, text } = await post(route, body);
    const { error } = JSON.parse(text);
    expect(status).toBe(400);
    expect(error).toMatchObject({ type: "invalid_request_error", param });
    expect(error.message).toContain(sentence);
  });

  test("a model that there is not, a route, a method, a type of content", async () => {
    expect((await post("/v1/chat/completions", chat({ model: "gpt" }))).status).toBe(404);
    expect((await post("/v2/x", {})).status).toBe(404);
    const one = (name: string) => fetch(`${running().url}/v1/models/${name}`);
    expect(await (await one("gpt")).json()).toMatchObject({ error: { param: "model", code: "model_not_found" } });
    expect(await (await one("byte")).json()).toMatchObject({ id: "byte", object: "model" });
    expect((await fetch(`${running().url}/v1/chat/completions`)).status).toBe(405);
    expect((await post("/v1/chat/completions", chat(), { "content-type": "text/plain" })).status).toBe(415);
  });

  test("a page elsewhere: by a name that leads here, or by its browser's question", async () => {
    const named = await fetch(`${running().url}/v1/models`, { headers: { host: "evil.example" } });
    expect(named.status).toBe(403);
    const asked = await fetch(`${running().url}/v1/chat/completions`, {
      method: "OPTIONS",
      headers: { origin: "https://evil.example" },
    });
    expect(asked.status).toBe(403);
    expect(asked.headers.get("access-control-allow-origin")).toBeNull();
  });

  test("of pages elsewhere, all but those of an origin that is allowed", async () => {
    await using open = await start({ cors: "https://friend.example" });
    const { status, headers } = await fetch(`${open.url}/v1/chat/completions`, { method: "OPTIONS" });
    expect(status).toBe(204);
    expect(headers.get("access-control-allow-origin")).toBe("https://friend.example");
    expect(headers.get("access-control-allow-headers")).toBe("authorization, content-type");
  });

  test("a missing or wrong key, a body that is too large", async () => {
    await using locked = await start({ apiKey: "secret", bodyBytes: 1000 });
    expect((await post("/v1/chat/completions", chat(), {}, locked)).status).toBe(401);
    expect((await post("/v1/chat/completions", chat(), { authorization: "Bearer wrong" }, locked)).status).toBe(401);
    expect((await post("/v1/chat/completions", chat(), { authorization: "Bearer secret" }, locked)).status).toBe(200);
    expect((await fetch(`${locked.url}/health`)).status).toBe(200);
    const long = chat({ messages: [{ role: "user", content: "x".repeat(2000) }] });
    expect((await post("/v1/chat/completions", long, { authorization: "Bearer secret" }, locked)).status).toBe(413);
  });

  test("a body that would take long to parse is refused before", async () => {
    const many = { objects: "{},", members: '"a":1,', elements: "1," };
    const bodies = [
      `{"messages":[${many.objects.repeat(6e5)}{}]}`,
      `{${many.members.repeat(3e5)}"b":1}`,
      `{"prompt":[${many.elements.repeat(6e5)}1]}`,
      `{"a":${"[".repeat(6e5)}`,
    ];
    for (const body of bodies) {
      const { status, text } = await post("/v1/chat/completions", body);
      expect(status).toBe(413);
      expect(JSON.parse(text).error.message).toContain("objects, lists and members");
    }
    const quoted = chat({ user: `[{,:\\"`.repeat(1e5) }); // what is in a text does not count
    expect((await post("/v1/chat/completions", quoted)).status).toBe(200);
  });

  test("more than may wait", async () => {
    await using narrow = await start({}, 1, 1);
    const all = await Promise.all(
      Array.from({ length: 6 }, () => post("/v1/chat/completions", chat({ max_tokens: 200 }), {}, narrow)),
    );
    const refused = all.filter(({ status }) => status === 429);
    expect(refused.length).toBeGreaterThan(0);
    expect(all.filter(({ status }) => status === 200).length).toBe(6 - refused.length);
    for (const { headers, text } of refused) {
      expect(headers.get("retry-after")).toBe("1");
      expect(JSON.parse(text).error).toMatchObject({ type: "rate_limit_error", code: "queue_full" });
    }
  });

  test("nothing of a prompt is in the log", async () => {
    const lines: string[] = [];
    await using logged = await start({ log: (line) => lines.push(line) });
    await post("/v1/chat/completions", chat({ messages: [{ role: "user", content: "a secret" }] }), {}, logged);
    expect(lines.join("\n")).toContain("POST /v1/chat/completions 200");
    expect(lines.join("\n")).not.toContain("secret");
  });
});
