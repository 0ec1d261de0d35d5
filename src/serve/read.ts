// A request's body and its members, each checked: a wrong one is refused by its name.
import { HttpError } from "./errors.ts";

export type Body = Readonly<Record<string, unknown>>;

/** The most that a body may be made of: to parse more would keep the other connections waiting. */
const [mostMembers, mostElements, mostDepth] = [32_768, 131_072, 128];
const [quote, backslash, comma, colon] = [0x22, 0x5c, 0x2c, 0x3a];
const [openList, closeList, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d];

/** Bytes that are counted before the other connections have their turn. */
const turnBytes = 2 ** 17;

/** Parses JSON that is an object. What it is made of is counted before, in one pass over the bytes. */
export async function parsed(bytes: Uint8Array): Promise<Body> {
  const shape = new Shape();
  for (let at = 0; at < bytes.length; at += turnBytes) {
    if (at > 0) await new Promise(setImmediate);
    shape.count(bytes.subarray(at, at + turnBytes));
  }
  let body: unknown;
  try {
    body = JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new HttpError(400, `The body is not JSON: ${(error as Error).message}.`);
  }
  return object(body, "the body");
}

/** What a JSON text is made of, counted piece by piece. */
class Shape {
  #members = 0;
  #elements = 0;
  #depth = 0;
  #isText = false;
  #isEscaped = false;

  /** @throws HttpError where it has more than a body may have */
  count(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (this.#isText) {
        if (this.#isEscaped) this.#isEscaped = false;
        else if (byte === backslash) this.#isEscaped = true;
        else if (byte === quote) this.#isText = false;
      } else if (byte === quote) this.#isText = true;
      else if (byte === comma) this.#elements++;
      else if (byte === colon) this.#members++;
      else if (byte === openList || byte === openObject) {
        this.#members++;
        this.#depth++;
        if (this.#depth > mostDepth) this.#refuse();
      } else if (byte === closeList || byte === closeObject) this.#depth--;
    }
    if (this.#members > mostMembers || this.#elements > mostElements) this.#refuse();
  }

  #refuse(): never {
    throw new HttpError(
      413,
      `The body has more than ${mostMembers} objects, lists and members, ${mostElements} elements or ${mostDepth} levels.`,
    );
  }
}

export function refuse(param: string, value: unknown, expected: string): never {
  const shown = value === undefined ? "missing" : JSON.stringify(value);
  const text = shown.length > 80 ? `${shown.slice(0, 80)}…` : shown;
  throw new HttpError(400, `${param} is ${text}, expected ${expected}.`, { param });
}

/** A number within a range; undefined where it is absent or null. */
export function number(body: Body, param: string, least: number, most: number, whole = false): number | undefined {
  const value = body[param] ?? undefined;
  if (value === undefined) return undefined;
  if (typeof value === "number" && value >= least && value <= most && (!whole || Number.isInteger(value))) return value;
  return refuse(param, value, `a ${whole ? "whole " : ""}number from ${least} to ${most}`);
}

export function boolean(body: Body, param: string): boolean {
  const value = body[param] ?? false;
  return typeof value === "boolean" ? value : refuse(param, value, "true or false");
}

export function string(body: Body, param: string): string {
  const value = body[param];
  return typeof value === "string" && value ? value : refuse(param, value, "a text");
}

export function object(value: unknown, param: string): Body {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Body;
  return refuse(param, value, "an object");
}

export function list(value: unknown, param: string, most: number): readonly unknown[] {
  if (!Array.isArray(value)) return refuse(param, value, "a list");
  if (value.length === 0) return refuse(param, value, "at least one");
  if (value.length > most)
    throw new HttpError(400, `${param} has ${value.length} elements, expected at most ${most}.`, { param });
  return value;
}

/** Stop strings: up to four, as OpenAI has it. */
export function stops(body: Body): string[] {
  const value = body.stop ?? [];
  const all = typeof value === "string" ? [value] : value;
  if (Array.isArray(all) && all.length <= 4 && all.every((stop) => typeof stop === "string" && stop)) return all;
  return refuse("stop", value, "a text, or up to 4 of them");
}

/** Members that would change the answer and that nothing here honours: refused rather than ignored. */
export function refuseUnknown(body: Body, params: readonly string[]): void {
  for (const param of params) {
    const value = body[param];
    const empty = value === undefined || value === null || value === 0 || value === false;
    if (!empty && !(typeof value === "object" && Object.keys(value).length === 0))
      throw new HttpError(400, `${param} is not supported: leave it out.`, { param, code: "unsupported" });
  }
}
