// What `bunsandbytes/serve` exports: models behind HTTP, as OpenAI's clients speak to them.
import { timingSafeEqual } from "node:crypto";
import { BnbError } from "../error.ts";
import { chunks, type Kind, merged, whole } from "./answers.ts";
import { HttpError } from "./errors.ts";
import type { TextEvent } from "./events.ts";
import { Metrics } from "./metrics.ts";
import { Models, type ServedModel } from "./models.ts";
import { page } from "./page.ts";
import type { TextRequest } from "./protocol.ts";
import { type Body, parsed, string } from "./read.ts";
import { chatRequest, completionRequest, embeddingRequest } from "./requests.ts";
import type { ModelThread } from "./thread.ts";
import { isOwnWorker, listen } from "./worker.ts";

export type { ServedModel } from "./models.ts";

/** How models are served. */
export interface ServeOptions {
  /** By name; the first is loaded at once, the others when they are first asked for. */
  models: readonly ServedModel[];
  /** Where to listen: 127.0.0.1 by default, which only this machine reaches. */
  host?: string | undefined;
  /** 8080 by default; 0 takes a free one. */
  port?: number | undefined;
  /** What clients must send as a bearer token; by default none. */
  apiKey?: string | undefined;
  /** The origin whose pages may ask, or `"*"`; by default none but the server's own page. */
  cors?: string | undefined;
  /** The most that a request's body may hold, in bytes: 2 MB by default. */
  bodyBytes?: number | undefined;
  /** How long a request may take, in seconds: 600 by default. */
  timeout?: number | undefined;
  /** How long a line may be silent before its request is whole, or between requests, in seconds: 30 by default. */
  idle?: number | undefined;
  /** The most memory that loaded models may take together, in bytes; all of it by default. */
  memory?: number | undefined;
  /** Called for each request, without anything of what it says. */
  log?: ((line: string) => void) | undefined;
}

/** A server that runs. */
export interface Serving extends AsyncDisposable {
  /** Such as `http://127.0.0.1:8080`. */
  readonly url: string;
  /** Takes no more requests, waits for those that run, and ends. */
  stop(): Promise<void>;
}

/**
 * Serves models by OpenAI's protocol: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/models`;
 * `/health`, `/metrics`, and a page to chat on at `/`. Each model lives in a Worker, and writes many texts at once. In
 * a single-file executable that Worker is the program itself: what stands before `serve()` runs there once more, what
 * comes after does not.
 *
 * @example
 * ```ts
 * import { serve } from "bunsandbytes/serve";
 *
 * await using server = await serve({ models: [{ name: "tiny", path: "./tiny-llama", slots: 4, queue: 16 }], port: 0 });
 * const response = await fetch(`${server.url}/v1/models`);
 * (await response.json()).data[0].id; // → "tiny"
 * ```
 *
 * @throws BnbError if the first model can't be loaded, or the address can't be had
 */
export async function serve(options: ServeOptions): Promise<Serving> {
  const { models: served, host = "127.0.0.1", port = 8080, bodyBytes = 2 ** 21 } = options;
  if (isOwnWorker()) {
    listen();
    return new Promise(() => {}); // what the program does with a server is not for the Worker to do
  }
  const [first] = served;
  if (!first) throw new BnbError("serve: models is empty, expected at least one.");
  const models = new Models(served, options.memory ?? Number.POSITIVE_INFINITY);
  try {
    await models.warm(first.name);
  } catch (cause) {
    throw new BnbError(`serve: ${first.path}: ${(cause as Error).message}`, "invalid", { cause });
  }
  const server = new HttpServer(models, options);
  let listening: Bun.Server<undefined>;
  try {
    listening = Bun.serve({
      ...{ hostname: host, port, maxRequestBodySize: bodyBytes, idleTimeout: options.idle ?? 30 },
      fetch: (request, listening) => server.answer(request, () => listening.timeout(request, 0)),
    });
  } catch (cause) {
    await models.stop();
    throw new BnbError(`serve: ${host}:${port} can't be listened to: ${(cause as Error).message}.`, "invalid", {
      cause,
    });
  }
  const stop = async () => {
    server.closing = true;
    await server.idle();
    await listening.stop();
    await models.stop();
  };
  const shown = host.includes(":") ? `[${host}]` : host;
  return { url: `http://${shown}:${listening.port}`, stop, [Symbol.asyncDispose]: stop };
}

const loopback = /^(localhost|127(\.\d+){3}|\[::1\])(:\d+)?$/;

