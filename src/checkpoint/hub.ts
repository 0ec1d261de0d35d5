// Models of the Hugging Face hub: what its local cache has, and else fetched into that cache, checked and resumed.
import fs from "node:fs";
import { homedir } from "node:os";
import { dirname, join, relative } from "node:path";
import { startedWith } from "../environment.ts";
import { BnbError } from "../error.ts";
import { readText } from "./folder.ts";
import { parseJson } from "./json.ts";
import { snapshotOf } from "./locate.ts";

/** Options of {@link fetchModel}. */
export interface FetchOptions {
  /** A branch, a tag or a commit; `"main"` by default. */
  readonly revision?: string | undefined;
  /** The cache's folder; by default as `HF_HUB_CACHE` or `HF_HOME` say, as in Python's library. */
  readonly cache?: string | undefined;
  /** The hub's address; by default what `HF_ENDPOINT` says, or the hub itself. */
  readonly endpoint?: string | undefined;
  /** By default what `HF_TOKEN` says, or the file that `hf auth login` writes. */
  readonly token?: string | undefined;
  /** Called as bytes arrive. */
  readonly onProgress?: ((done: number, total: number, file: string) => void) | undefined;
}

/** `org/name` or `name`, in the characters that the hub allows. */
const idPattern = /^(?:[A-Za-z0-9][\w.-]{0,95}\/)?[A-Za-z0-9][\w.-]{0,95}$/;

export function isHubId(text: string): boolean {
  return (
    idPattern.test(text) && text.includes("/") && !/\.\.|--/.test(text) && !/\.(gguf|safetensors|json)$/.test(text)
  );
}

const hub = "https://huggingface.co";

/** The cache's folder, as Python's `huggingface_hub` finds it. */
export function hubCache(): string {
  return startedWith("HF_HUB_CACHE") ?? startedWith("HUGGINGFACE_HUB_CACHE") ?? join(hubHome(), "hub");
}

function hubHome(): string {
  const caches = () => startedWith("XDG_CACHE_HOME") ?? join(homedir(), ".cache");
  return startedWith("HF_HOME") ?? join(caches(), "huggingface");
}

function savedToken(): string | undefined {
  const { HF_TOKEN, HUGGING_FACE_HUB_TOKEN } = process.env;
  if (HF_TOKEN || HUGGING_FACE_HUB_TOKEN) return HF_TOKEN || HUGGING_FACE_HUB_TOKEN;
  const path = startedWith("HF_TOKEN_PATH") ?? join(hubHome(), "token");
  return fs.existsSync(path) ? readText(path, 10_000).trim() || undefined : undefined;
}

/** A file of a repository. */
interface RemoteFile {
  readonly path: string;
  readonly size: number;
  /** The name of its blob in the cache. */
  readonly etag: string;
  /** SHA-256 of what is large, git's SHA-1 of what is not. */
  readonly check: "sha256" | "git";
}

/**
 * Returns the folder of a model from the hub, and fetches it first unless the local cache has all of it. What arrived
 * before an interruption is not fetched again; the size and hash of every file are checked.
 *
 * @example
 * ```ts
 * async function quantizeFromHub(id: string) {
 *   const folder = await checkpoint.fetchModel(id, { onProgress: (done, total) => console.error(done / total) });
 *   return await checkpoint.quantizeCheckpoint(folder, { output: "./fetched-nf4" });
 * }
 * ```
 *
 * @param id `org/name`
 * @returns the folder, for `quantizeCheckpoint` and other functions
 * @throws BnbError if the hub can't be reached or has no such model, or if a file differs from what it announced
 */
export async function fetchModel(id: string, options: FetchOptions = {}): Promise<string> {
  if (!isHubId(id)) throw new BnbError(`fetchModel: id is ${JSON.stringify(id)}, expected org/name.`);
  const { revision = "main", cache = hubCache() } = options;
  const repository = join(cache, `models--${id.replaceAll("/", "--")}`);
  const cached = revision === "main" ? cachedModel(repository) : undefined;
  if (cached) return cached;
  if (process.env.HF_HUB_OFFLINE === "1")
    throw new BnbError(`${id} is not whole in ${cache}, and HF_HUB_OFFLINE=1 forbids to fetch it.`);
  const remote = new Remote(id, options);
  const commit = await remote.commit(revision);
  const files = wanted(await remote.files(commit));
  const snapshot = join(repository, "snapshots", commit);
  const total = files.reduce((sum, file) => sum + file.size, 0);
  let before = 0;
  for (const file of files) {
    await fetchFile(remote, repository, snapshot, commit, file, (done) =>
      options.onProgress?.(before + done, total, file.path),
    );
    before += file.size;
  }
  writeReference(repository, revision, commit);
  return snapshot;
}

