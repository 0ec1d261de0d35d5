// The header of a GGUF file: metadata and what it says of each tensor. Nothing in it is believed before the file
// has
// been seen to hold it, and lists, such as the vocabulary, are passed over and read when somebody asks for them.
import { BnbError } from "../error.ts";
import { damaged } from "./header.ts";
import type { MappedFile } from "./mapped.ts";

/** What a header says of one tensor. */
export interface GgufInfo {
  readonly name: string;
  /** From the last extent to the first, as the file lists them. */
  readonly shape: readonly number[];
  /** GGML's number of the type. */
  readonly type: number;
  /** From the start of the file. */
  readonly offset: number;
}

export interface GgufHeader {
  /** By key. */
  readonly metadata: Metadata;
  readonly tensors: readonly GgufInfo[];
}

export type Metadata = ReadonlyMap<string, MetadataValue>;
export type MetadataValue = number | boolean | string | GgufList;

/** A list of metadata, which stays in the file until it is read. */
export class GgufList {
  /** @internal */
  constructor(
    readonly file: MappedFile,
    readonly start: number,
    readonly length: number,
  ) {}

  /** The texts or numbers. @throws BnbError where it is a list of lists */
  read(): (number | boolean | string)[] {
    const cursor = new Cursor(this.file);
    cursor.at = this.start;
    const type = cursor.u32();
    const count = cursor.count();
    const scalar = scalars[type];
    if (!scalar && type !== text) throw cursor.damaged("a list of lists stands where one of texts or numbers should");
    return Array.from({ length: count }, () => (scalar ? scalar[1](...cursor.take(scalar[0])) : cursor.name()));
  }

  /** So that errors about a value that should be something else can name it. */
  toString(): string {
    return `a list of ${this.length}`;
  }
}

/** GGUF's types of metadata by number: how many bytes, and how to read them. 8 is text, 9 a list. */
const scalars: Record<number, readonly [bytes: number, read: (view: DataView, at: number) => number | boolean]> = {
  0: [1, (view, at) => view.getUint8(at)],
  1: [1, (view, at) => view.getInt8(at)],
  2: [2, (view, at) => view.getUint16(at, true)],
  3: [2, (view, at) => view.getInt16(at, true)],
  4: [4, (view, at) => view.getUint32(at, true)],
  5: [4, (view, at) => view.getInt32(at, true)],
  6: [4, (view, at) => view.getFloat32(at, true)],
  7: [1, (view, at) => view.getUint8(at) !== 0],
  10: [8, (view, at) => Number(view.getBigUint64(at, true))],
  11: [8, (view, at) => Number(view.getBigInt64(at, true))],
  12: [8, (view, at) => view.getFloat64(at, true)],
};
const text = 8;
const list = 9;

/** GGML's own limits. */
const extentsMax = 4;
const nestingMax = 4;
/** Longer than any name or key. */
const nameBytesMax = 1 << 16;
/** Longer than any chat template. */
const valueBytesMax = 1 << 20;

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Reads a file from its start, a window at a time. */
class Cursor {
  readonly file: MappedFile;
  #window = new DataView(new ArrayBuffer(0));
  #windowStart = 0;
  at = 0;

  constructor(file: MappedFile) {
    this.file = file;
  }

  damaged(what: string): BnbError {
    return damaged(this.file.path, `its GGUF header cannot be read (${what})`);
  }

