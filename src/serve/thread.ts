// A model's thread as the connections see it: what is asked goes over as messages, and comes back as streams and
// promises.
import type { EngineState } from "./engine.ts";
import { failureOf, fromHost, HttpError } from "./errors.ts";
import { type TextEvent, TextEvents } from "./events.ts";
import type { FromHost, HostOptions, ModelInfo, TextRequest, ToHost } from "./protocol.ts";
import { workerVariable } from "./worker.ts";

/** What waits for an answer from the thread. */
interface Waiting {
  take(message: FromHost): void;
  fail(error: HttpError): void;
}

export class ModelThread {
  readonly info: ModelInfo;
  readonly #worker: Worker;
  readonly #waiting: Map<number, Waiting>;
  #next = 0;

  private constructor(worker: Worker, info: ModelInfo, waiting: Map<number, Waiting>) {
    this.#worker = worker;
    this.info = info;
    this.#waiting = waiting;
  }

  /** Starts a thread, and loads the model in it. @throws HttpError if that fails */
  static start(options: HostOptions): Promise<ModelThread> {
    const worker = newWorker();
    const waiting = new Map<number, Waiting>();
    const { promise, resolve, reject } = Promise.withResolvers<ModelThread>();
    const failAll = (error: HttpError) => {
      reject(error);
      for (const one of waiting.values()) one.fail(error);
      waiting.clear();
    };
    worker.onmessage = ({ data }: MessageEvent<FromHost>) => {
      if (data.type === "ready") return resolve(new ModelThread(worker, data.info, waiting));
      if (data.type === "error") {
        if (data.id === undefined) return failAll(failureOf(data.error)); // of the loading
        waiting.get(data.id)?.fail(fromHost(data.error));
        waiting.delete(data.id);
        return;
      }
      waiting.get(data.id)?.take(data);
      if (data.type !== "text") waiting.delete(data.id);
    };
    worker.onerror = ({ message }) => failAll(new HttpError(500, `The model's thread failed: ${message}`));
    worker.postMessage(options);
    return promise;
  }

  /** A text as it grows. Who stops iterating, or whose signal says so, ends it. */
  async *text(request: TextRequest, signal: AbortSignal): AsyncGenerator<TextEvent, void, void> {
    const id = this.#next++;
    const events = new TextEvents();
    this.#waiting.set(id, {
      take: (message) => {
        if (message.type === "text") events.push({ text: message.text, logprobs: message.logprobs });
        else if (message.type === "end") events.push({ reason: message.reason, usage: message.usage });
      },
      fail: (error) => events.fail(error),
    });
    try {
      this.#say({ type: "text", id, request });
      yield* events.read(signal);
    } finally {
      this.#waiting.delete(id);
      if (!events.ended) this.#say({ type: "cancel", id });
    }
  }

  /** The vectors as OpenAI's list, in JSON: to spell many would keep the other connections waiting. */
  async embed(
    inputs: readonly (string | readonly number[])[],
    base64: boolean,
  ): Promise<{ data: string; tokens: number }> {
    const answer = await this.#ask((id) => ({ type: "embed", id, inputs, base64 }));
    return answer as Extract<FromHost, { type: "embeddings" }>;
  }

  /** What is going on; undefined for an encoder. */
  async state(): Promise<EngineState | undefined> {
    return ((await this.#ask((id) => ({ type: "state", id }))) as Extract<FromHost, { type: "state" }>).state;
  }

  /** Waits for what runs, then ends the thread. */
  async stop(): Promise<void> {
    await this.#ask((id) => ({ type: "drain", id })).catch(() => {});
    this.#worker.terminate();
  }

  #ask(message: (id: number) => ToHost): Promise<FromHost> {
    const id = this.#next++;
    const { promise, resolve, reject } = Promise.withResolvers<FromHost>();
    this.#waiting.set(id, { take: resolve, fail: reject });
    this.#say(message(id));
    return promise;
  }

  #say(message: ToHost): void {
    this.#worker.postMessage(message);
  }
}

/**
 * The Worker that the model lives in: the module beside this one or, in a single-file executable, which has no other
 * modules, the program itself, where serve() finds that it runs in such a Worker.
 */
function newWorker(): Worker {
  if (import.meta.path.startsWith("/$bunfs/"))
    return new Worker(Bun.main, { env: { ...process.env, [workerVariable]: "1" } } as WorkerOptions);
  return new Worker(new URL(import.meta.path.endsWith(".ts") ? "./worker.ts" : "./worker.js", import.meta.url).href);
}
