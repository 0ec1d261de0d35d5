// Owns dense tensors: made from typed arrays, read back into them, viewed, cast and moved.
import { currentDevice, type Device } from "./device.ts";
import {
  type ArrayOf,
  arrays,
  type DType,
  type DTypeOf,
  dtypeBytes,
  dtypeCode,
  dtypeOfArray,
  type FloatDType,
  type TensorValues,
} from "./dtype.ts";
import { BnbError } from "./error.ts";
import { Handle } from "./handle.ts";
import { check, type NativePointer, native, size } from "./native.ts";
import { checkShape, format, matrixOf, type Shape, sizeOf } from "./shape.ts";

/** Where a new tensor goes: {@link currentDevice} by default. */
export interface TensorOptions {
  device?: Device;
}

/**
 * A dense row-major array on a device.
 *
 * @example
 * ```ts
 * using x = Tensor.from(new Float32Array([1, 2, 3, 4]), [2, 2]);
 * using half = x.cast("float16");
 * half.read() instanceof Float16Array; // → true
 * using row = half.reshape([1, -1]); // the same memory
 * row.shape; // → [1, 4]
 * await row.ready(); // without blocking the event loop, unlike read()
 * ```
 */
export class Tensor<D extends DType = DType> extends Handle {
  readonly dtype: D;
  readonly shape: Shape;
  readonly device: Device;

  /** @internal Takes over a native handle. @throws BnbError if that is null */
  constructor(pointer: NativePointer | null, dtype: D, shape: Shape, device: Device) {
    super(pointer, sizeOf(shape) * dtypeBytes(dtype));
    this.dtype = dtype;
    this.shape = shape;
    this.device = device;
  }

  /**
   * A copy of `values`. Their type gives the dtype; with `dtype`, 32-bit values are rounded to it, and a Uint16Array holds
   * the bit patterns of bfloat16. `shape` is `[values.length]` by default.
   *
   * @throws BnbError if values and shape disagree, or the values' type does not fit the dtype
   */
  static from<A extends Exclude<TensorValues, Uint16Array>>(
    values: A,
    shape?: Shape,
    options?: TensorOptions & { dtype?: undefined },
  ): Tensor<DTypeOf<A>>;
  static from(
    values: readonly number[],
    shape?: Shape,
    options?: TensorOptions & { dtype?: undefined },
  ): Tensor<"float32">;
  static from<D extends FloatDType>(
    values: Float32Array | readonly number[],
    shape: Shape | undefined,
    options: TensorOptions & { dtype: D },
  ): Tensor<D>;
  static from<D extends DType>(
    values: ArrayOf[D],
    shape: Shape | undefined,
    options: TensorOptions & { dtype: D },
  ): Tensor<D>;
  static from(
    values: TensorValues | readonly number[],
    shape?: Shape,
    options: TensorOptions & { dtype?: DType | undefined } = {},
  ): Tensor {
    const typed = Array.isArray(values) ? Float32Array.from(values) : (values as TensorValues);
    const held = dtypeOfArray(typed);
    const { dtype = held, device = currentDevice() } = options;
    if (held === undefined || dtype === undefined)
      throw new BnbError(
        `Tensor.from: values is ${nameOf(typed)}, expected an array of numbers or one of ${arrayNames}.`,
      );
    if (held === "bfloat16" && options.dtype === undefined)
      throw new BnbError('Tensor.from: a Uint16Array holds bit patterns: say so with { dtype: "bfloat16" }.');
    const rounded = held === "float32" && dtype !== held;
    if (
      rounded
        ? dtype !== "float16" && dtype !== "bfloat16"
        : dtypeCode(dtype, "Tensor.from") !== dtypeCode(held, "Tensor.from")
    )
      throw new BnbError(`Tensor.from: a ${nameOf(typed)} can't become ${dtype}: give a ${arrays[dtype].name}.`);

    const to = shape ?? [typed.length];
    checkShape(to, "Tensor.from");
    if (sizeOf(to) !== typed.length)
      throw new BnbError(
        `Tensor.from: shape ${format(to)} has ${sizeOf(to)} elements, but values has ${typed.length}.`,
      );
    const made = Tensor.#of(typed, held, to, device);
    if (!rounded) return made;
    using wide = made;
    return wide.cast(dtype as FloatDType);
  }

