// Owns ownership: one JavaScript object for each native handle, freed by `using`, by dispose(), or by the collector.
import { toArrayBuffer as documentedToArrayBuffer } from "bun:ffi";
import { lastError, type NativePointer, native } from "./native.ts";

/** Bun's types leave out the last two parameters: what the deallocator is called with, and its address. */
const toArrayBuffer = documentedToArrayBuffer as (
  pointer: NativePointer,
  offset: number,
  bytes: number,
  context: NativePointer,
  deallocator: NativePointer,
) => ArrayBuffer;

const deallocator = native.bnb_deallocator()!;

/** A token's longest reach: Bun makes no array buffer longer than this. */
const tokenBytesMax = 2 ** 32 - 1;

/**
 * What every native object shares. `using x = …` or `x.dispose()` frees the memory at a known point; an object that is
 * dropped is freed by the garbage collector. Any use after that is a `TypeError`.
 */
export abstract class Handle implements Disposable {
  #pointer: NativePointer | null;

  /**
   * An array buffer that nobody reads: it tells the collector how much native memory the handle stands for (so that a
   * loop that forgets to dispose stays bounded), and its deallocator frees the handle.
   */
  readonly #token: ArrayBuffer;

  /** Takes over a handle that a native function returned. @throws BnbError if that is null: the function's failure */
  protected constructor(pointer: NativePointer | null, bytes: number) {
    if (pointer === null) throw lastError();
    this.#pointer = pointer;
    this.#token = toArrayBuffer(pointer, 0, Math.min(bytes, tokenBytesMax), pointer, deallocator);
  }

  /** @internal The native handle. @throws TypeError after dispose() */
  get pointer(): NativePointer {
    if (this.#pointer === null) throw new TypeError(`${this.constructor.name} used after dispose()`);
    return this.#pointer;
  }

  /** Whether {@link dispose} has been called. */
  get disposed(): boolean {
    return this.#pointer === null;
  }

  /** Frees the native memory now; work that still uses it finishes first. Again is harmless. */
  dispose(): void {
    if (this.#pointer === null) return;
    this.#pointer = null;
    this.#token.transfer(0); // runs the deallocator at once
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
