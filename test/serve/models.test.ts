// Several models behind one server: which can't be loaded, and which do not fit beside those in use.
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serve } from "../../src/serve/index.ts";
import { chat, post } from "./client.ts";
import { byteModel } from "./model.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-serve-models-"));
afterAll(() => rmSync(folder, { recursive: true }));
const model = (name: string, queue = 4) => ({ name, path: join(folder, name), slots: 1, queue });

test("the first must be there, and one that can't be loaded is tried again at the next request", async () => {
  expect(serve({ models: [], port: 0 })).rejects.toThrow("serve: models is empty");
  const [sound, late] = [model("sound"), model("late")];
  await byteModel(sound.path);
  mkdirSync(late.path);
  expect(serve({ models: [late, sound], port: 0 })).rejects.toThrow(`serve: ${late.path}: `);
  await using server = await serve({ models: [sound, late], port: 0 });
  const ask = async () => post(server, "/v1/chat/completions", chat({ model: "late" }));
  const refused = await ask();
  expect(refused.status).toBe(500);
  expect(JSON.parse(refused.text).error.message).toContain("config.json");
  await byteModel(late.path);
  expect((await ask()).status).toBe(200);
});

test("a model that does not fit beside one in use is put off, and taken when that has ended", async () => {
  const [one, two] = [model("one"), model("two")];
  for (const { path } of [one, two]) await byteModel(path, { eos: [] });
  await using server = await serve({ models: [one, two], port: 0, memory: 150_000 }); // one of them takes some 90 kB
  const ask = (name: string, tokens: number) =>
    post(server, "/v1/chat/completions", chat({ model: name, max_tokens: tokens }));
  const running = ask("one", 900);
  while (!(await (await fetch(`${server.url}/metrics`)).text()).includes('batch_size{model="one"} 1'))
    await Bun.sleep(1);
  const { status, headers, text } = await ask("two", 1);
  expect([status, headers.get("retry-after")]).toEqual([503, "5"]);
  expect(JSON.parse(text).error.message).toBe("two does not fit beside the models that are in use: ask again later.");
  expect((await running).status).toBe(200);
  expect((await ask("two", 1)).status).toBe(200);
});
