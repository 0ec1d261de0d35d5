// The server that a file of tests asks: with the model `byte`, from before the first test to after the last.
import { afterAll, beforeAll } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ServeOptions, type Serving, serve } from "../../src/serve/index.ts";
import { post as postTo } from "./client.ts";
import { byteModel } from "./model.ts";

/** To be called once, outside of tests. `more` are models beside it. */
export function byteServer(more: ServeOptions["models"] = []) {
  const folder = mkdtempSync(join(tmpdir(), "bnb-serve-"));
  const path = join(folder, "byte");
  let server: Serving;

  /** Another server, with `byte` unless the options have models. */
  const start = (options: Partial<ServeOptions> = {}, slots = 4, queue = 64) =>
    serve({ models: [{ name: "byte", path, slots, queue }], port: 0, ...options });

  const post = (route: string, body: object | string, headers: Record<string, string> = {}, at = server) =>
    postTo(at, route, body, headers);

  beforeAll(async () => {
    await byteModel(path);
    server = await start({ models: [{ name: "byte", path, slots: 4, queue: 64 }, ...more] });
  });
  afterAll(async () => {
    await server.stop();
    rmSync(folder, { recursive: true });
  });
  return { folder, path, start, post, running: () => server };
}
