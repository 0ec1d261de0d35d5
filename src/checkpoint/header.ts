// The header of a safetensors file: its dtypes, its order, and the rules that a sound header keeps.
import { BnbError } from "../error.ts";
import { JsonReader } from "./json.ts";

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
    // Also where an extent of 0 follows, as in Rust's library.
    if (!Number.isSafeInteger(elements * bits[dtype]))
      return `shape ${shapeText(shape)} overflows the size of a tensor`;
  }
  const size = elements * bits[dtype];
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
 * Reads and checks a header, as strictly as the `safetensors` library of Rust; names that stand twice are refused too.
 *
 * @param raw the bytes of the JSON text
 * @param dataBytes the bytes that follow it in the file
 * @param make makes what is kept of a tensor
 * @returns the tensors by name, in the order of the data
 * @throws BnbError naming the file, and the tensor where one is at fault
 */
export function parseHeader<T>(
  path: string,
  raw: Uint8Array,
  dataBytes: number,
  make: (info: TensorInfo) => T,
): { metadata: Readonly<Record<string, string>>; tensors: Map<string, T> } {
  const reader = new JsonReader(raw);
  let metadata: Record<string, string> | undefined;
  let infos = new Map<string, TensorInfo>();
  let last: TensorInfo | undefined;
  let isOrdered = true;
  try {
    if (reader.peek() !== "{") throw damaged(path, "the header is not a JSON object");
    reader.object((name) => {
      if (name === metadataKey ? metadata !== undefined : infos.has(name)) throw twice(path, name);
      if (name === metadataKey) {
        metadata = readMetadata(path, reader);
        return;
      }
      const info = readEntry(path, name, reader);
      if (last && byPosition(last, info) > 0) isOrdered = false;
      infos.set(name, info);
      last = info;
    });
    reader.end();
  } catch (cause) {
    if (!(cause instanceof SyntaxError)) throw cause;
    throw damaged(path, `the header is not JSON (${cause.message})`);
  }
  if (!isOrdered) infos = new Map([...infos].sort(([, a], [, b]) => byPosition(a, b)));
  checkCoverage(path, infos.values(), dataBytes);
  // In the place of the infos, so that no second table of names is made.
  const tensors = infos as Map<string, unknown> as Map<string, T>;
  for (const [name, info] of infos) tensors.set(name, make(info));
  return { metadata: metadata ?? {}, tensors };
}

const byPosition = (a: TensorInfo, b: TensorInfo) => a.start - b.start || a.end - b.end;

const twice = (path: string, key: string) => damaged(path, `the header has the key ${JSON.stringify(key)} twice`);

function readMetadata(path: string, reader: JsonReader): Record<string, string> {
  if (reader.peek() === "n") {
    reader.value();
    return {};
  }
  if (reader.peek() !== "{") throw damaged(path, `${metadataKey} is not an object`);
  const metadata = new Map<string, string>();
  reader.object((key) => {
    if (metadata.has(key)) throw twice(path, key);
    if (reader.peek() !== '"') throw damaged(path, `${metadataKey} has no text at ${JSON.stringify(key)}`);
    metadata.set(key, reader.string());
  });
  return Object.fromEntries(metadata);
}

function readEntry(path: string, name: string, reader: JsonReader): TensorInfo {
  if (reader.peek() !== "{") throw damaged(path, "its entry in the header is not an object", name);
  let dtype: SafetensorsDtype | undefined;
  let shape: number[] | undefined;
  let offsets: [start: number, end: number] | undefined;
  reader.object((field) => {
    if (field === "dtype") {
      if (dtype !== undefined) throw twice(path, field);
      dtype = readDtype(path, name, reader);
    } else if (field === "shape") {
      if (shape !== undefined) throw twice(path, field);
      shape = readShape(path, name, reader);
    } else if (field === "data_offsets") {
      if (offsets !== undefined) throw twice(path, field);
      offsets = readOffsets(path, name, reader);
    } else reader.skip();
  });
  if (dtype === undefined) throw damaged(path, "it has no dtype", name);
  if (shape === undefined) throw damaged(path, "it has no shape", name);
  if (offsets === undefined) throw damaged(path, "it has no data_offsets", name);
  const size = tensorBytes(dtype, shape);
  if (typeof size === "string") throw damaged(path, size, name);
  const [start, end] = offsets;
  if (end - start !== size) {
    const held = `data_offsets [${start}, ${end}] hold ${end - start} bytes`;
    throw damaged(path, `${held}, but shape ${shapeText(shape)} of ${dtype} needs ${size}`, name);
  }
  return { name, dtype, shape, start, end };
}

function readDtype(path: string, name: string, reader: JsonReader): SafetensorsDtype {
  const known = `is none of ${Object.keys(bits).join(", ")}`;
  if (reader.peek() !== '"') throw damaged(path, `dtype ${reader.skip()} ${known}`, name);
  const dtype = reader.string();
  if (!isDtype(dtype)) throw damaged(path, `dtype ${JSON.stringify(dtype)} ${known}`, name);
  return dtype;
}

function readShape(path: string, name: string, reader: JsonReader): number[] {
  if (reader.peek() !== "[") throw damaged(path, `shape ${reader.skip()} is not a list`, name);
  const shape: number[] = [];
  reader.array(() => {
    const extent = reader.count();
    if (extent === undefined) throw damaged(path, `extent ${reader.skip()} of the shape is not a count`, name);
    shape.push(extent);
  });
  return shape;
}

function readOffsets(path: string, name: string, reader: JsonReader): [number, number] {
  const wrong = (what: string) => damaged(path, `data_offsets ${what} are not two byte positions`, name);
  if (reader.peek() !== "[") throw wrong(reader.skip());
  const offsets: number[] = [];
  reader.array(() => {
    const offset = reader.count();
    if (offset === undefined) throw wrong(`with ${reader.skip()}`);
    offsets.push(offset);
    if (offsets.length > 2) throw wrong(`[${offsets.join(", ")}, …]`);
  });
  if (offsets.length < 2) throw wrong(`[${offsets.join(", ")}]`);
  return offsets as [number, number];
}

/** A shape for a sentence; one with many extents would make a long one. */
function shapeText(shape: readonly number[]): string {
  return shape.length > 16 ? `[${shape.slice(0, 16).join(", ")}, …]` : `[${shape.join(", ")}]`;
}

/**
 * The format allows neither overlap nor gap: each tensor starts where the one before it ends, and the last ends the
 * file.
 */
function checkCoverage(path: string, tensors: Iterable<TensorInfo>, dataBytes: number): void {
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
