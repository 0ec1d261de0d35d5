// What a model is loaded from: a folder as Hugging Face has it, or one GGUF file, which says the same in its own
// way.
import { existsSync, readdirSync, statSync } from "node:fs";
import { openCheckpoint } from "../checkpoint/checkpoint.ts";
import { type GgufModel, openGguf } from "../checkpoint/gguf.ts";
import { tokenizerFiles } from "../checkpoint/gguf_tokenizer.ts";
import { readConfig } from "../checkpoint/huggingface.ts";
import { dumps } from "../checkpoint/pyjson.ts";
import { BnbError } from "../error.ts";
import type { JsonObject } from "./config.ts";
import { jsonOf, textOf, tokenizerOf } from "./folder.ts";
import { ggufPooling, type Pooling, readPooling } from "./pooling.ts";
import type { Origin } from "./save.ts";
import { Tokenizer } from "./tokenizer.ts";
import { checkpointSource, ggufSource, type WeightSource } from "./weights.ts";

/** A model's files, open: its weights are read when they are asked for. */
export interface ModelFiles extends Disposable {
  readonly path: string;
  /** What config.json says, and the file that errors of it name. */
  readonly config: JsonObject;
  readonly configPath: string;
  /** generation_config.json; `{}` where there is none. */
  readonly generation: JsonObject;
  /** The tokenizer, or why there is none. */
  readonly tokenizer: Tokenizer | string;
  readonly pooling: Pooling;
  readonly weights: WeightSource;
  /** What a folder that the model is saved to has beside weights. */
  readonly origin: Origin;
}

/** @throws BnbError if the path leads to no model, or to a damaged one */
export async function openModel(path: string): Promise<ModelFiles> {
  if (!existsSync(path)) throw new BnbError(`${path} does not exist, expected a model's folder or its GGUF file.`);
  return statSync(path).isDirectory() ? openFolder(path) : await openFile(path);
}

function openFolder(path: string): ModelFiles {
  const config = jsonOf(path, "config.json");
  if (!config) {
    const gguf = readdirSync(path).find((name) => name.endsWith(".gguf"));
    const advice = gguf === undefined ? "expected the folder of a whole model" : `name its file instead: ${gguf}`;
    throw new BnbError(`${path} has no config.json, ${advice}.`);
  }
  const checkpoint = openCheckpoint(path);
  try {
    return {
      path,
      config,
      configPath: `${path}/config.json`,
      generation: jsonOf(path, "generation_config.json") ?? {},
      tokenizer: folderTokenizer(path) ?? `${path} has no tokenizer.json`,
      pooling: readPooling(path),
      weights: checkpointSource(checkpoint),
      origin: { path, config: readConfig(checkpoint.directory), texts: new Map() },
      [Symbol.dispose]: () => checkpoint.close(),
    };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

function folderTokenizer(path: string): Tokenizer | undefined {
  const tokenizer = tokenizerOf(path);
  if (!tokenizer) return undefined;
  const config = jsonOf(path, "tokenizer_config.json") ?? {};
  return new Tokenizer({ tokenizer, config, template: textOf(path, "chat_template.jinja"), path });
}

async function openFile(path: string): Promise<ModelFiles> {
  if (!path.endsWith(".gguf"))
    throw new BnbError(`${path} is a file and no .gguf, expected a model's folder or its GGUF file.`, "unsupported");
  const model = await openGguf(path);
  try {
    return { path, configPath: path, ...describeGguf(model), [Symbol.dispose]: () => model[Symbol.dispose]() };
  } catch (error) {
    model[Symbol.dispose]();
    throw error;
  }
}

function describeGguf(model: GgufModel) {
  const { path, metadata } = model;
  const { files, notes } = tokenizerFiles(path, metadata);
  const parsed = (name: string) => JSON.parse(files.get(name) ?? "{}") as JsonObject;
  const config = JSON.parse(dumps(model.config)) as JsonObject;
  const tokenizer = files.has("tokenizer.json")
    ? new Tokenizer({ tokenizer: parsed("tokenizer.json"), config: parsed("tokenizer_config.json"), path })
    : `${path} has no tokenizer that is understood. ${notes.join(" ")}`;
  const generation = parsed("generation_config.json");
  const origin = { path, config: model.config, texts: files };
  return { config, generation, tokenizer, pooling: ggufPooling(path, metadata), weights: ggufSource(model), origin };
}
