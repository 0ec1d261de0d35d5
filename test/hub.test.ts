// Models of the hub, served by a small server of the test's own: fetched, checked, resumed, found again, refused.
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fetchModel, isHubId } from "../src/checkpoint/hub.ts";
import { quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { llamaDirectory } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-hub-"));
const commit = "c0ffee".padEnd(40, "0");
const token = "hf_of_the_test";

/** What the server has, and how it behaves in a test. */
const files = new Map<string, Uint8Array>();
let asked: { path: string; range: string | null; authorization: string | null }[] = [];
let cutAt = Infinity;
let lie: (path: string) => Record<string, unknown> = () => ({});
let isGated = false;

const sha = (kind: "sha1" | "sha256", ...parts: (string | Uint8Array)[]) => {
  const hash = new Bun.CryptoHasher(kind);
  for (const part of parts) hash.update(part);
  return hash.digest("hex");
};

const server = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  fetch(request) {
    const url = new URL(request.url);
    const authorization = request.headers.get("authorization");
    const range = request.headers.get("range");
    asked.push({ path: url.pathname, range, authorization });
    if (isGated && authorization !== `Bearer ${token}`) return new Response("gated", { status: 401 });
    if (url.pathname === "/api/models/org/model/revision/main") return Response.json({ id: "org/model", sha: commit });
    if (url.pathname === `/api/models/org/model/tree/${commit}`) {
      const entries = [...files].map(([path, bytes]) => {
        const oid = sha("sha1", `blob ${bytes.length}\0`, bytes);
        const lfs = path.endsWith(".safetensors") && {
          lfs: { oid: sha("sha256", bytes), size: bytes.length, pointerSize: 130 },
        };
        return { type: "file", path, size: bytes.length, oid, ...lfs, ...lie(path) };
      });
      return Response.json([{ type: "directory", path: "1_Pooling", size: 0 }, ...entries]);
    }
    const bytes = files.get(decodeURIComponent(url.pathname.replace(`/org/model/resolve/${commit}/`, "")));
    if (!bytes) return new Response("none", { status: 404 });
    const from = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
    return new Response(bytes.slice(from, Math.max(from, cutAt)), { status: range ? 206 : 200 });
  },
});
afterAll(async () => {
  await server.stop(true);
  rmSync(scratch, { recursive: true });
});

const endpoint = `http://127.0.0.1:${server.port}`;
let caches = 0;
const fresh = () => join(scratch, `cache-${caches++}`);

beforeEach(async () => {
  [asked, cutAt, lie, isGated] = [[], Infinity, () => ({}), false];
  if (files.size > 0) return;
  const folder = join(scratch, "model");
  await llamaDirectory(folder);
  for (const name of ["model.safetensors", "config.json", "tokenizer.json", ".gitattributes", "pytorch_model.bin"])
    files.set(name, readFileSync(join(folder, name)));
  files.set("onnx/model.onnx", Uint8Array.of(1));
  files.set("empty.txt", new Uint8Array(0));
  files.set("1_Pooling/config.json", new TextEncoder().encode("{}"));
});

test("ids are told from paths", () => {
  expect(["org/name", "HuggingFaceTB/SmolLM2-135M", "a/b.c-1"].map(isHubId)).toEqual([true, true, true]);
  const paths = [
    "name",
    "./org/name",
    "/org/name",
    "org/name/more",
    "org/../name",
    "org/model.gguf",
    "a/b.safetensors",
    "",
  ];
  expect(paths.filter(isHubId)).toEqual([]);
});

