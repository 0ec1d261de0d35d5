// Reads byte ranges of large files: as views, each mapped by itself so that it can be given back by itself, and as
// tensors.
import { closeSync, existsSync, fstatSync, readSync, statSync } from "node:fs";
import type { Device } from "../device.ts";
import type { DType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { dtypes, native, size } from "../native.ts";
import { matrixOf, type Shape, sizeOf } from "../shape.ts";
import { Signature } from "../signature.ts";
import { Tensor } from "../tensor.ts";
import { openRegular } from "./folder.ts";
import { damaged } from "./header.ts";

/** The longest array that JavaScriptCore makes. */
const arrayBytesMax = 2 ** 32;

/** Errors that mean that a file may be read but not mapped for writing, which Bun does even for private views. */
const unmappable = ["EACCES", "EPERM", "EROFS", "ENODEV", "ETXTBSY"];

/** Whether what a descriptor holds has a name, as on Linux where /proc is mounted. */
const hasDescriptorNames = process.platform === "linux" && existsSync("/proc/self/fd");

/** Where a tensor of a file goes. */
export interface Placement {
  readonly device: Device;
  /** The file's own pages in place of a copy, where the device can have them. */
  readonly mmap?: boolean | undefined;
}

/** A file that is open for reading. */
export class MappedFile {
  readonly path: string;
  readonly size: number;
  #descriptor: number;

  constructor(path: string) {
    this.path = path;
    this.#descriptor = openRegular(path);
    this.size = fstatSync(this.#descriptor).size;
  }

  /**
   * Bytes of the file as a private view, without a copy where the system can map the file. Give it to {@link unmap}.
   *
   * @param name what is read, for errors
   */
  view(offset: number, length: number, name: string): Uint8Array {
    if (this.#descriptor < 0) throw new TypeError(`${this.path} was closed; open it again to read ${name}.`);
    if (length === 0) return new Uint8Array(0);
    if (length > arrayBytesMax) {
      const what = `${this.path}: ${name} has ${length} bytes`;
      throw new BnbError(`${what}; Bun's arrays hold at most ${arrayBytesMax}. Split the tensor.`, "unsupported");
    }
    if (fstatSync(this.#descriptor).size < offset + length) throw this.#replaced();
    try {
      return this.#map(offset, length);
    } catch (error) {
      if (unmappable.includes((error as NodeJS.ErrnoException).code ?? "")) return this.read(offset, length);
      throw error;
    }
  }

  /**
   * Maps what was opened. Bun maps by name, and under this one another file may be by now, whose data would be read
   * with this one's header; Linux has a name for what a descriptor holds, and elsewhere the two are compared, before
   * and after.
   */
  #map(offset: number, length: number): Uint8Array {
    const options = { shared: false, offset, size: length };
    if (hasDescriptorNames) return Bun.mmap(`/proc/self/fd/${this.#descriptor}`, options);
    if (!this.#isUnderItsName()) throw this.#replaced();
    const bytes = Bun.mmap(this.path, options);
    if (this.#isUnderItsName()) return bytes;
    unmap(bytes);
    throw this.#replaced();
  }

  #isUnderItsName(): boolean {
    const held = fstatSync(this.#descriptor);
    const named = statSync(this.path, { throwIfNoEntry: false });
    return held.ino === named?.ino && held.dev === named.dev;
  }

  #replaced(): BnbError {
    return new BnbError(`${this.path} was replaced or cut short while it was open; open it again.`);
  }

  /**
   * Elements of the file as a tensor, which outlives this object: what it needs of the file, the library holds.
   *
   * @param name what is read, for errors
   */
  tensor<D extends DType>(name: string, offset: number, dtype: D, shape: Shape, to: Placement): Tensor<D> {
    if (this.#descriptor < 0) throw new TypeError(`${this.path} was closed; open it again to read ${name}.`);
    const { device, mmap = false } = to;
    const me = new Signature(name);
    if (sizeOf(shape) === 0) return Tensor.empty(me, dtype, shape, device);
    const extents = [dtypes[dtype], ...matrixOf(shape)] as const;
    const range = [this.#descriptor, size(offset), this.path as never, mmap ? 1 : 0] as const;
    return new Tensor(me.made(native.bnb_tensor_from_file(device.pointer, ...extents, ...range)), dtype, shape, device);
  }

  /** A copy of bytes of the file. */
  read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const got = readSync(this.#descriptor, bytes, done, length - done, offset + done);
      if (got === 0) throw damaged(this.path, `the file ended at byte ${offset + done} while it was read`);
      done += got;
    }
    return bytes;
  }

  close(): void {
    if (this.#descriptor >= 0) closeSync(this.#descriptor);
    this.#descriptor = -1;
  }
}

/** Gives a view's memory back now; every array on it has length 0 from here on. */
export function unmap(view: Uint8Array): void {
  (view.buffer as ArrayBuffer).transfer(0);
}
