// Ownership: one JavaScript object for each native handle, freed by `using`, by dispose(), or by the collector.
import { toArrayBuffer as documentedToArrayBuffer } from "bun:ffi";
import { freedByHand, toldOf } from "./accounted.ts";
import { type NativePointer, native } from "./native.ts";

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
export const tokenBytesMax = 2 ** 32 - 1;

/** Native memory as an array buffer that owns a handle to it, which it frees when it is detached or collected. */
export const bufferOver = (address: NativePointer, bytes: number, owned: NativePointer): ArrayBuffer =>
  toArrayBuffer(address, 0, bytes, owned, deallocator);

/** What the native library holds for a JavaScript object. */
export type HandleKind = "Device" | "Tensor" | "QuantizedTensor" | "Codebook" | "KvCache" | "Recording";

/**
 * What stands for a native object. Its address and its kind are private fields, which a clone, a copy out of JSON or a
 * look-alike has not: what lacks them never reaches the native library.
 */
export abstract class NativeObject {
  readonly #kind: HandleKind;
  readonly #empty: boolean;
  #pointer: NativePointer | null;

  /** Takes over the address of a native object; `empty` says that its memory stands for no element. */
  protected constructor(kind: HandleKind, pointer: NativePointer, empty = false) {
    this.#kind = kind;
    this.#empty = empty;
    this.#pointer = pointer;
  }

  /** @internal Whether a handle stands for no element: the native library has no such thing. */
  static isEmpty(handle: NativeObject): boolean {
    return handle.#empty;
  }

  /**
   * @internal The address of an object of this kind, undefined for everything else. The one way to it: a property could
   * be shadowed.
   *
   * @throws TypeError after dispose()
   */
  static pointerOf(value: unknown, kind: HandleKind): NativePointer | undefined {
    if (typeof value !== "object" || value === null || !(#pointer in value) || value.#kind !== kind) return undefined;
    return value.pointer;
  }

  /** @internal What kind of native object a value stands for, undefined where for none. */
  static kindOf(value: unknown): HandleKind | undefined {
    return typeof value === "object" && value !== null && #kind in value ? value.#kind : undefined;
  }

  /** @internal The native handle. @throws TypeError after dispose() */
  get pointer(): NativePointer {
    if (this.#pointer === null) throw new TypeError(`${this.#kind} used after dispose()`);
    return this.#pointer;
  }

  /** Whether it has been let go. */
  protected get released(): boolean {
    return this.#pointer === null;
  }

  /** Forgets the address; from here on every use is a TypeError. */
  protected release(): void {
    this.#pointer = null;
  }
}

/**
 * What every native object shares that is freed before the process ends. `using x = …` or `x.dispose()` frees the
 * memory at a known point; an object that is dropped is freed by the garbage collector. Any use after that is a
 * `TypeError`.
 */
export abstract class Handle extends NativeObject implements Disposable {
  /**
   * An array buffer that nobody reads: it tells the collector how much native memory there is more than before (so that
   * a loop that forgets to dispose stays bounded), and its deallocator frees the handle.
   */
  readonly #token: ArrayBuffer;
  readonly #bytes: number;

  /** Takes over a handle that a native function returned. */
  protected constructor(kind: HandleKind, pointer: NativePointer, bytes: number) {
    super(kind, pointer, bytes === 0);
    this.#bytes = bytes;
    this.#token = toArrayBuffer(pointer, 0, Math.min(Math.max(toldOf(bytes), 1), tokenBytesMax), pointer, deallocator);
  }

  /** Whether {@link dispose} has been called. */
  get disposed(): boolean {
    return this.released;
  }

  /** Frees the native memory now; work that still uses it finishes first. Again is harmless. */
  dispose(): void {
    if (this.released) return;
    this.release();
    this.#token.transfer(0); // runs the deallocator at once
    freedByHand(this.#bytes);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