  /** Takes the next bytes, and gives where they are. @throws BnbError where the file has not so many */
  take(bytes: number): readonly [view: DataView, at: number] {
    if (!(bytes <= this.file.size - this.at)) throw this.damaged(`it ends at byte ${this.file.size}, within a value`);
    const start = this.at;
    this.at += bytes;
    if (start < this.#windowStart || this.at > this.#windowStart + this.#window.byteLength) {
      const length = Math.min(Math.max(bytes, 1 << 16), this.file.size - start);
      this.#window = new DataView(this.file.read(start, length).buffer);
      this.#windowStart = start;
    }
    return [this.#window, start - this.#windowStart];
  }

  skip(bytes: number): void {
    if (!(bytes <= this.file.size - this.at)) throw this.damaged(`it ends at byte ${this.file.size}, within a list`);
    this.at += bytes;
  }

  u32(): number {
    const [view, at] = this.take(4);
    return view.getUint32(at, true);
  }

  /** A count, of which each is at least one byte of the file. */
  count(): number {
    const [view, at] = this.take(8);
    const count = view.getBigUint64(at, true);
    if (count > BigInt(this.file.size))
      throw this.damaged(`${count} items do not fit the file's ${this.file.size} bytes`);
    return Number(count);
  }

  /** Any number; beyond 2^53 it is no longer exact, and too large for every use. */
  u64(): number {
    const [view, at] = this.take(8);
    return Number(view.getBigUint64(at, true));
  }

  /** Text of at most `bytesMax` bytes; longer text is passed over, and `undefined`. */
  text(bytesMax: number): string | undefined {
    const length = this.count();
    if (length > bytesMax) {
      this.skip(length);
      return undefined;
    }
    const [view, at] = this.take(length);
    try {
      return utf8.decode(new Uint8Array(view.buffer, at, length));
    } catch {
      throw this.damaged(`the text that ends at byte ${this.at} is not UTF-8`);
    }
  }

  name(): string {
    const name = this.text(nameBytesMax);
    if (name === undefined) throw this.damaged(`a name has more than ${nameBytesMax} bytes`);
    return name;
  }
}

/** @returns how many there are */
function skipList(cursor: Cursor, depth = 0): number {
  if (depth === nestingMax) throw cursor.damaged(`lists are nested more than ${nestingMax} deep`);
  const type = cursor.u32();
  const count = cursor.count();
  const scalar = scalars[type];
  if (scalar) {
    cursor.skip(count * scalar[0]);
    return count;
  }
  if (type !== text && type !== list) throw cursor.damaged(`a list has type ${type}`);
  for (let i = 0; i < count; i++) {
    if (type === list) skipList(cursor, depth + 1);
    else cursor.skip(cursor.count());
  }
  return count;
}

function metadataValue(cursor: Cursor, key: string): MetadataValue {
  const type = cursor.u32();
  const scalar = scalars[type];
  if (scalar) return scalar[1](...cursor.take(scalar[0]));
  if (type === text) return cursor.text(valueBytesMax) ?? "a long text";
  if (type !== list) throw cursor.damaged(`${JSON.stringify(key)} has type ${type}`);
  const start = cursor.at;
  const length = skipList(cursor);
  return new GgufList(cursor.file, start, length);
}

function tensorInfo(cursor: Cursor): GgufInfo {
  const name = cursor.name();
  const extents = cursor.u32();
  if (extents > extentsMax) throw cursor.damaged(`tensor ${JSON.stringify(name)} has ${extents} extents`);
  const shape = Array.from({ length: extents }, () => cursor.u64());
  return { name, shape, type: cursor.u32(), offset: cursor.u64() };
}

/** @throws BnbError if the file is no GGUF file of version 2 or 3, or its header is damaged */
export function readGgufHeader(file: MappedFile): GgufHeader {
  const cursor = new Cursor(file);
  if (cursor.u32() !== 0x46554747) throw cursor.damaged("it does not begin with GGUF");
  const version = cursor.u32();
  if (version !== 2 && version !== 3) {
    const what = (version & 0xffff) === 0 ? "is big-endian" : `has version ${version}`;
    throw new BnbError(`${file.path} ${what}; GGUF of version 2 and 3, little-endian, can be read.`, "unsupported");
  }
  const tensorCount = cursor.count();
  const pairs = cursor.count();
  const metadata = new Map<string, MetadataValue>();
  for (let i = 0; i < pairs; i++) {
    const key = cursor.name();
    if (metadata.has(key)) throw cursor.damaged(`it has the key ${JSON.stringify(key)} twice`);
    metadata.set(key, metadataValue(cursor, key));
  }
  const tensors = new Map<string, GgufInfo>();
  for (let i = 0; i < tensorCount; i++) {
    const info = tensorInfo(cursor);
    if (tensors.has(info.name)) throw cursor.damaged(`it has the tensor ${JSON.stringify(info.name)} twice`);
    tensors.set(info.name, info);
  }
  const alignment = Number(metadata.get("general.alignment") ?? 32);
  if (!(alignment >= 8 && alignment <= 2 ** 20 && Number.isInteger(Math.log2(alignment))))
    throw cursor.damaged(`general.alignment is ${alignment}, expected a power of two from 8`);
  const data = Math.ceil(cursor.at / alignment) * alignment;
  return { metadata, tensors: [...tensors.values()].map((info) => ({ ...info, offset: data + info.offset })) };
}
