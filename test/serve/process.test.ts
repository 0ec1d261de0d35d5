// The command and the single-file executable as processes: they answer, and a signal lets what runs come to its end.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { byteModel } from "./model.ts";

const root = resolve(import.meta.dir, "../..");
const folder = mkdtempSync(join(tmpdir(), "bnb-serve-process-"));
const path = join(folder, "byte");
const page = join(root, "docs/serving.md");
const [chroot, unshare] = ["chroot", "unshare"].map((name) =>
  Bun.which(name, { PATH: `${process.env.PATH}:/usr/sbin` }),
);

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

async function answered(url: string, maxTokens: number, model = "byte") {
  const body = { model, messages: [{ role: "user", content: "hi" }], max_tokens: maxTokens };
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

describe("an executable with the server in it", () => {
  const program = join(folder, "server");
  beforeAll(() => {
    const compile = ["build", "--compile", join(root, "examples/server.ts"), "--outfile", program];
    expect(Bun.spawnSync([process.execPath, ...compile], { cwd: root }).exitCode).toBe(0);
  }, 120_000);

  /** It answers, and a signal ends it; with the model under the name that the program gives it. */
  async function serves(command: string[]) {
    const { child, url } = await started(command, {});
    expect(await answered(url, 3, "model")).toBe(3);
    const { memory_bytes: bytes } = (await (await fetch(`${url}/health`)).json()) as { memory_bytes: number };
    expect(bytes).toBeGreaterThan(0);
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
    return bytes;
  }

  test("answers in an empty environment", () => serves([program, path, "0"]), 120_000);

  // Only the superuser may change the root.
  test.skipIf(process.platform !== "linux" || process.getuid?.() !== 0 || !chroot || !unshare)(
    "answers in a chroot that has what docs/serving.md names, and nothing else",
    async () => {
      const named = /in a chroot it needs what glibc does:\n([\s\S]*?)\.\n/.exec(readFileSync(page, "utf8"))![1]!;
      const libraries = [...named.matchAll(/`([^`]+)`/g)].map(([, name]) => basename(name!));
      const bare = join(folder, "bare");
      const there = Bun.spawnSync(["ldd", program]).stdout.toString();
      for (const [path] of there.matchAll(/\/\S+/g)) {
        if (!libraries.includes(basename(path))) continue;
        mkdirSync(join(bare, dirname(path)), { recursive: true });
        copyFileSync(path, join(bare, path));
      }
      renameSync(program, join(bare, "server"));
      cpSync(path, join(bare, "model"), { recursive: true });
      mkdirSync(join(bare, "proc"));
      // In a space of mounts of its own, whose /proc goes when the server does.
      const enter = 'mount --bind /proc "$0/proc" && exec "$1" "$0" /server /model 0';
      await serves([unshare!, "--mount", Bun.which("sh")!, "-c", enter, bare, chroot!]);
    },
    120_000,
  );
});