  static #of(values: TensorValues, dtype: DType, shape: Shape, device: Device): Tensor {
    const pointer = native.bnb_tensor_from(
      device.pointer,
      dtypeCode(dtype, "Tensor.from"),
      ...matrixOf(shape),
      values,
      size(values.byteLength),
    );
    return new Tensor(pointer, dtype, shape, device);
  }

  /** A tensor of zeros. */
  static zeros<D extends DType = "float32">(shape: Shape, options: TensorOptions & { dtype?: D } = {}): Tensor<D> {
    const { dtype = "float32" as D, device = currentDevice() } = options;
    checkShape(shape, "Tensor.zeros");
    const pointer = native.bnb_tensor_zeros(device.pointer, dtypeCode(dtype, "Tensor.zeros"), ...matrixOf(shape));
    return new Tensor(pointer, dtype, shape, device);
  }

  /** The number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  /** The size of the elements in memory. */
  get byteLength(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  /** Waits for the device, then copies the elements out. @throws BnbError if the device failed on the way */
  read(): ArrayOf[D] {
    const values = new arrays[this.dtype](this.size) as ArrayOf[D];
    check(native.bnb_tensor_read(this.pointer, values as TensorValues, size(values.byteLength)));
    return values;
  }

  /** The elements as 32-bit floats, whatever float dtype they have. */
  readFloat32(): Float32Array {
    if (this.dtype === "float32") return this.read() as Float32Array;
    using wide = this.cast("float32");
    return wide.read();
  }

  /** Replaces the elements, after the work that still uses the old ones. */
  write(values: ArrayOf[D]): void {
    if (!(values instanceof arrays[this.dtype]))
      throw new BnbError(
        `Tensor.write: values is ${nameOf(values)}, expected a ${arrays[this.dtype].name} for ${this.dtype}.`,
      );
    check(native.bnb_tensor_write(this.pointer, values as TensorValues, size(values.byteLength)));
  }

  /** A copy in another float dtype, rounded to nearest even. @throws BnbError if either dtype is an integer one */
  cast<To extends FloatDType>(dtype: To): Tensor<To> {
    return new Tensor(native.bnb_cast(this.pointer, dtypeCode(dtype, "Tensor.cast")), dtype, this.shape, this.device);
  }

  /** The same memory under another shape. One dimension may be -1: what is left over. */
  reshape(shape: Shape): Tensor<D> {
    const known = sizeOf(shape.filter((dimension) => dimension !== -1));
    const full = shape.map((dimension) => (dimension === -1 ? this.size / known : dimension));
    checkShape(full, "Tensor.reshape");
    return new Tensor(native.bnb_tensor_reshape(this.pointer, ...matrixOf(full)), this.dtype, full, this.device);
  }

  /** A copy on another device. */
  to(device: Device): Tensor<D> {
    return new Tensor(native.bnb_tensor_to(this.pointer, device.pointer), this.dtype, this.shape, device);
  }

  /** Resolves to this tensor when its device has done all that was asked of it, without blocking the event loop. */
  async ready(): Promise<this> {
    void this.pointer; // a disposed tensor is never ready
    await this.device.ready();
    return this;
  }

  override toString(): string {
    return `Tensor(${this.dtype} ${format(this.shape)} on ${this.device})`;
  }
}

const arrayNames = Object.values(arrays)
  .map((array) => array.name)
  .join(", ");

function nameOf(value: unknown): string {
  return (value as object | null | undefined)?.constructor?.name ?? String(value);
}
