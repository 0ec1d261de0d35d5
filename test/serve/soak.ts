// `bun run test:soak`: many clients that join, leave, cut their lines and send garbage, for as long as is asked for. No
// answer may be lost, memory must come to rest, and /health must never wait long. Prints its figures.
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { byteModel } from "./model.ts";

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "1200" },
    clients: { type: "string", default: "64" },
    model: { type: "string" },
  },
});
const [seconds, clients] = [Number(values.seconds), Number(values.clients)];
const folder = mkdtempSync(join(tmpdir(), "bnb-soak-"));
const path = values.model ?? join(folder, "byte");
if (!values.model) await byteModel(path);

const main = resolve(import.meta.dir, "../../src/cli/main.ts");
const server = Bun.spawn(
  [process.execPath, main, "serve", `m=${path}`, "--port", "0", "--slots", "16", "--queue", "256", "--quiet"],
  { stdout: "pipe", stderr: "inherit" },
);
const { value } = await server.stdout.getReader().read();
const url = /http:\S+/.exec(new TextDecoder().decode(value))![0];
const end = performance.now() + 1000 * seconds;
const counts: Record<string, number> = {};
const count = (what: string) => {
  counts[what] = (counts[what] ?? 0) + 1;
};

const body = (stream: boolean, tokens: number) =>
  JSON.stringify({
    ...{ model: "m", stream, max_tokens: tokens, temperature: 1 },
    messages: [{ role: "user", content: `${Math.random()}`.repeat(1 + Math.floor(8 * Math.random())) }],
  });

async function whole(): Promise<void> {
  const tokens = 1 + Math.floor(60 * Math.random());
  const stream = Math.random() < 0.5;
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: body(stream, tokens) });
  const text = await response.text();
  if (response.status === 429) return count("429, told to come back");
  const isWhole = stream ? text.endsWith("data: [DONE]\n\n") && !text.includes('"error"') : !!JSON.parse(text).usage;
  count(response.status === 200 && isWhole ? "answers" : "LOST");
}

async function leaving(): Promise<void> {
  const gone = new AbortController();
  const headers = { "content-type": "application/json" };
  setTimeout(() => gone.abort(), 30 * Math.random());
  await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: body(true, 500), signal: gone.signal })
    .then((response) => response.text())
    .catch(() => {});
  count("left early");
}

/** A line that is cut, or bytes that are no request. */
async function garbage(): Promise<void> {
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.on("error", () => {});
  const kinds = [
    "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n{",
    "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\r\n[[[[[",
    `\u0000\u0001 ${"x".repeat(3000)}\r\n\r\n`,
  ];
  socket.write(kinds[Math.floor(kinds.length * Math.random())]!);
  await Bun.sleep(10);
  socket.destroy();
  count("garbage");
}

async function client(): Promise<void> {
  while (performance.now() < end) {
    const chance = Math.random();
    await (chance < 0.7 ? whole() : chance < 0.9 ? leaving() : garbage());
    await Bun.sleep(50 * Math.random());
  }
}

/** In a thread of its own: the clients keep this one busy. */
const watcher = `
  onmessage = async ({ data: { url, seconds } }) => {
    const times = [];
    for (const end = performance.now() + 1000 * seconds; performance.now() < end; await Bun.sleep(100)) {
      const started = performance.now();
      await (await fetch(url + "/health")).json();
      times.push(performance.now() - started);
    }
    postMessage(times);
  };`;

function watch(): Promise<number[]> {
  const worker = new Worker(URL.createObjectURL(new Blob([watcher], { type: "text/javascript" })));
  const { promise, resolve } = Promise.withResolvers<number[]>();
  worker.onmessage = ({ data }) => resolve(data);
  worker.postMessage({ url, seconds });
  return promise;
}

const memory: number[] = [];
async function weigh(): Promise<void> {
  while (performance.now() < end) {
    const { memory_bytes: bytes } = (await (await fetch(`${url}/health`)).json()) as { memory_bytes: number };
    memory.push(bytes / 2 ** 20);
    await Bun.sleep(Math.max(1000, (1000 * seconds) / 100));
  }
}

const [health] = await Promise.all([watch(), weigh(), ...Array.from({ length: clients }, client)]);
const metrics = await (await fetch(`${url}/metrics`)).text();
server.kill("SIGTERM");
const status = await server.exited;
rmSync(folder, { recursive: true });

health.sort((a, b) => a - b);
const quarter = Math.max(1, memory.length >> 2);
const mean = (list: number[]) => list.reduce((sum, value) => sum + value, 0) / list.length;
const [early, late] = [mean(memory.slice(quarter, 2 * quarter)), mean(memory.slice(-quarter))];
console.log(`${clients} clients for ${seconds} s:`, counts);
console.log(
  `/health: median ${health[health.length >> 1]!.toFixed(1)} ms, at most ${health.at(-1)!.toFixed(1)} ms of ${health.length}`,
);
console.log(
  `memory: ${early.toFixed(0)} MB in the second quarter, ${late.toFixed(0)} MB in the last, at most ${Math.max(...memory).toFixed(0)} MB`,
);
console.log(metrics.match(/^bunsandbytes_(completion_tokens_total|batch_size\S*|queue_length\S*) .*$/gm)!.join("\n"));
const failures = [
  ...(counts.LOST ? [`${counts.LOST} answers were lost`] : []),
  ...(late > early + 32 ? ["memory grows"] : []),
  ...(status !== 0 ? [`the server ended with status ${status}`] : []),
  ...(/^bunsandbytes_batch_size\{.*\} [^0]/m.test(metrics) ? ["places are still taken"] : []),
];
for (const failure of failures) console.error(failure);
process.exit(failures.length ? 1 : 0);
