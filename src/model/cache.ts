// The keys and values of a whole model: a cache on each device that some of its layers stand on, used as one.
import { type CacheDType, KvCache } from "../attention.ts";
import type { Device } from "../device.ts";
import { RecordedSteps } from "./recorded.ts";

/** Layers that stand on a device, one after the other. */
export interface Placed {
  readonly device: Device;
  readonly layers: number;
}

/** One cache of several: its bytes are those that one device's would have. */
export class ModelCache implements Disposable {
  /** One for each run of layers, in their order. */
  readonly parts: readonly KvCache[];
  /** Steps that were recorded over its memory. */
  readonly steps = new RecordedSteps();

  constructor(
    placed: readonly Placed[],
    options: { dtype?: CacheDType | undefined; heads: number; columns: number; slots?: number; capacity: number },
  ) {
    const parts: KvCache[] = [];
    try {
      for (const { device, layers } of placed) parts.push(new KvCache({ ...options, layers, device }));
    } catch (error) {
      for (const part of parts) part.dispose();
      throw error;
    }
    this.parts = parts;
  }

  get #first(): KvCache {
    return this.parts[0]!;
  }

  get dtype(): CacheDType {
    return this.#first.dtype;
  }

  get layers(): number {
    return this.parts.reduce((sum, { layers }) => sum + layers, 0);
  }

  get heads(): number {
    return this.#first.heads;
  }

  get columns(): number {
    return this.#first.columns;
  }

  get slots(): number {
    return this.#first.slots;
  }

  /** Tokens of each slot that there is room for. */
  get capacity(): number {
    return this.#first.capacity;
  }

  /** Bytes of a token over all layers. */
  get rowBytes(): number {
    return this.parts.reduce((sum, { rowBytes }) => sum + rowBytes, 0);
  }

  /** Bytes in memory, of all devices together. */
  get byteLength(): number {
    return this.parts.reduce((sum, { byteLength }) => sum + byteLength, 0);
  }

  /** Makes room. Where one device has no memory for it, the cache is as large as it was, though others have grown. */
  resize(options: { slots?: number; capacity?: number }): void {
    this.steps.clear(); // which would keep the memory that there was
    for (const part of this.parts.toReversed()) part.resize(options); // the first one says how large all are
  }

  /** The first `length` tokens of a slot as bytes, layer after layer. */
  read(slot: number, length: number): Uint8Array<ArrayBuffer> {
    if (this.parts.length === 1) return this.#first.read(slot, length);
    return new Uint8Array(Buffer.concat(this.parts.map((part) => part.read(slot, length))));
  }

  /** Puts back what {@link read} gave, into any slot. */
  write(slot: number, length: number, bytes: Uint8Array): void {
    let at = 0;
    for (const part of this.parts) {
      const size = part.rowBytes * length;
      part.write(slot, length, bytes.subarray(at, at + size));
      at += size;
    }
  }

  dispose(): void {
    this.steps.clear();
    for (const part of this.parts) part.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
