// Owns reading byte ranges of large files: each range is mapped by itself, so that it can be given back by itself.
import { closeSync, fstatSync, openSync, readSync, statSync } from "node:fs";
import { BnbError } from "../error.ts";
import { damaged } from "./header.ts";

/** The longest array that JavaScriptCore makes. */
const arrayBytesMax = 2 ** 32;

/** Errors that mean that a file may be read but not mapped for writing, which Bun does even for private views. */
const unmappable = ["EACCES", "EPERM", "EROFS", "ENODEV", "ETXTBSY"];

/** A file that is open for reading. */
export class MappedFile {
  readonly path: string;
  readonly size: number;
  #descriptor: number;

  constructor(path: string) {
    this.path = path;
    const found = statSync(path); // ahead of opening, which waits where it is a pipe
    if (found.isDirectory()) throw new BnbError(`${path} is a folder, expected a file: name one that is in it.`);
    if (!found.isFile()) throw new BnbError(`${path} is no ordinary file: copy what it gives into one.`);
    this.#descriptor = openSync(path, "r");
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
    const held = fstatSync(this.#descriptor);
    const named = statSync(this.path);
    // Bun maps by name, so a file that was renamed over this one would be read with this one's header.
    if (held.ino !== named.ino || held.dev !== named.dev || held.size < offset + length) {
      throw new BnbError(`${this.path} was replaced or cut short while it was open; open it again.`);
    }
    try {
      return Bun.mmap(this.path, { shared: false, offset, size: length });
    } catch (error) {
      if (unmappable.includes((error as NodeJS.ErrnoException).code ?? "")) return this.read(offset, length);
      throw error;
    }
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
