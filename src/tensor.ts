// Dense tensors: made from typed arrays, read back into them, viewed, cast and moved.
import { currentDevice, type Device, type DeviceName, deviceOf } from "./device.ts";
import {
  type ArrayOf,
  arrayBytes,
  arrayLength,
  arrays,
  type DType,
  type DTypeOf,
  dtypeBytes,
  dtypeOfArray,
  type FloatDType,
  type TensorValues,
} from "./dtype.ts";
import { bufferOver, Handle, tokenBytesMax } from "./handle.ts";
import { edgeItems, elementsMax, formatValues, inspect } from "./inspect.ts";
import { dtypes, floatDtypes, type NativePointer, native, size } from "./native.ts";
import { format, matrixOf, type Shape, sizeOf } from "./shape.ts";
import { Signature, show } from "./signature.ts";
import { type NestedNumbers, type Values, valuesOf } from "./values.ts";

/** Where a new tensor goes: {@link currentDevice} by default. */
export interface TensorOptions {
  device?: Device | DeviceName | undefined;
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
 * x.view((values) => values.reverse()); // where they are, without a copy
 * x.read(); // → [4, 3, 2, 1]
 * ```
 */
export class Tensor<D extends DType = DType> extends Handle {
  readonly dtype: D;
  readonly device: Device;
  readonly #shape: Shape;

  /** @internal Takes over a native handle, and a shape that nobody changes. */
  constructor(pointer: NativePointer, dtype: D, shape: Shape, device: Device) {
    super("Tensor", pointer, sizeOf(shape) * dtypeBytes(dtype));
    this.dtype = dtype;
    this.#shape = shape;
    this.device = device;
  }

  /** A copy of the dimensions: to change it changes no tensor. */
  get shape(): Shape {
    return this.#shape.slice();
  }

  /**
   * A copy of `values`. Their type gives the dtype; with `dtype`, 32-bit values are rounded to it, and a Uint16Array
   * holds the bit patterns of bfloat16. Plain arrays of numbers become float32, or the dtype that is named; they may be
   * nested, and `shape` is what they have by default.
   *
   * @throws BnbError if values and shape disagree, or the values' type does not fit the dtype
   */
  static from<A extends Exclude<TensorValues, Uint16Array>>(
    values: A,
    shape?: Shape,
    options?: TensorOptions & { dtype?: undefined },
  ): Tensor<DTypeOf<A>>;
  static from(values: NestedNumbers, shape?: Shape, options?: TensorOptions & { dtype?: undefined }): Tensor<"float32">;
  static from<D extends FloatDType>(
    values: Float32Array,
    shape: Shape | undefined,
    options: TensorOptions & { dtype: D },
  ): Tensor<D>;
  static from<D extends DType>(
    values: ArrayOf[D],
    shape: Shape | undefined,
    options: TensorOptions & { dtype: D },
  ): Tensor<D>;
  static from<D extends DType>(
    values: NestedNumbers,
    shape: Shape | undefined,
    options: TensorOptions & { dtype: D },
  ): Tensor<D>;
  static from(
    values: TensorValues | NestedNumbers,
    shape?: Shape,
    options: TensorOptions & { dtype?: DType | undefined } = {},
  ): Tensor {
    const me = signatures.from;
    const { dtype, device: where = currentDevice() } = me.options(options);
    const given = shape === undefined ? undefined : me.shape(shape);
    if (dtype !== undefined) me.code(dtype, "dtype", dtypes);
    const device = deviceOf(me, where);
    return Tensor.#from(valuesOf(me, values, "values", dtype), given, dtype, device);
  }

  static #from(
    { array, dtype: held, shape }: Values,
    given: Shape | undefined,
    dtype: DType | undefined,
    device: Device,
  ) {
    const me = signatures.from;
    const to = given ?? shape;
    if (held === "bfloat16" && dtype === undefined)
      throw me.fail('values is a Uint16Array, which holds bit patterns: say so with { dtype: "bfloat16" }.');
    const rounded = held === "float32" && (dtype === "float16" || dtype === "bfloat16");
    if (dtype !== undefined && dtype !== held && !rounded)
      throw me.fail(`values is a ${arrays[held].name}, which can't become ${dtype}: give a ${arrays[dtype].name}.`);
    if (sizeOf(to) !== sizeOf(shape))
      throw me.fail(`shape ${format(to)} has ${sizeOf(to)} elements, but values has ${sizeOf(shape)}.`);
    if (sizeOf(to) === 0) return Tensor.empty(me, dtype ?? held, to, device);
    const bytes = size(arrayBytes(array));
    const pointer = native.bnb_tensor_from(me.device(device), dtypes[held], ...matrixOf(to), array, bytes);
    const made = new Tensor(me.made(pointer), held, to, device);
    if (!rounded) return made;
    using wide = made;
    return wide.cast(dtype);
  }

  /** A tensor of zeros. */
  static zeros<D extends DType = "float32">(shape: Shape, options: TensorOptions & { dtype?: D } = {}): Tensor<D> {
    const me = signatures.zeros;
    const { dtype = "float32" as D, device: where = currentDevice() } = me.options(options);
    const to = me.shape(shape);
    const code = me.code(dtype, "dtype", dtypes);
    const device = deviceOf(me, where);
    if (sizeOf(to) === 0) return Tensor.empty(me, dtype, to, device);
    return new Tensor(me.made(native.bnb_tensor_zeros(me.device(device), code, ...matrixOf(to))), dtype, to, device);
  }

  /**
   * @internal A tensor without elements, such as a batch of no rows. The native library has no such thing, and no
   * operation hands it over: what stands behind it is one element, for its dtype, its device and its lifetime.
   */
  static empty<D extends DType>(me: Signature, dtype: D, shape: Shape, device: Device): Tensor<D> {
    const code = me.code(dtype, "dtype", dtypes);
    const pointer = native.bnb_tensor_zeros(me.device(device), code, ...matrixOf([1]));
    return new Tensor(me.made(pointer), dtype, shape, device);
  }

  /** The number of elements. */
  get size(): number {
    return sizeOf(this.#shape);
  }

  /** The size of the elements in memory. */
  get byteLength(): number {
    return this.size * dtypeBytes(this.dtype);
  }

  /** Waits for the device, then copies the elements out. @throws BnbError if the device failed on the way */
  read(): ArrayOf[D] {
    const me = signatures.read;
    const values = new arrays[this.dtype](this.size) as ArrayOf[D];
    const pointer = me.batch(this, "this");
    if (this.size === 0) return values;
    me.check(native.bnb_tensor_read(pointer, values as TensorValues, size(values.byteLength)));
    return values;
  }

  /**
   * Waits for the device, then calls `use` with the elements where they are, without a copy; what `use` writes there is
   * the tensor's. The array is empty once `use` has returned, so that it can't outlive the memory. Until then it shows
   * the work that was asked for before: what `use` itself has written into this tensor may be seen half done.
   *
   * @throws BnbError (`unsupported`) if the device does not share its memory with the processor, as CUDA: {@link read}
   * copies
   */
  view<Result>(use: (values: ArrayOf[D]) => Result): Result {
    const me = signatures.view;
    const pointer = me.batch(this, "this");
    if (typeof use !== "function") throw me.wrong("use", use, "a function of the elements");
    const buffer = this.size === 0 ? new ArrayBuffer(0) : this.#buffer(me, pointer);
    try {
      const result = use(new arrays[this.dtype](buffer) as ArrayOf[D]);
      if (!(result instanceof Promise)) return result;
      throw me.fail(
        "use returned a promise, but the array is gone when it goes on: work at once, or on a copy by read().",
      );
    } finally {
      if (!buffer.detached) buffer.transfer(0); // it may be another thread's by now, to whom it was sent
    }
  }

  /** The memory, with a share in it of the buffer's own: `use` may dispose of the tensor. */
  #buffer(me: Signature, pointer: NativePointer): ArrayBuffer {
    const bytes = this.byteLength;
    if (bytes > tokenBytesMax)
      throw me.fail(`${this} has ${bytes} bytes, of at most ${tokenBytesMax}: take a slice() of it.`, "unsupported");
    const address = me.made(native.bnb_tensor_host(pointer));
    return bufferOver(address, bytes, me.made(native.bnb_tensor_reshape(pointer, ...matrixOf(this.#shape))));
  }

  /** The elements as 32-bit floats, whatever float dtype they have. */
  readFloat32(): Float32Array {
    if (this.dtype === "float32") return this.read() as Float32Array;
    using wide = this.cast("float32");
    return wide.read();
  }

  /** Replaces the elements, after the work that still uses the old ones. */
  write(values: ArrayOf[D]): void {
    const me = signatures.write;
    if (dtypeOfArray(values) !== this.dtype)
      throw me.wrong("values", values, `a ${arrays[this.dtype].name} for ${this.dtype}`);
    const pointer = me.batch(this, "this");
    if (arrayLength(values) !== this.size)
      throw me.fail(`values has ${arrayLength(values)} elements, expected ${this.size}.`);
    if (this.size === 0) return;
    me.check(native.bnb_tensor_write(pointer, values as TensorValues, size(arrayBytes(values))));
  }

  /** A copy in another float dtype, rounded to nearest even. @throws BnbError if either dtype is an integer one */
  cast<To extends FloatDType>(dtype: To): Tensor<To> {
    return this.castAs(signatures.cast, dtype);
  }

  /** @internal {@link cast} under another function's name. */
  castAs<To extends FloatDType>(me: Signature, dtype: To): Tensor<To> {
    const code = me.code(dtype, "dtype", floatDtypes);
    const pointer = native.bnb_cast(me.batch(this, "this"), code); // of the one element that stands for none too
    return new Tensor(me.made(pointer), dtype, this.#shape, this.device);
  }

  /** The same memory under another shape. One dimension may be -1: what is left over. */
  reshape(shape: Shape): Tensor<D> {
    const me = signatures.reshape;
    const full = this.#filled(shape);
    const pointer = native.bnb_tensor_reshape(me.batch(this, "this"), ...matrixOf(this.size === 0 ? [1] : full));
    return new Tensor(me.made(pointer), this.dtype, full, this.device);
  }

  /** A shape whose -1 has become what is left over. */
  #filled(shape: unknown): Shape {
    const me = signatures.reshape;
    if (!Array.isArray(shape)) throw me.wrong("shape", shape, "an array of dimensions, such as [2, -1]");
    const given: unknown[] = Array.from({ length: shape.length }, (_, i) => shape[i]);
    const free = given.indexOf(-1);
    const full = free < 0 ? me.shape(given) : this.#fitted(given, free);
    if (sizeOf(full) === this.size) return full;
    throw me.fail(`shape is ${format(full)}, which does not have the ${this.size} elements of ${format(this.#shape)}.`);
  }

  #fitted(given: readonly unknown[], free: number): Shape {
    const me = signatures.reshape;
    const known = me.shape(given.with(free, 1));
    const rest = this.size / sizeOf(known);
    if (Number.isInteger(rest)) return known.with(free, rest);
    throw me.fail(
      `shape is ${show(given)}, but the ${this.size} elements of ${format(this.#shape)} leave no whole number for the -1.`,
    );
  }

  /**
   * The rows from `start` up to, not including, `end`; a row is all that the first dimension counts. Negative numbers
   * count from the end, as for arrays. It shares the memory where it begins at a multiple of 16 bytes, and is a copy
   * elsewhere.
   */
  slice(start = 0, end?: number): Tensor<D> {
    const me = signatures.slice;
    const [rows, ...rest] = this.#shape;
    if (rows === undefined) throw me.fail(`${this} has no dimension to take a part of.`);
    const at = (value: number, argument: string) => {
      const whole = me.whole(value, argument, Number.MIN_SAFE_INTEGER);
      return Math.min(whole < 0 ? Math.max(rows + whole, 0) : whole, rows);
    };
    const from = at(start, "start");
    const count = Math.max((end === undefined ? rows : at(end, "end")) - from, 0);
    const shape = [count, ...rest];
    const pointer = me.batch(this, "this");
    if (sizeOf(shape) === 0) return Tensor.empty(me, this.dtype, shape, this.device);
    using column = rest.length === 0 ? this.reshape([rows, 1]) : undefined; // else a vector is one row of the library's
    const each = sizeOf(rest.slice(0, -1));
    const made = native.bnb_tensor_slice(column?.pointer ?? pointer, size(from * each), size(count * each));
    using part = new Tensor(me.made(made), this.dtype, [count, ...(column ? [1] : rest)], this.device);
    return part.reshape(shape);
  }

  /**
   * A matrix [m, n] as [n, m]: of one row or column the same memory, else a copy. Upstream: `tensor.t()`.
   *
   * @throws BnbError if it has not two dimensions
   */
  transpose(): Tensor<D> {
    const me = signatures.transpose;
    const pointer = me.batch(this, "this");
    const [rows, columns, ...more] = this.#shape;
    if (rows === undefined || columns === undefined || more.length > 0)
      throw me.fail(`this is ${this}, expected two dimensions.`);
    if (rows <= 1 || columns <= 1) return this.reshape([columns, rows]);
    return new Tensor(me.made(native.bnb_transpose(pointer)), this.dtype, [columns, rows], this.device);
  }

  /** A copy on another device. */
  to(device: Device | DeviceName): Tensor<D> {
    const me = signatures.to;
    const target = deviceOf(me, device);
    const pointer = native.bnb_tensor_to(me.batch(this, "this"), me.device(target));
    return new Tensor(me.made(pointer), this.dtype, this.#shape, target);
  }

  /** Resolves to this tensor when its device has done all that was asked of it, without blocking the event loop. */
  async ready(): Promise<this> {
    void this.pointer; // a disposed tensor is never ready
    await this.device.ready();
    return this;
  }

  override toString(): string {
    return `Tensor(${this.dtype} ${format(this.#shape)} on ${this.device})`;
  }

  /** What JSON.stringify shows: what the tensor is. Its values are not among it, nor any address. */
  toJSON(): { dtype: D; shape: Shape; device: string } {
    return { dtype: this.dtype, shape: this.shape, device: this.device.kind };
  }

  /** The values by place; of a large tensor only the rows that are shown are read. */
  #shownValues(): (at: number) => number {
    const read = (part: Tensor) => (Object.hasOwn(floatDtypes, part.dtype) ? part.readFloat32() : part.read());
    const rows = this.#shape[0] ?? 1;
    if (this.size <= elementsMax || rows <= 2 * edgeItems) {
      const values = read(this);
      return (at) => values[at]!;
    }
    using head = this.slice(0, edgeItems);
    using tail = this.slice(-edgeItems);
    const [first, last] = [read(head), read(tail)];
    return (at) => first[at] ?? last[at - this.size + last.length]!;
  }

  /**
   * What console.log shows: what the tensor is, and its values, or the first and last of them. Waits as read()
   * does.
   */
  [inspect](): string {
    if (this.disposed) return `${this} disposed`;
    if (this.size === 0) return `${this} []`;
    const text = formatValues(this.#shownValues(), this.#shape);
    return `${this}${text.includes("\n") ? "\n" : " "}${text}`;
  }
}

const signatures = {
  from: new Signature("Tensor.from", { options: ["dtype", "device"], native: { data: "values" } }),
  zeros: new Signature("Tensor.zeros", { options: ["dtype", "device"] }),
  read: new Signature("Tensor.read"),
  view: new Signature("Tensor.view"),
  write: new Signature("Tensor.write", { native: { data: "values" } }),
  cast: new Signature("Tensor.cast", { native: { x: "the tensor" } }),
  reshape: new Signature("Tensor.reshape"),
  slice: new Signature("Tensor.slice"),
  transpose: new Signature("Tensor.transpose"),
  to: new Signature("Tensor.to"),
};
