// JSON text as Python's `json.dumps` prints it, since checkpoints are compared with Python's byte for byte.
import { BnbError } from "../error.ts";
import { parseJson } from "./json.ts";

/** A number that Python holds as a float, so that 1 prints as `1.0`. */
export class PyFloat {
  constructor(readonly value: number) {}
}

/** A number as a file spelled it, so that `10000.0`, `1e-5` and 20-digit integers come through unchanged. */
export class PyNumber {
  constructor(readonly source: string) {}
}

/** What can be printed. A plain number is an integer; floats are {@link PyFloat}. */
export type PyValue =
  | null
  | boolean
  | number
  | string
  | PyFloat
  | PyNumber
  | readonly PyValue[]
  | { readonly [key: string]: PyValue };

export interface DumpsOptions {
  /** Spaces an indentation level; without it everything stands on one line. */
  readonly indent?: number;
  readonly sortKeys?: boolean;
}

/** `json.dumps(value, indent=…, sort_keys=…)`, character for character, with `ensure_ascii` as by default. */
export function dumps(value: PyValue, options: DumpsOptions = {}): string {
  return print(value, options, "\n");
}

function print(value: PyValue, options: DumpsOptions, newline: string): string {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return quote(value);
  if (typeof value === "number") {
    if (Number.isSafeInteger(value)) return String(value);
    throw new BnbError(`value ${value} is not an integer; wrap a float in PyFloat.`);
  }
  if (value instanceof PyFloat) return repr(value.value);
  if (value instanceof PyNumber) return value.source;
  const inner = newline + " ".repeat(options.indent ?? 0);
  if (Array.isArray(value)) {
    const items = value.map((item) => print(item, options, inner));
    return enclose("[", items, "]", options, newline, inner);
  }
  const entries = Object.entries(value);
  if (options.sortKeys) entries.sort(([a], [b]) => byCodePoint(a, b));
  const items = entries.map(([key, item]) => `${quote(key)}: ${print(item, options, inner)}`);
  return enclose("{", items, "}", options, newline, inner);
}

function enclose(
  open: string,
  items: string[],
  close: string,
  options: DumpsOptions,
  newline: string,
  inner: string,
): string {
  if (items.length === 0) return open + close;
  if (options.indent === undefined) return open + items.join(", ") + close;
  return open + inner + items.join(`,${inner}`) + newline + close;
}

/** Python orders text by code points, JavaScript by UTF-16 units; UTF-8 bytes have Python's order. */
function byCodePoint(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b));
}

/** JavaScript escapes the same characters in the same way, and Python, by default, all outside of ASCII and DEL too. */
function quote(text: string): string {
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, (unit) => {
    return `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/**
 * `repr(float)`: the shortest digits that read back as the same double, as JavaScript prints them too, but with an
 * exponent below 1e-4 and from 1e16 on, and `.0` behind whole numbers.
 */
export function repr(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "Infinity" : "-Infinity";
  if (Object.is(value, -0)) return "-0.0";
  if (value === 0) return "0.0";
  const [mantissa, exponentText] = value.toExponential().split("e") as [string, string];
  const exponent = Number(exponentText);
  if (exponent < -4 || exponent >= 16) {
    const digits = String(Math.abs(exponent)).padStart(2, "0");
    return `${mantissa}e${exponent < 0 ? "-" : "+"}${digits}`;
  }
  // In this range JavaScript prints no exponent either.
  const text = String(value);
  return text.includes(".") ? text : `${text}.0`;
}

/**
 * Parses JSON as Python reads it, with every number kept as the file spelled it. @throws SyntaxError where it is none
 */
export function parsePreserving(text: string): PyValue {
  return parseJson(Buffer.from(text), { python: true }, (source) => new PyNumber(source)) as PyValue;
}
