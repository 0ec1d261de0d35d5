// Writes safetensors files: tensors arrive one at a time, and the file appears whole or not at all.

import fs from "node:fs";
import { BnbError } from "../error.ts";
import { isOptions, show } from "../signature.ts";
import { checkIterable, checkSpec, signatures } from "./arguments.ts";
import {
  byLayout,
  headerBytesMax,
  headerText,
  isDtype,
  metadataKey,
  type SafetensorsDtype,
  tensorBytes,
} from "./header.ts";
import { about, StagedFile } from "./staging.ts";

/** One write call takes at most this, below what macOS (2 GiB) and Linux take at once. */
const writeBytesMax = 2 ** 28;

/** A tensor that a file will hold: its name, dtype and shape. */
export interface TensorSpec {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  /** The extents; or, for a vector of U8 whose length is known only when it is written, the most that it may be. */
  readonly shape: readonly number[] | { readonly atMost: number };
}

/** Options of {@link SafetensorsWriter} and {@link writeSafetensors}. */
export interface SafetensorsOptions {
  /** Text pairs for `__metadata__`; by default `{ format: "pt" }`, which transformers asks for. */
  readonly metadata?: Readonly<Record<string, string>>;
}

interface Slot {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  shape: readonly number[];
  readonly atMost: number | undefined;
  written: boolean;
}

/**
 * Writes one safetensors file whose tensors arrive one at a time, in any order.
 *
 * The layout is that of the `safetensors` library, byte for byte. A vector of open length (`{ atMost }`) must be
 * written before the tensors that follow it, and the header is then padded with more spaces than necessary.
 * `using writer = new SafetensorsWriter(…)` removes the unfinished file unless `commit()` was reached.
 *
 * @example
 * ```ts
 * const specs = [
 *   { name: "a", dtype: "F32", shape: [2] },
 *   { name: "b", dtype: "U8", shape: [3] },
 * ] as const;
 * using writer = new checkpoint.SafetensorsWriter("./two.safetensors", specs);
 * writer.write("b", Uint8Array.of(1, 2, 3));
 * writer.write("a", Float32Array.of(0.5, 1.5));
 * writer.commit(); // the file appears now
 * ```
 */
export class SafetensorsWriter implements Disposable {
  readonly #file: StagedFile;
  readonly #metadata: Readonly<Record<string, string>>;
  readonly #slots: Slot[];
  readonly #index: Map<string, number>;
  readonly #starts = [0];
  readonly #headerBytes: number;
  readonly #descriptor: number;
  #open = true;

