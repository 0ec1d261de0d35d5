// `bun run test:soak`: many clients that join, leave, cut their lines and send garbage, for as long as is asked for. No
// answer may be lost, memory, descriptors and threads must come to rest, and /health must never take more than 50 ms
// beyond the wait for a processor. Prints its figures.
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
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

/** A line of its own for each request. */
const fresh = { method: "POST", headers: { "content-type": "application/json" }, keepalive: false };

async function whole(): Promise<void> {
  const tokens = 1 + Math.floor(60 * Math.random());
  const stream = Math.random() < 0.5;
  const response = await fetch(`${url}/v1/chat/completions`, { ...fresh, body: body(stream, tokens) });
  const text = await response.text();
  if (response.status === 429) return count("429, told to come back");
  const isWhole = stream ? text.endsWith("data: [DONE]\n\n") && !text.includes('"error"') : !!JSON.parse(text).usage;
  count(response.status === 200 && isWhole ? "answers" : "LOST");
}

async function leaving(): Promise<void> {
  const gone = new AbortController();
  setTimeout(() => gone.abort(), 30 * Math.random());
  await fetch(`${url}/v1/chat/completions`, { ...fresh, body: body(true, 500), signal: gone.signal })
    .then((response) => response.text())
    .catch(() => {});
  count("left early");
}

/** Bodies that take long to parse, or to read as text. */
const heavy = [
  `{"messages":[${"{},".repeat(690_000)}{}]}`,
  "[".repeat(2_000_000),
  JSON.stringify({ model: "m", messages: [{ role: "user", content: "x".repeat(2_000_000) }] }),
];

async function heavyGarbage(): Promise<void> {
  const body = heavy[Math.floor(heavy.length * Math.random())]!;
  const { status } = await fetch(`${url}/v1/chat/completions`, { ...fresh, body });
  count(status === 400 || status === 413 ? "heavy garbage" : `LOST, ${status} for garbage`);
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
    await (chance < 0.7 ? whole() : chance < 0.9 ? leaving() : chance < 0.999 ? garbage() : heavyGarbage());
    await Bun.sleep(50 * Math.random());
  }
}

interface Answered {
  /** Milliseconds from question to answer, and without those for which no processor was free. */
  readonly took: number;
  readonly own: number;
  /** Milliseconds for which the thread of the server's connections was at work meanwhile. */
  readonly ran: number;
}

/** In a process of its own: the clients keep this one busy. */
async function watch(): Promise<Answered[]> {
  const args = [join(import.meta.dir, "watch.ts"), url, String(server.pid), String(seconds)];
  const watcher = Bun.spawn([process.execPath, ...args], { stdout: "pipe", stderr: "inherit" });
  return JSON.parse(await new Response(watcher.stdout).text());
}

/** What the server's process has open; nothing where the system does not say. */
function open(): { descriptors: number; threads: number } | undefined {
  const of = (what: string) => readdirSync(`/proc/${server.pid}/${what}`).length;
  return existsSync(`/proc/${server.pid}/fd`) ? { descriptors: of("fd"), threads: of("task") } : undefined;
}

const before = open();
const memory: number[] = [];
async function weigh(): Promise<void> {
  while (performance.now() < end) {
    const { memory_bytes: bytes } = (await (await fetch(`${url}/health`)).json()) as { memory_bytes: number };
    memory.push(bytes / 2 ** 20);
    await Bun.sleep(Math.max(1000, (1000 * seconds) / 100));
  }
}

const [health] = await Promise.all([watch(), weigh(), ...Array.from({ length: clients }, client)]);
await Bun.sleep(2000); // for lines that were cut last
const after = open();
const metrics = await (await fetch(`${url}/metrics`)).text();
server.kill("SIGTERM");
const status = await server.exited;
rmSync(folder, { recursive: true });

const quarter = Math.max(1, memory.length >> 2);
// What stays: a text of 2 MB on its way to a refusal comes and goes.
const [early, last] = [Math.min(...memory.slice(quarter, 2 * quarter)), Math.min(...memory.slice(-quarter))];
const longest = Math.max(...health.map(({ own }) => own));
const late = health.filter(({ own }) => own > 50).length;
console.log(`${clients} clients for ${seconds} s:`, counts);
console.log(
  `/health: ${health.length} answers, at most ${longest.toFixed(1)} ms, ${late} of more than 50; with the wait for a processor ${Math.max(...health.map(({ took }) => took)).toFixed(1)} ms; the thread of the connections was at work for at most ${Math.max(...health.map(({ ran }) => ran)).toFixed(1)} ms meanwhile`,
);
console.log(
  `memory: at least ${early.toFixed(0)} MB in the second quarter, ${last.toFixed(0)} MB in the last, at most ${Math.max(...memory).toFixed(0)} MB`,
);
console.log("open before and after:", before, after);
console.log(metrics.match(/^bunsandbytes_(completion_tokens_total|batch_size\S*|queue_length\S*) .*$/gm)!.join("\n"));
const lost = Object.keys(counts).filter((what) => what.startsWith("LOST"));
const failures = [
  ...lost.map((what) => `${counts[what]} answers: ${what}`),
  ...(longest > 50 ? [`/health took ${longest.toFixed(1)} ms`] : []),
  ...(seconds >= 120 && last > early + 32 ? ["memory grows"] : []),
  ...(before && after!.descriptors > before.descriptors + 8 ? ["descriptors stay open"] : []),
  ...(before && after!.threads > before.threads + 8 ? ["threads stay"] : []),
  ...(status !== 0 ? [`the server ended with status ${status}`] : []),
  ...(/^bunsandbytes_batch_size\{.*\} [^0]/m.test(metrics) ? ["places are still taken"] : []),
];
for (const failure of failures) console.error(failure);
process.exit(failures.length ? 1 : 0);
