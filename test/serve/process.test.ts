// The command and the single-file executable as processes: they answer, and a signal lets what runs come to its end.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { byteModel } from "./model.ts";

const root = resolve(import.meta.dir, "../..");
const folder = mkdtempSync(join(tmpdir(), "bnb-serve-process-"));
const path = join(folder, "byte");

beforeAll(() => byteModel(path));
afterAll(() => rmSync(folder, { recursive: true }));

/** Starts a server, and gives its address when it has printed it. */
async function started(command: string[], env: Record<string, string>) {
  const child = Bun.spawn(command, { env, stdout: "pipe", stderr: "pipe" });
  let printed = "";
  for await (const bytes of child.stdout) {
    printed += new TextDecoder().decode(bytes);
    const url = /http:\/\/[\d.]+:\d+/.exec(printed)?.[0];
    if (url) return { child, url };
  }
  throw new Error(await new Response(child.stderr).text());
}

async function answered(url: string, maxTokens: number) {
  const body = { model: "byte", messages: [{ role: "user", content: "hi" }], max_tokens: maxTokens };
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers, body: JSON.stringify(body) });
  return ((await response.json()) as { usage: { completion_tokens: number } }).usage.completion_tokens;
}

const environment = { PATH: process.env.PATH!, BNB_DEVICE: "cpu" };

test("serve: SIGTERM finishes what runs, then ends with status 0", async () => {
  const command = [process.execPath, join(root, "src/cli/main.ts"), "serve", path, "--port", "0", "--slots", "2"];
  const { child, url } = await started(command, environment);
  expect(await answered(url, 3)).toBe(3);
  const running = answered(url, 300);
  await Bun.sleep(20);
  child.kill("SIGTERM");
  expect(await running).toBe(300);
  expect(await child.exited).toBe(0);
});

test("serve: a folder that is no model, an address that is taken", async () => {
  const serve = (...more: string[]) =>
    Bun.spawnSync([process.execPath, join(root, "src/cli/main.ts"), "serve", ...more], { env: environment });
  const missing = serve(join(folder, "none"), "--port", "0");
  expect(missing.exitCode).toBe(1);
  expect(missing.stderr.toString()).toContain("none");
  using taken = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
  const refused = serve(path, "--port", String(taken.port));
  expect(refused.exitCode).toBe(1);
  expect(refused.stderr.toString()).toContain("can't be listened to");
});

test("an executable with the server in it answers in an empty environment", async () => {
  const program = join(folder, "server");
  const compile = ["build", "--compile", join(root, "examples/server.ts"), "--outfile", program];
  expect(Bun.spawnSync([process.execPath, ...compile], { cwd: root }).exitCode).toBe(0);
  const { child, url } = await started([program, path, "0"], {});
  const response = await fetch(`${url}/v1/models`);
  expect(await response.json()).toMatchObject({ data: [{ id: "model" }] });
  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
}, 120_000);