describe("fetching", () => {
  test("what a model needs goes into the cache as Python's library has it, and can be quantised", async () => {
    const cache = fresh();
    const seen: number[] = [];
    const onProgress = (done: number, total: number) => seen.push(done / total);
    const folder = await fetchModel("org/model", { cache, endpoint, onProgress });
    expect(folder).toBe(join(cache, "models--org--model/snapshots", commit));
    const names = ["1_Pooling", "config.json", "empty.txt", "model.safetensors", "tokenizer.json"];
    expect(readdirSync(folder).sort()).toEqual(names);
    expect(readFileSync(join(cache, "models--org--model/refs/main"), "utf8")).toBe(commit);
    expect(readlinkSync(join(folder, "model.safetensors"))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/);
    expect(readlinkSync(join(folder, "1_Pooling/config.json"))).toMatch(/^\.\.\/\.\.\/\.\.\/blobs\/[0-9a-f]{40}$/);
    expect(seen.at(-1)).toBe(1);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    const report = await quantizeCheckpoint(folder, { output: join(scratch, "quantised") });
    expect([report.weights, report.carried]).toEqual([7, ["1_Pooling/config.json", "empty.txt", "tokenizer.json"]]);
  });

  test("what the cache has whole is asked for nowhere; what it lacks is fetched again", async () => {
    const cache = fresh();
    const folder = await fetchModel("org/model", { cache, endpoint });
    asked = [];
    expect(await fetchModel("org/model", { cache, endpoint })).toBe(folder);
    expect(asked).toEqual([]);
    rmSync(join(folder, "model.safetensors"));
    await fetchModel("org/model", { cache, endpoint });
    expect(asked.filter(({ path }) => path.includes("/resolve/"))).toEqual([]); // the blob is there
    expect(existsSync(join(folder, "model.safetensors"))).toBe(true);
  });

  test("an interrupted file goes on where it stopped", async () => {
    const cache = fresh();
    cutAt = 50_000;
    await expect(fetchModel("org/model", { cache, endpoint })).rejects.toThrow(/50000 of \d+ bytes arrived. Try again/);
    cutAt = Infinity;
    asked = [];
    const folder = await fetchModel("org/model", { cache, endpoint });
    expect(asked.find(({ path }) => path.endsWith("model.safetensors"))!.range).toBe("bytes=50000-");
    expect(readFileSync(join(folder, "model.safetensors"))).toEqual(Buffer.from(files.get("model.safetensors")!));
  });

  test("the token goes along, and what needs one says so", async () => {
    isGated = true;
    const cache = fresh();
    await expect(fetchModel("org/model", { cache, endpoint, token: "hf_wrong" })).rejects.toThrow(
      /status 401. Set HF_TOKEN/,
    );
    await fetchModel("org/model", { cache, endpoint, token });
    expect(new Set(asked.slice(1).map(({ authorization }) => authorization))).toEqual(new Set([`Bearer ${token}`]));
  });
});

describe("what is wrong is named", () => {
  const large = (path: string) => path === "model.safetensors";

  test("a hash that is another", async () => {
    const cache = fresh();
    lie = (path) => (large(path) ? { lfs: { oid: "0".repeat(64), size: files.get(path)!.length } } : {});
    await expect(fetchModel("org/model", { cache, endpoint })).rejects.toThrow(
      /its hash is \w+, expected 0{64}; it was removed/,
    );
    expect(readdirSync(join(cache, "models--org--model/blobs")).filter((name) => name.includes("incomplete"))).toEqual(
      [],
    );
  });

  test("more bytes than were said", async () => {
    lie = (path) => (large(path) ? { lfs: { oid: "0".repeat(64), size: 1000 } } : {});
    await expect(fetchModel("org/model", { cache: fresh(), endpoint })).rejects.toThrow(
      /more than its 1000 bytes arrived/,
    );
  });

  test.each(["../../evil", "/etc/passwd", "a\\b"])("a name that leads out: %s", async (name) => {
    lie = (path) => (path === "config.json" ? { path: name } : {});
    await expect(fetchModel("org/model", { cache: fresh(), endpoint })).rejects.toThrow(/which leads out of it/);
  });

  test("no such model, no server, no safetensors, offline", async () => {
    await expect(fetchModel("org/none", { cache: fresh(), endpoint })).rejects.toThrow(/status 404. Check the name/);
    await expect(fetchModel("org/model", { cache: fresh(), endpoint: "http://127.0.0.1:1" })).rejects.toThrow(
      /could not be fetched/,
    );
    lie = (path) => (large(path) ? { path: "model.bin" } : {});
    await expect(fetchModel("org/model", { cache: fresh(), endpoint })).rejects.toThrow(/no safetensors files, but/);
    process.env.HF_HUB_OFFLINE = "1";
    try {
      await expect(fetchModel("org/model", { cache: fresh(), endpoint })).rejects.toThrow(/HF_HUB_OFFLINE=1 forbids/);
    } finally {
      delete process.env.HF_HUB_OFFLINE;
    }
  });
});

test("the command line takes an id, and finds the token and the cache where Python's library does", () => {
  const home = fresh();
  mkdirSync(home);
  writeFileSync(join(home, "token"), `${token}\n`);
  isGated = true;
  const main = join(import.meta.dir, "../src/cli/main.ts");
  const ran = Bun.spawn([process.execPath, main, "quantize", "org/model"], {
    cwd: home,
    env: { ...process.env, HF_HOME: home, HF_ENDPOINT: endpoint, HF_TOKEN: "", HF_HUB_CACHE: "" },
    stderr: "pipe",
  });
  return ran.exited.then(async (status) => {
    expect([status, await new Response(ran.stderr).text()]).toEqual([0, expect.stringMatching(/Fetching: 100%/)]);
    expect(existsSync(join(home, "model-nf4/model.safetensors"))).toBe(true);
    expect(existsSync(join(home, "hub/models--org--model"))).toBe(true);
  });
});
