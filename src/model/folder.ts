// Owns the texts of a model's folder: JSON files and templates, each within a limit, each named in its errors.
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { parseJson } from "../checkpoint/json.ts";
import { BnbError } from "../error.ts";
import type { JsonObject } from "./config.ts";

/** Vocabularies of a quarter of a million tokens take some 35 MB. */
const textBytesMax = 256 * 2 ** 20;

/** A file's text; undefined where it is not there. @throws BnbError if it is no file, or too large */
export function readText(folder: string, name: string): string | undefined {
  const path = join(folder, name);
  if (!existsSync(path)) return undefined;
  const stat = statSync(path);
  if (!stat.isFile()) throw new BnbError(`${path} is no file, expected one.`);
  if (stat.size > textBytesMax) throw new BnbError(`${path} has ${stat.size} bytes, expected at most ${textBytesMax}.`);
  return readFileSync(path, "utf8");
}

/** A file's JSON object; undefined where it is not there. @throws BnbError if it is none */
export function readJson(folder: string, name: string): JsonObject | undefined {
  const text = readText(folder, name);
  if (text === undefined) return undefined;
  const path = join(folder, name);
  let json: unknown;
  try {
    json = parseJson(pythonNumbers(text));
  } catch (cause) {
    throw new BnbError(`${path} is not JSON: ${(cause as Error).message}.`);
  }
  if (typeof json === "object" && json !== null && !Array.isArray(json)) return json as JsonObject;
  throw new BnbError(`${path} is no JSON object.`);
}

/** A list of objects, as modules.json is. */
export function readJsonList(folder: string, name: string): readonly JsonObject[] | undefined {
  const text = readText(folder, name);
  if (text === undefined) return undefined;
  const path = join(folder, name);
  let json: unknown;
  try {
    json = parseJson(text);
  } catch (cause) {
    throw new BnbError(`${path} is not JSON: ${(cause as Error).message}.`);
  }
  if (Array.isArray(json) && json.every((item) => typeof item === "object" && item !== null)) return json;
  throw new BnbError(`${path} is no list of JSON objects.`);
}

/** Python writes infinities and NaN as no JSON does; nothing here asks for a number that may be one. */
function pythonNumbers(text: string): string {
  return text.replace(/([:[,]\s*)(-?Infinity|NaN)(?=\s*[,}\]])/g, "$1null");
}