  /** @throws BnbError for a name that stands twice, an unknown dtype or an impossible shape */
  constructor(path: string, specs: Iterable<TensorSpec>, { metadata = { format: "pt" } }: SafetensorsOptions = {}) {
    signatures.writer.text(path, "path");
    checkIterable(signatures.writer, specs, "specs");
    if (!isOptions(metadata)) throw signatures.writer.wrong("metadata", metadata, "an object of strings");
    this.#metadata = checkedMetadata(metadata);
    this.#slots = Array.from(specs, (spec) => toSlot(checkSpec(signatures.writer, spec, "specs"))).sort(byLayout);
    this.#index = new Map(this.#slots.map((slot, index) => [slot.name, index]));
    if (this.#index.size < this.#slots.length) {
      const twice = this.#slots.find((slot, index) => this.#index.get(slot.name) !== index)!;
      throw new BnbError(`tensors has the name ${JSON.stringify(twice.name)} twice; a file needs distinct names.`);
    }
    const text = this.#headerText();
    this.#headerBytes = Math.ceil(Buffer.byteLength(text) / 8) * 8;
    if (this.#headerBytes > headerBytesMax) {
      throw new BnbError(`tensors needs a header of ${this.#headerBytes} bytes, above the limit; write several files.`);
    }
    this.#file = new StagedFile(path);
    try {
      this.#descriptor = fs.openSync(this.#file.path, "wx");
    } catch (error) {
      this.#file[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Writes one tensor's elements.
   *
   * @param data a view of exactly the tensor's bytes, little-endian and row-major; it may be reused at once
   */
  write(name: string, data: ArrayBufferView): void {
    signatures.write.text(name, "name");
    if (!ArrayBuffer.isView(data)) throw signatures.write.wrong("data", data, "a typed array");
    const index = this.#index.get(name);
    if (index === undefined) throw new BnbError(`name ${JSON.stringify(name)} was not announced to the writer.`);
    const slot = this.#slots[index]!;
    const start = this.#start(index);
    const bytes = slotBytes(slot);
    const fits = data.byteLength === bytes || (slot.atMost !== undefined && data.byteLength < bytes);
    if (!fits || slot.written) {
      const what = `${JSON.stringify(name)} has ${data.byteLength} bytes of data`;
      const room = slot.written ? "it was written already" : `it was announced with ${bytes}`;
      throw new BnbError(`${what}, but ${room} (${slot.dtype} [${slot.shape.join(", ")}]).`);
    }
    if (slot.atMost !== undefined) slot.shape = [data.byteLength];
    this.#put(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), 8 + this.#headerBytes + start);
    slot.written = true;
  }

  /** Writes the header, makes the file durable and gives it its name. @throws BnbError if a tensor was not written */
  commit(): void {
    const missing = this.#slots.find((slot) => !slot.written);
    if (missing) throw new BnbError(`${JSON.stringify(missing.name)} was announced but not written.`);
    const prefix = Buffer.alloc(8 + this.#headerBytes, " ");
    prefix.writeBigUInt64LE(BigInt(this.#headerBytes), 0);
    prefix.write(this.#headerText(), 8);
    this.#put(prefix, 0);
    fs.fsyncSync(this.#descriptor);
    this.#close();
    this.#file.commit();
  }

  /** Removes the file, unless it was committed. */
  [Symbol.dispose](): void {
    this.#close();
    this.#file[Symbol.dispose]();
  }

  #close(): void {
    if (this.#open) fs.closeSync(this.#descriptor);
    this.#open = false;
  }

  #headerText(): string {
    let end = 0;
    const infos = this.#slots.map((slot) => {
      const start = end;
      end += slotBytes(slot);
      return { name: slot.name, dtype: slot.dtype, shape: slot.shape, start, end };
    });
    return headerText(this.#metadata, infos);
  }

  /** Where a tensor starts, counted from the end of the header; known once the lengths before it are. */
  #start(index: number): number {
    while (this.#starts.length <= index) {
      const slot = this.#slots[this.#starts.length - 1]!;
      if (slot.atMost !== undefined && !slot.written) {
        const name = JSON.stringify(this.#slots[index]!.name);
        throw new BnbError(
          `${name} stands behind ${JSON.stringify(slot.name)}, whose length is open: write that first.`,
        );
      }
      this.#starts.push(this.#starts.at(-1)! + slotBytes(slot));
    }
    return this.#starts[index]!;
  }

  #put(bytes: Uint8Array, position: number): void {
    let done = 0;
    while (done < bytes.length) {
      const length = Math.min(bytes.length - done, writeBytesMax);
      try {
        done += fs.writeSync(this.#descriptor, bytes, done, length, position + done);
      } catch (error) {
        throw about(error, this.#file.target);
      }
    }
  }
}

/** A copy of the metadata, of which readers take only text. */
function checkedMetadata(metadata: Readonly<Record<string, string>>): Record<string, string> {
  const copy = { ...metadata };
  for (const [key, value] of Object.entries(copy)) {
    if (typeof value !== "string")
      throw new BnbError(`metadata ${JSON.stringify(key)} is ${show(value)}, expected text.`);
    if (!key.isWellFormed() || !value.isWellFormed())
      throw new BnbError(`metadata ${JSON.stringify(key)} has half of a surrogate pair, which no reader takes.`);
  }
  return copy;
}

function toSlot({ name, dtype, shape }: TensorSpec): Slot {
  if (typeof name !== "string" || !name.isWellFormed())
    throw new BnbError(`tensor ${show(name)}: this name is no text that a reader takes; choose another.`);
  const atMost = "atMost" in shape ? shape.atMost : undefined;
  const extents = "atMost" in shape ? [shape.atMost] : [...shape];
  const where = `tensor ${JSON.stringify(name)}`;
  if (name === metadataKey) throw new BnbError(`${where}: this name is the format's own; choose another.`);
  if (!isDtype(dtype)) throw new BnbError(`${where}: dtype ${JSON.stringify(dtype)} is not one of the format's.`);
  const size = tensorBytes(dtype, extents);
  if (typeof size === "string") throw new BnbError(`${where}: ${size}.`);
  if (atMost !== undefined && dtype !== "U8")
    throw new BnbError(`${where}: only U8 can be of open length, not ${dtype}.`);
  return { name, dtype, shape: extents, atMost, written: false };
}

/** The bytes that a spec takes, or may take. @throws BnbError if the shape is none */
export function specBytes(spec: TensorSpec): number {
  return slotBytes(toSlot(spec));
}

/** A slot's shape was checked when it was made. */
function slotBytes(slot: Slot): number {
  return tensorBytes(slot.dtype, slot.shape) as number;
}

/** A tensor to write. `bytes` is its data, or a function that makes it when its turn comes. */
export interface TensorSource {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly bytes: ArrayBufferView | (() => ArrayBufferView | Promise<ArrayBufferView>);
}

/**
 * Writes a whole safetensors file atomically. Data given as a function is made when its turn comes, so that only one
 * tensor is in memory at a time; between tensors the event loop turns, so that signals are heard.
 *
 * @example
 * ```ts
 * await checkpoint.writeSafetensors("./one.safetensors", [
 *   { name: "w", dtype: "F32", shape: [2, 2], bytes: () => Float32Array.of(1, 2, 3, 4) },
 * ]);
 * using file = checkpoint.openSafetensors("./one.safetensors");
 * file.tensor("w").values; // → [1, 2, 3, 4]
 * ```
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorSource>,
  options: SafetensorsOptions = {},
): Promise<void> {
  const me = signatures.writeSafetensors;
  me.text(path, "path");
  checkIterable(me, tensors, "tensors");
  const { metadata } = me.options(options);
  if (metadata !== undefined && !isOptions(metadata)) throw me.wrong("metadata", metadata, "an object of strings");
  const sources = Array.from(tensors, (tensor) => checkSpec(me, tensor, "tensors")).sort(byLayout);
  using writer = new SafetensorsWriter(path, sources, options);
  for (const { name, bytes } of sources) {
    writer.write(name, typeof bytes === "function" ? await bytes() : bytes);
    await new Promise(setImmediate);
  }
  writer.commit();
}