/** The snapshot of a repository's folder, if all of the weights are there. */
function cachedModel(repository: string): string | undefined {
  if (!fs.existsSync(join(repository, "refs", "main"))) return undefined;
  const snapshot = snapshotOf(repository);
  const has = (name: string) => fs.existsSync(join(snapshot, name));
  if (!has("config.json")) return undefined;
  if (has("model.safetensors")) return snapshot;
  if (!has("model.safetensors.index.json")) return undefined;
  const index = parseJson(Buffer.from(readText(join(snapshot, "model.safetensors.index.json"), 2 ** 28)));
  const shards = Object.values(Object(Object(index).weight_map));
  return shards.length > 0 && shards.every((shard) => has(String(shard))) ? snapshot : undefined;
}

const otherWeights = /\.(bin|pth?|gguf|h5|msgpack|onnx|onnx_data|ot|tflite|mlmodel|ckpt|tar|zip)$/;

/** What of a repository a model needs: its safetensors at the root, and every small file beside them. */
function wanted(files: readonly RemoteFile[]): RemoteFile[] {
  const isNeeded = ({ path }: RemoteFile) => {
    if (path.startsWith(".") || path.includes("/.") || otherWeights.test(path)) return false;
    // sentence-transformers' parts are folders with weights of their own, called by a number.
    return !path.endsWith(".safetensors") || !path.includes("/") || /^\d+_\w+\/model\.safetensors$/.test(path);
  };
  const needed = files.filter(isNeeded);
  if (needed.some(({ path }) => path.endsWith(".safetensors"))) return needed;
  const has = files.map(({ path }) => path).filter((path) => otherWeights.test(path));
  const instead = has.length > 0 ? `, but ${has.slice(0, 3).join(", ")}` : "";
  throw new BnbError(`The repository has no safetensors files${instead}; choose another.`);
}

/** A repository of the hub. */
class Remote {
  readonly #id: string;
  readonly #endpoint: string;
  readonly #token: string | undefined;

  constructor(id: string, { endpoint, token }: FetchOptions) {
    this.#id = id;
    this.#endpoint = (endpoint ?? startedWith("HF_ENDPOINT") ?? hub).replace(/\/+$/, "");
    this.#token = token ?? savedToken();
  }

  async commit(revision: string): Promise<string> {
    const { modelInfo } = await library();
    const info = await this.#asking(() =>
      modelInfo({ name: this.#id, revision, additionalFields: ["sha"], ...this.#common() }),
    );
    if (/^[0-9a-f]{40}$/.test(info.sha)) return info.sha;
    throw new BnbError(
      `${this.#endpoint} says that ${this.#id} is at ${JSON.stringify(info.sha)}, which is no commit.`,
    );
  }

  async files(commit: string): Promise<RemoteFile[]> {
    const { listFiles } = await library();
    const found: RemoteFile[] = [];
    await this.#asking(async () => {
      for await (const entry of listFiles({ repo: this.#id, recursive: true, revision: commit, ...this.#common() })) {
        if (entry.type !== "file") continue;
        const { path, size, oid, lfs } = entry;
        if (/(^|\/)\.\.?(\/|$)|^\/|\\|\0/.test(path))
          throw new BnbError(`${this.#id} has a file of the name ${JSON.stringify(path)}, which leads out of it.`);
        const etag = lfs?.oid ?? oid ?? "";
        if (!/^[0-9a-f]{40}([0-9a-f]{24})?$/.test(etag) || !Number.isSafeInteger(size) || size < 0)
          throw new BnbError(`${this.#endpoint} gives no size and hash of ${this.#id}'s ${path}.`);
        found.push({ path, size: lfs?.size ?? size, etag, check: lfs ? "sha256" : "git" });
      }
    });
    return found.sort((a, b) => (a.path < b.path ? -1 : 1));
  }

  /** The bytes of a file from a place on. The token goes to the hub alone, and not to where it sends on. */
  async open(commit: string, { path }: RemoteFile, from: number): Promise<Response> {
    const url = `${this.#endpoint}/${this.#id}/resolve/${commit}/${path.split("/").map(encodeURIComponent).join("/")}`;
    const headers = {
      ...(this.#token && { authorization: `Bearer ${this.#token}` }),
      ...(from > 0 && { range: `bytes=${from}-` }),
    };
    const response = await this.#asking(() => fetch(url, { headers }));
    if (response.ok && response.body) return response;
    throw new BnbError(`${url} could not be fetched: status ${response.status}.${this.#advice(response.status)}`);
  }

  #common() {
    return { hubUrl: this.#endpoint, ...(this.#token && { accessToken: this.#token }) };
  }

  async #asking<T>(ask: () => Promise<T>): Promise<T> {
    try {
      return await ask();
    } catch (cause) {
      if (cause instanceof BnbError) throw cause;
      const status = Number((cause as { statusCode?: number }).statusCode ?? 0);
      const what = status > 0 ? `status ${status}` : (cause as Error).message;
      const message = `${this.#id} could not be fetched from ${this.#endpoint}: ${what}.${this.#advice(status)}`;
      throw new BnbError(message, "invalid", { cause });
    }
  }

  #advice(status: number): string {
    if (status === 401 || status === 403)
      return ` Set HF_TOKEN to a token that may read ${this.#id}, whose terms you may have to accept on its page.`;
    if (status === 404) return " Check the name; a private model needs HF_TOKEN.";
    return " Try again: what has arrived is kept.";
  }
}

