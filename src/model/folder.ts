// The texts of a model's folder that a model is run by: JSON files and templates, each named in its errors.
import { configBytesMax, fileIn, readText } from "../checkpoint/folder.ts";
import { isObject, parseJson } from "../checkpoint/json.ts";
import { BnbError } from "../error.ts";
import type { JsonObject } from "./config.ts";

/** Vocabularies of a quarter of a million tokens take some 35 MB. */
const tokenizerBytesMax = 2 ** 28;

/**
 * A file's text; undefined where it is not there. @throws BnbError if it is no file, too large, or a link that leads
 * out
 */
export function textOf(folder: string, name: string, most = configBytesMax): string | undefined {
  const path = fileIn(folder, name);
  return path === undefined ? undefined : readText(path, most);
}

/** A file's JSON object; undefined where it is not there. @throws BnbError if it is none */
export function jsonOf(folder: string, name: string): JsonObject | undefined {
  const json = parsed(folder, name, (text) => parseJson(Buffer.from(text), { python: true }));
  if (json === undefined || isObject(json)) return json;
  throw new BnbError(`${folder}/${name} is no JSON object.`);
}

/** tokenizer.json, which is long, and whose numbers are not looked at here. */
export function tokenizerOf(folder: string): JsonObject | undefined {
  const json = parsed(folder, "tokenizer.json", JSON.parse, tokenizerBytesMax);
  if (json === undefined || isObject(json)) return json;
  throw new BnbError(`${folder}/tokenizer.json is no JSON object.`);
}

/** A list of objects, as modules.json is. */
export function jsonListOf(folder: string, name: string): readonly JsonObject[] | undefined {
  const json = parsed(folder, name, (text) => parseJson(Buffer.from(text), { python: true }));
  if (json === undefined || (Array.isArray(json) && json.every(isObject))) return json;
  throw new BnbError(`${folder}/${name} is no list of JSON objects.`);
}

function parsed(folder: string, name: string, parse: (text: string) => unknown, most?: number): unknown {
  const text = textOf(folder, name, most);
  if (text === undefined) return undefined;
  try {
    return parse(text);
  } catch (cause) {
    throw new BnbError(`${folder}/${name} is not JSON: ${(cause as Error).message}.`);
  }
}
