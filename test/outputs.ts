// The outputs that tests write: a folder for each test, one model as input, and what they put in place of the system's
// own calls, which is taken back after each test.
import { afterAll, afterEach } from "bun:test";
import fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { intoDirectory } from "../src/checkpoint/output.ts";
import { writeText } from "../src/checkpoint/staging.ts";
import { libc } from "../src/libc.ts";
import { llamaDirectory } from "./models.ts";

export const originals = { exchange: libc.exchange, lock: libc.lock, renameSync: fs.renameSync, linkSync: fs.linkSync };

/** What a file of tests works in until it ends; called by each, since a module that is loaded once has hooks once. */
export async function workplace() {
  const scratch = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), "bnb-output-")));
  afterAll(() => fs.rmSync(scratch, { recursive: true }));
  afterEach(() => {
    Object.assign(libc, { exchange: originals.exchange, lock: originals.lock });
    Object.assign(fs, { renameSync: originals.renameSync, linkSync: originals.linkSync });
  });
  let folders = 0;
  /** A folder of its own for each test, whose content can be looked at. */
  const fresh = () => {
    const folder = join(scratch, `test-${folders++}`);
    fs.mkdirSync(folder);
    return folder;
  };
  const model = join(scratch, "llama");
  await llamaDirectory(model);
  return { scratch, fresh, model };
}

export const textOf = (path: string) => fs.readFileSync(path, "utf8");

/** A model of one text, which is enough to see which one it is. */
export const write = (output: string, weights: string, options: { force?: boolean; input?: string } = {}) =>
  intoDirectory({ output, ...options }, { input: options.input, bytes: 10 }, async (folder) => {
    writeText(join(folder, "model.safetensors"), weights);
    return {};
  });
