// Who leaves, who stays silent and who takes long: lines to the server, and its end.
import { expect, test } from "bun:test";
import { connect } from "node:net";
import { byteServer } from "./byte_server.ts";
import { chat } from "./client.ts";

const { post, running, start } = byteServer();

test("a client that leaves frees its place", async () => {
  await using narrow = await start({}, 1, 8);
  const gone = new AbortController();
  const response = await fetch(`${narrow.url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(chat({ stream: true, max_tokens: 900 })),
    signal: gone.signal,
  });
  await response.body!.getReader().read();
  gone.abort();
  expect((await post("/v1/chat/completions", chat({ max_tokens: 2 }), {}, narrow)).status).toBe(200);
  const metrics = await (await fetch(`${narrow.url}/metrics`)).text();
  expect(metrics).toContain("bunsandbytes_cancelled_total 1");
  expect(metrics).toContain('bunsandbytes_batch_size{model="byte"} 0');
});

test("one that takes too long is ended", async () => {
  await using hasty = await start({ timeout: 0.001 }, 1);
  const { status, text } = await post("/v1/chat/completions", chat({ max_tokens: 900, temperature: 2 }), {}, hasty);
  expect(status).toBe(504);
  expect(JSON.parse(text).error.code).toBe("timeout");
});

test("a line that stays silent is closed, and an answer may take longer than that", async () => {
  await using brief = await start({ idle: 1 }, 1);
  const half = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
  const { promise: closed, resolve } = Promise.withResolvers<void>();
  const socket = connect(Number(new URL(brief.url).port), "127.0.0.1", () =>
    socket.write(`${half}content-length: 99\r\n\r\n{`),
  );
  socket.on("error", () => {}).on("close", () => resolve());
  await closed;
  const ids = (length: number) => Array.from({ length }, (_, i) => 5 + (i % 256));
  // Longer and longer, since a simulated GPU takes long for a token.
  for (let [tokens, took] = [1, 0]; took < 1500 && tokens <= 512; tokens *= 2) {
    const long = { model: "byte", prompt: [ids(900 - tokens)], max_tokens: tokens, n: 20, temperature: 1 };
    const started = performance.now();
    expect((await post("/v1/completions", long, {}, brief)).status).toBe(200);
    took = performance.now() - started;
  }
}, 60_000);

test("stopping lets what runs come to its end, and takes nothing more", async () => {
  const ending = await start();
  const running = post("/v1/chat/completions", chat({ max_tokens: 300 }), {}, ending);
  await Bun.sleep(20);
  const stopped = ending.stop();
  expect((await running).status).toBe(200);
  await stopped;
  expect(fetch(`${ending.url}/health`)).rejects.toThrow();
});

test("health answers while texts are written", async () => {
  const texts = Promise.all(Array.from({ length: 8 }, () => post("/v1/chat/completions", chat({ max_tokens: 100 }))));
  expect((await fetch(`${running().url}/health`)).status).toBe(200);
  for (const { status } of await texts) expect(status).toBe(200);
});