async function library(): Promise<typeof import("@huggingface/hub")> {
  try {
    return await import("@huggingface/hub");
  } catch (cause) {
    throw new BnbError(
      "Models of the hub need the package @huggingface/hub: bun add @huggingface/hub.",
      "unsupported",
      {
        cause,
      },
    );
  }
}

/** Fetches a file into the cache, unless it is there: `blobs/` has it by its hash, the snapshot a link to that. */
async function fetchFile(
  remote: Remote,
  repository: string,
  snapshot: string,
  commit: string,
  file: RemoteFile,
  onBytes: (done: number) => void,
): Promise<void> {
  const blob = join(repository, "blobs", file.etag);
  const pointer = join(snapshot, file.path);
  fs.mkdirSync(dirname(blob), { recursive: true });
  fs.mkdirSync(dirname(pointer), { recursive: true });
  if (!fs.existsSync(blob)) {
    await fetchBlob(remote, commit, file, `${blob}.incomplete`, onBytes);
    fs.renameSync(`${blob}.incomplete`, blob);
  }
  if (!fs.existsSync(pointer)) {
    fs.rmSync(pointer, { force: true }); // a link that leads nowhere
    fs.symlinkSync(relative(dirname(pointer), blob), pointer);
  }
  onBytes(file.size);
}

async function fetchBlob(
  remote: Remote,
  commit: string,
  file: RemoteFile,
  partial: string,
  onBytes: (done: number) => void,
): Promise<void> {
  const had = fs.existsSync(partial) ? fs.statSync(partial).size : 0;
  let done = had <= file.size ? had : 0;
  if (done < file.size || file.size === 0) {
    const response = await remote.open(commit, file, done);
    if (response.status !== 206) done = 0; // the server sends all of it again
    const descriptor = fs.openSync(partial, done > 0 ? "r+" : "w");
    try {
      fs.ftruncateSync(descriptor, done);
      for await (const chunk of response.body!) {
        if (done + chunk.length > file.size) throw wrong(partial, file, `more than its ${file.size} bytes arrived`);
        for (let written = 0; written < chunk.length; )
          written += fs.writeSync(descriptor, chunk, written, chunk.length - written, done + written);
        done += chunk.length;
        onBytes(done);
      }
      fs.fsyncSync(descriptor);
    } finally {
      fs.closeSync(descriptor);
    }
  }
  if (done < file.size)
    throw new BnbError(`${file.path}: ${done} of ${file.size} bytes arrived. Try again: they are kept.`);
  const hash = await hashOf(partial, file);
  if (hash !== file.etag) throw wrong(partial, file, `its hash is ${hash}, expected ${file.etag}`);
}

/** What arrived is of no use, so the next try begins anew. */
function wrong(partial: string, file: RemoteFile, what: string): BnbError {
  fs.rmSync(partial, { force: true });
  return new BnbError(`${file.path}: ${what}; it was removed. Try again.`);
}

async function hashOf(path: string, { check, size }: RemoteFile): Promise<string> {
  const hash = new Bun.CryptoHasher(check === "sha256" ? "sha256" : "sha1");
  if (check === "git") hash.update(`blob ${size}\0`);
  for await (const chunk of Bun.file(path).stream()) hash.update(chunk);
  return hash.digest("hex");
}

function writeReference(repository: string, revision: string, commit: string): void {
  if (revision === commit || !/^[\w.-]+$/.test(revision)) return;
  fs.mkdirSync(join(repository, "refs"), { recursive: true });
  fs.writeFileSync(join(repository, "refs", revision), commit);
}
