// Reads safetensors files: tensors are views of the mapped file.

import type { DType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import type { Shape } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { checkPath, signatures } from "./arguments.ts";
import { damaged, headerBytesMax, parseHeader, type SafetensorsDtype, type TensorInfo } from "./header.ts";
import { MappedFile, type Placement, unmap } from "./mapped.ts";

/** A view that fits a tensor's elements; 8-bit floats and booleans come as bytes, bfloat16 as its bit patterns. */
export type SafetensorsValues =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Float16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

/** One tensor of an open file. */
export class SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly byteLength: number;
  readonly #file: MappedFile;
  /** From the start of the file. */
  readonly #offset: number;
  #bytes: Uint8Array | undefined;

  /** @internal Tensors come from {@link openSafetensors}. */
  constructor(file: MappedFile, info: TensorInfo, dataOffset: number) {
    this.name = info.name;
    this.dtype = info.dtype;
    this.shape = info.shape;
    this.byteLength = info.end - info.start;
    this.#file = file;
    this.#offset = dataOffset + info.start;
  }

  /**
   * The tensor's bytes, little-endian and row-major: a private view of the file, mapped at the first use, without a
   * copy. It is detached (length 0) by {@link release} and by the file's `close()`. Writing to it never reaches the
   * file.
   */
  get bytes(): Uint8Array {
    this.#bytes ??= this.#file.view(this.#offset, this.byteLength, this.name);
    return this.#bytes;
  }

  /** The elements as a typed array: a view of {@link bytes}, or a copy where the file does not align them. */
  get values(): SafetensorsValues {
    const View = views[this.dtype] ?? Uint8Array;
    const { bytes } = this;
    const aligned = bytes.byteOffset % View.BYTES_PER_ELEMENT === 0 ? bytes : bytes.slice();
    return new View(aligned.buffer as ArrayBuffer, aligned.byteOffset, aligned.byteLength / View.BYTES_PER_ELEMENT);
  }

  /** @internal The elements as a tensor, of a dtype and a shape that its bytes fill. */
  load<D extends DType>(dtype: D, shape: Shape, to: Placement): Tensor<D> {
    return this.#file.tensor(this.name, this.#offset, dtype, shape, to);
  }

  /** Gives the mapped memory back now; the next use maps it again. Views taken before have length 0 from then on. */
  release(): void {
    if (this.#bytes) unmap(this.#bytes);
    this.#bytes = undefined;
  }
}

const views: Partial<
  Record<
    SafetensorsDtype,
    { BYTES_PER_ELEMENT: number } & (new (b: ArrayBuffer, o: number, n: number) => SafetensorsValues)
  >
> = {
  I8: Int8Array,
  I16: Int16Array,
  U16: Uint16Array,
  F16: Float16Array,
  BF16: Uint16Array,
  I32: Int32Array,
  U32: Uint32Array,
  F32: Float32Array,
  C64: Float32Array,
  F64: Float64Array,
  I64: BigInt64Array,
  U64: BigUint64Array,
};

/** An open safetensors file. All of its header has been checked; data is mapped when a tensor's bytes are asked for. */
export class SafetensorsFile implements Disposable {
  readonly path: string;
  /** The text pairs under `__metadata__`; `{}` if there are none. */
  readonly metadata: Readonly<Record<string, string>>;
  /** By name, in the order of the data. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  readonly #file: MappedFile;

  /** @internal Use {@link openSafetensors}. */
  constructor(path: string) {
    this.path = path;
    const file = new MappedFile(path);
    this.#file = file;
    try {
      const { metadata, tensors } = readHeader(file);
      this.metadata = metadata;
      this.tensors = tensors;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** The tensor of that name. @throws BnbError if the file has none, naming some that it has */
  tensor(name: string): SafetensorsTensor {
    const tensor = this.tensors.get(name);
    if (tensor) return tensor;
    const some = [...this.tensors.keys()].slice(0, 3).join(", ");
    throw new BnbError(`${this.path} has no tensor ${JSON.stringify(name)}; it has ${this.tensors.size}: ${some}, …`);
  }

  /** Unmaps every tensor and closes the file. Views of its tensors have length 0 from then on. */
  close(): void {
    for (const tensor of this.tensors.values()) tensor.release();
    this.#file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Opens a safetensors file and checks its header. `using file = openSafetensors(path)` closes it again.
 *
 * @example
 * ```ts
 * using file = checkpoint.openSafetensors("./model/model.safetensors");
 * const { dtype, shape, values } = file.tensor("model.norm.weight");
 * dtype; // → "F32"
 * shape; // → [64]
 * using norm = Tensor.from(values as Float32Array, shape);
 * ```
 *
 * @throws BnbError naming the file and the tensor, if the file breaks a rule of the format; the system's error if it
 * cannot be opened. The file must not be cut short while it is open: reading a mapped page that is gone ends the
 * process with a signal.
 */
export function openSafetensors(path: string): SafetensorsFile {
  checkPath(signatures.openSafetensors, path, "path");
  return new SafetensorsFile(path);
}

function readHeader(file: MappedFile) {
  const { path, size } = file;
  if (size < 8) throw damaged(path, `${size} bytes cannot hold the 8 that give the header's length`);
  const prefix = file.read(0, 8);
  const length = new DataView(prefix.buffer).getBigUint64(0, true);
  if (length > headerBytesMax)
    throw damaged(path, `a header of ${length} bytes is above the limit of ${headerBytesMax}`);
  const dataOffset = 8 + Number(length);
  if (dataOffset > size) throw damaged(path, `the header ends at byte ${dataOffset}, but the file has ${size}`);
  const raw = file.read(8, Number(length));
  return parseHeader(path, raw, size - dataOffset, (info) => new SafetensorsTensor(file, info, dataOffset));
}