class HttpServer {
  readonly #models: Models;
  readonly #options: ServeOptions;
  readonly #metrics = new Metrics();
  readonly #isLoopback: boolean;
  #requests = 0;
  #onIdle = () => {};
  closing = false;

  constructor(models: Models, options: ServeOptions) {
    this.#models = models;
    this.#options = options;
    this.#isLoopback = loopback.test(options.host?.includes(":") ? `[${options.host}]` : (options.host ?? "127.0.0.1"));
  }

  /** When no request is under way. */
  async idle(): Promise<void> {
    while (this.#requests > 0)
      await new Promise<void>((resolve) => {
        this.#onIdle = resolve;
      });
  }

  /** @param patient has the line stay open for as long as the answer takes */
  async answer(request: Request, patient: () => void): Promise<Response> {
    const started = performance.now();
    const { pathname } = new URL(request.url);
    let response: Response;
    this.#requests++;
    const done = () => {
      this.#requests--;
      if (this.#requests === 0) this.#onIdle();
    };
    try {
      response = await this.#route(request, pathname, patient, done);
    } catch (error) {
      done();
      response = (error instanceof HttpError ? error : this.#unexpected(error)).response();
    }
    for (const [name, value] of Object.entries(this.#corsHeaders())) response.headers.set(name, value);
    this.#metrics.response(response.status);
    const ms = (performance.now() - started).toFixed(0);
    this.#options.log?.(`${request.method} ${pathname} ${response.status} ${ms} ms`);
    return response;
  }

  #unexpected(error: unknown): HttpError {
    this.#options.log?.(`failed: ${(error as Error).stack ?? error}`);
    return new HttpError(500, "The server failed at this request; its log says more.");
  }

  #corsHeaders(): Record<string, string> {
    const { cors } = this.#options;
    return cors === undefined ? {} : { "access-control-allow-origin": cors, vary: "origin" };
  }

  /** Calls `done` when the answer has gone out, which a stream does later. */
  async #route(request: Request, path: string, patient: () => void, done: () => void): Promise<Response> {
    this.#checkHost(request);
    const { method } = request;
    const finished = (response: Response) => {
      done();
      return response;
    };
    if (method === "OPTIONS") return finished(this.#preflight());
    if (method === "GET" && path === "/") return finished(page());
    if (method === "GET" && path === "/health") return finished(this.#health());
    this.#checkKey(request);
    if (method === "GET" && path === "/metrics") return finished(await this.#metricsPage());
    if (method === "GET" && path === "/v1/models")
      return finished(Response.json({ object: "list", data: this.#models.list }));
    const named = /^\/v1\/models\/(.+)$/.exec(path)?.[1];
    if (method === "GET" && named !== undefined) return finished(this.#oneModel(decodeURIComponent(named)));
    const isPost = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"].includes(path);
    if (!isPost) throw new HttpError(404, `There is no ${method} ${path} here.`, { code: "not_found" });
    if (method !== "POST") throw new HttpError(405, `${path} takes POST.`, { headers: { allow: "POST" } });
    if (this.closing) throw new HttpError(503, "The server is about to stop: ask another one.");
    const body = await readBody(request);
    patient();
    if (path === "/v1/embeddings") return finished(await this.#embeddings(body));
    return this.#texts(path === "/v1/chat/completions" ? "chat" : "completion", body, request.signal, done);
  }

  /**
   * A page elsewhere whose name was made to lead to this machine (DNS rebinding) shows by the name that it asks
   * for.
   */
  #checkHost(request: Request): void {
    const asked = request.headers.get("host") ?? "";
    if (this.#isLoopback && !loopback.test(asked))
      throw new HttpError(403, `The server is asked for as ${JSON.stringify(asked)}: it serves this machine only.`);
  }

  #checkKey(request: Request): void {
    const { apiKey } = this.#options;
    if (apiKey === undefined) return;
    const given = /^Bearer (.+)$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? "";
    const hash = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest();
    if (timingSafeEqual(hash(given), hash(apiKey))) return;
    throw new HttpError(401, "The API key is missing or wrong: send it as a bearer token.", {
      code: "invalid_api_key",
      headers: { "www-authenticate": "Bearer" },
    });
  }

  #preflight(): Response {
    if (this.#options.cors === undefined) return new Response(null, { status: 403 });
    const allow = {
      "access-control-allow-methods": "GET, POST",
      "access-control-allow-headers": "authorization, content-type",
    };
    return new Response(null, { status: 204, headers: { ...allow, "access-control-max-age": "600" } });
  }

  #health(): Response {
    const status = this.closing ? "stopping" : "ok";
    return Response.json({ status, memory_bytes: process.memoryUsage.rss() }, { status: this.closing ? 503 : 200 });
  }

  async #metricsPage(): Promise<Response> {
    const loaded = await this.#models.loaded();
    const states = await Promise.all(loaded.map(async ([name, thread]) => [name, await thread.state()] as const));
    const text = this.#metrics.page(states.flatMap(([name, state]) => (state ? [[name, state] as const] : [])));
    return new Response(text, { headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" } });
  }

  #oneModel(name: string): Response {
    const found = this.#models.list.find(({ id }) => id === name);
    if (!found)
      throw new HttpError(404, `There is no model ${JSON.stringify(name)}.`, {
        param: "model",
        code: "model_not_found",
      });
    return Response.json(found);
  }

  async #embeddings(body: Body): Promise<Response> {
    const { model, inputs, base64 } = embeddingRequest(body);
    const { data, tokens } = await this.#models.with(model, (thread) => thread.embed(inputs, base64));
    const rest = { model, usage: { prompt_tokens: tokens, total_tokens: tokens } };
    const text = `{"object":"list","data":${data},${JSON.stringify(rest).slice(1)}`;
    return new Response(text, { headers: { "content-type": "application/json" } });
  }

  async #texts(kind: Kind, body: Body, client: AbortSignal, done: () => void): Promise<Response> {
    const { thread, done: release } = await this.#models.acquire(string(body, "model"));
    const end = () => {
      release();
      done();
    };
    try {
      const asked = kind === "chat" ? chatRequest(body, thread.info) : completionRequest(body);
      const timeout = AbortSignal.timeout(1000 * (this.#options.timeout ?? 600));
      const gone = new AbortController();
      const signal = AbortSignal.any([client, timeout, gone.signal]);
      const events = merged(asked.requests, (request) => this.#timed(thread, request, signal), asked.tools);
      if (asked.stream) return await this.#stream(chunks(kind, asked, events), gone, end);
      const answer = await whole(kind, asked, events).catch((error) => this.#told(error, timeout));
      end();
      return Response.json(answer);
    } catch (error) {
      release(); // and answer() calls done
      throw error;
    }
  }

  #told(error: unknown, timeout: AbortSignal): never {
    if (timeout.aborted)
      throw new HttpError(504, "The request took longer than requests may here.", { code: "timeout" });
    throw error;
  }

  /** The events of a text, of which first token and end are timed. */
  async *#timed(thread: ModelThread, request: TextRequest, signal: AbortSignal): AsyncGenerator<TextEvent> {
    const started = performance.now();
    let isFirst = true;
    let ended = false;
    try {
      for await (const event of thread.text(request, signal)) {
        if (isFirst) this.#metrics.firstToken(performance.now() - started);
        isFirst = false;
        if ("reason" in event) {
          this.#metrics.text(performance.now() - started, event.usage);
          ended = true;
        }
        yield event;
      }
    } finally {
      if (!ended) this.#metrics.cancelled();
    }
  }

  /** Waits for the first event, so that what is refused has a status of its own. */
  async #stream(parts: AsyncGenerator<object>, gone: AbortController, end: () => void): Promise<Response> {
    const encoder = new TextEncoder();
    const line = (data: object | "[DONE]") =>
      encoder.encode(`data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);
    const first = await parts.next();
    const stream = new ReadableStream<Uint8Array>({
      start(controller) {
        if (!first.done) controller.enqueue(line(first.value));
      },
      async pull(controller) {
        try {
          const next = await parts.next();
          if (!next.done) return controller.enqueue(line(next.value));
          controller.enqueue(line("[DONE]"));
        } catch (error) {
          const told = error instanceof HttpError ? error : new HttpError(500, "The text broke off.");
          controller.enqueue(line(told.body));
        }
        end();
        controller.close();
      },
      async cancel() {
        gone.abort(new HttpError(499, "The client left."));
        await parts.return(undefined).catch(() => {});
        end();
      },
    });
    const headers = {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    };
    return new Response(stream, { headers });
  }
}

async function readBody(request: Request): Promise<Body> {
  // What a form of another page can send by itself is not this type: the browser asks first, and is refused.
  const type = request.headers.get("content-type") ?? "";
  if (!/^application\/json\b/i.test(type))
    throw new HttpError(415, `content-type is ${JSON.stringify(type)}, expected application/json.`);
  let bytes: Uint8Array;
  try {
    bytes = await request.bytes();
  } catch (error) {
    throw new HttpError(413, `The body can't be read: ${(error as Error).message}.`);
  }
  return parsed(bytes);
}
