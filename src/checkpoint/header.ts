// Owns the header of a safetensors file: its dtypes, its order, and the rules that a sound header keeps.
import { BnbError } from "../error.ts";
import { duplicateKey, parseJson } from "./json.ts";

/**
 * Bits an element, in the order of the `safetensors` library, which lays files out from the last dtype to the first.
 */
const bits = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

/** A dtype as a safetensors header spells it. */
export type SafetensorsDtype = keyof typeof bits;

/** Whether tensors of a dtype stand behind those of another in a file. */
export function liesBehind(dtype: SafetensorsDtype, other: SafetensorsDtype): boolean {
  return order.get(dtype)! < order.get(other)!;
}

const order = new Map(Object.keys(bits).map((dtype, index) => [dtype as SafetensorsDtype, index]));

/** What a header says of one tensor; `start` and `end` count bytes from the end of the header. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly start: number;
  readonly end: number;
}

export interface Header {
  readonly metadata: Readonly<Record<string, string>>;
  /** In the order of the data. */
  readonly tensors: readonly TensorInfo[];
}

/** The longest header that the `safetensors` library reads. */
export const headerBytesMax = 100_000_000;

/** The key that holds the metadata; no tensor can have this name. */
export const metadataKey = "__metadata__";

/** An error about a file that breaks the format, with the one thing a reader of it can do. */
export function damaged(path: string, what: string, name?: string): BnbError {
  const where = name === undefined ? path : `${path}: tensor ${JSON.stringify(name)}`;
  return new BnbError(`${where}: ${what}; the file is damaged or incomplete: fetch it or write it again.`);
}

/**
 * The bytes of a tensor, or what keeps it from having a size.
 *
 * @returns a number of bytes; a string, the reason, when the shape is no shape or the size is no whole number of bytes.
 */
export function tensorBytes(dtype: SafetensorsDtype, shape: readonly number[]): number | string {
  let elements = 1;
  for (const extent of shape) {
    if (!Number.isSafeInteger(extent) || extent < 0) return `extent ${extent} of the shape is not a count`;
    elements *= extent;
  }
  const size = elements * bits[dtype];
  if (!Number.isSafeInteger(size)) return `shape [${shape.join(", ")}] overflows the size of a tensor`;
  if (size % 8 !== 0) return `${elements} elements of ${dtype} do not fill whole bytes`;
  return size / 8;
}

/**
 * Sorts as the `safetensors` library does: dtypes from the most aligned to the least, then names by their UTF-8 bytes.
 */
export function byLayout(
  a: { readonly name: string; readonly dtype: SafetensorsDtype },
  b: { readonly name: string; readonly dtype: SafetensorsDtype },
): number {
  return order.get(b.dtype)! - order.get(a.dtype)! || Buffer.compare(Buffer.from(a.name), Buffer.from(b.name));
}

export function isDtype(dtype: unknown): dtype is SafetensorsDtype {
  return order.has(dtype as SafetensorsDtype);
}

/** The header's text, without its length and padding. */
export function headerText(metadata: Readonly<Record<string, string>>, tensors: readonly TensorInfo[]): string {
  const entries = tensors.map(({ name, dtype, shape, start, end }) => {
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: [start, end] })}`;
  });
  // Written by hand, since an object would move names such as "1" to the front.
  const pairs = Object.entries(metadata).map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`);
  if (pairs.length > 0) entries.unshift(`${JSON.stringify(metadataKey)}:{${pairs.join(",")}}`);
  return `{${entries.join(",")}}`;
}

/**
 * Reads and checks a header.
 *
 * @param raw the bytes of the JSON text
 * @param dataBytes the bytes that follow it in the file
 * @throws BnbError naming the file, and the tensor where one is at fault
 */
export function parseHeader(path: string, raw: Uint8Array, dataBytes: number): Header {
  const json = parseObject(path, raw);
  const { [metadataKey]: rawMetadata, ...rest } = json;
  const tensors = Object.entries(rest).map(([name, entry]) => parseEntry(path, name, entry));
  tensors.sort((a, b) => a.start - b.start || a.end - b.end);
  checkCoverage(path, tensors, dataBytes);
  return { metadata: parseMetadata(path, rawMetadata), tensors };
}

function parseObject(path: string, raw: Uint8Array): Record<string, unknown> {
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw);
    json = parseJson(text);
  } catch (cause) {
    throw damaged(path, `the header is not JSON (${(cause as Error).message})`);
  }
  if (!isObject(json)) throw damaged(path, "the header is not a JSON object");
  const twice = duplicateKey(text);
  if (twice !== undefined) throw damaged(path, `the header has the key ${JSON.stringify(twice)} twice`);
  return json;
}

function parseMetadata(path: string, raw: unknown): Record<string, string> {
  if (raw === undefined || raw === null) return {};
  if (!isObject(raw)) throw damaged(path, `${metadataKey} is not an object`);
  for (const [key, value] of Object.entries(raw)) {
    if (typeof value !== "string") throw damaged(path, `${metadataKey} has no text at ${JSON.stringify(key)}`);
  }
  return raw as Record<string, string>;
}

function parseEntry(path: string, name: string, entry: unknown): TensorInfo {
  if (!isObject(entry)) throw damaged(path, "its entry in the header is not an object", name);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (!isDtype(dtype)) {
    const known = Object.keys(bits).join(", ");
    throw damaged(path, `dtype ${JSON.stringify(dtype)} is none of ${known}`, name);
  }
  if (!Array.isArray(shape)) throw damaged(path, `shape ${JSON.stringify(shape)} is not a list`, name);
  const size = tensorBytes(dtype, shape);
  if (typeof size === "string") throw damaged(path, size, name);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every((at) => Number.isSafeInteger(at) && at >= 0)) {
    throw damaged(path, `data_offsets ${JSON.stringify(offsets)} are not two byte positions`, name);
  }
  const [start, end]: number[] = offsets;
  if (end! - start! !== size) {
    const held = `data_offsets [${start}, ${end}] hold ${end! - start!} bytes`;
    throw damaged(path, `${held}, but shape [${shape.join(", ")}] of ${dtype} needs ${size}`, name);
  }
  return { name, dtype, shape, start: start!, end: end! };
}

/**
 * The format allows neither overlap nor gap: each tensor starts where the one before it ends, and the last ends the
 * file.
 */
function checkCoverage(path: string, tensors: readonly TensorInfo[], dataBytes: number): void {
  let end = 0;
  for (const tensor of tensors) {
    if (tensor.start !== end) {
      const fault = tensor.start < end ? "overlaps the tensor before it" : "leaves a gap before it";
      throw damaged(path, `it ${fault} (starts at ${tensor.start}, expected ${end})`, tensor.name);
    }
    end = tensor.end;
  }
  if (end !== dataBytes) throw damaged(path, `the header describes ${end} bytes of data, but ${dataBytes} follow it`);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
