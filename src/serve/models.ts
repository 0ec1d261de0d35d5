// The models that a server has by name: loaded when they are first asked for, and let go, the longest unused first,
// where they would take more memory together than they may.
import { statSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { HttpError } from "./errors.ts";
import type { HostOptions } from "./protocol.ts";
import { ModelThread } from "./thread.ts";

/** A model that is served. */
export interface ServedModel extends Omit<HostOptions, "path"> {
  readonly name: string;
  readonly path: string;
}

interface Entry {
  readonly model: ServedModel;
  readonly created: number;
  thread: Promise<ModelThread> | undefined;
  /** Requests that use it now. */
  users: number;
  used: number;
  bytes: number;
}

export class Models {
  readonly #entries: Map<string, Entry>;
  readonly #mostBytes: number;

  constructor(models: readonly ServedModel[], mostBytes: number) {
    this.#mostBytes = mostBytes;
    this.#entries = new Map(
      models.map((model) => {
        const created = Math.floor(statSync(model.path).mtimeMs / 1000);
        return [model.name, { model, created, thread: undefined, users: 0, used: 0, bytes: 0 }];
      }),
    );
  }

  /** In OpenAI's form. */
  get list() {
    return [...this.#entries.values()].map(({ model, created }) => ({
      id: model.name,
      object: "model",
      created,
      owned_by: "bunsandbytes",
    }));
  }

  /** Runs `use` with a model, which is not let go meanwhile. @throws HttpError if there is none of that name */
  async with<T>(name: string, use: (thread: ModelThread) => Promise<T>): Promise<T> {
    const release = await this.acquire(name);
    try {
      return await use(release.thread);
    } finally {
      release.done();
    }
  }

  async acquire(name: string): Promise<{ thread: ModelThread; done: () => void }> {
    const entry = this.#entries.get(name);
    if (!entry) {
      const names = [...this.#entries.keys()].join(", ");
      throw new HttpError(404, `model is ${JSON.stringify(name)}, expected one of ${names}.`, {
        param: "model",
        code: "model_not_found",
      });
    }
    entry.users++;
    const done = () => {
      entry.users--;
      entry.used = performance.now();
    };
    try {
      return { thread: await this.#load(entry), done };
    } catch (error) {
      done();
      throw error;
    }
  }

  /** Loads what must be there from the start. */
  async warm(name: string): Promise<ModelThread> {
    return this.with(name, async (thread) => thread);
  }

  /** Those that are loaded. */
  async loaded(): Promise<[name: string, thread: ModelThread][]> {
    const found = await Promise.all(
      [...this.#entries].map(async ([name, { thread }]) => [name, await thread?.catch(() => undefined)] as const),
    );
    return found.filter((pair): pair is [string, ModelThread] => pair[1] !== undefined);
  }

  async stop(): Promise<void> {
    await Promise.all((await this.loaded()).map(([, thread]) => thread.stop()));
  }

  #load(entry: Entry): Promise<ModelThread> {
    entry.thread ??= this.#start(entry).catch((error) => {
      entry.thread = undefined; // the next request tries again
      throw error;
    });
    return entry.thread;
  }

  async #start(entry: Entry): Promise<ModelThread> {
    entry.bytes = await folderBytes(entry.model.path);
    await this.#makeRoom(entry);
    return ModelThread.start(entry.model);
  }

  async #makeRoom(wanted: Entry): Promise<void> {
    const others = () => [...this.#entries.values()].filter((entry) => entry !== wanted && entry.thread);
    const total = () => others().reduce((sum, { bytes }) => sum + bytes, wanted.bytes);
    while (total() > this.#mostBytes) {
      const idle = others().filter(({ users }) => users === 0);
      const oldest = idle.sort((a, b) => a.used - b.used)[0];
      if (!oldest) {
        if (others().length === 0) return; // by itself it may take what it takes
        throw new HttpError(
          503,
          `${wanted.model.name} does not fit beside the models that are in use: ask again later.`,
          {
            headers: { "retry-after": "5" },
          },
        );
      }
      const thread = oldest.thread!;
      oldest.thread = undefined;
      await (await thread).stop();
    }
  }
}

async function folderBytes(path: string): Promise<number> {
  if (!statSync(path).isDirectory()) return statSync(path).size;
  const names = await readdir(path);
  return names
    .filter((name) => /\.(safetensors|gguf)$/.test(name))
    .reduce((sum, name) => sum + statSync(join(path, name)).size, 0);
}
