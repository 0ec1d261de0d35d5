// Element types: their names, sizes, and the typed arrays that hold them in JavaScript.
import type { dtypes, floatDtypes } from "./native.ts";

/** The element types, under torch's names. */
export type DType = keyof typeof dtypes;

/** The element types that operations compute with. */
export type FloatDType = keyof typeof floatDtypes;

/** The typed array for each element type; bfloat16 is held as bit patterns, in a Uint16Array. */
export interface ArrayOf {
  float32: Float32Array;
  float16: Float16Array;
  bfloat16: Uint16Array;
  int8: Int8Array;
  uint8: Uint8Array;
  int32: Int32Array;
}

/** Every typed array that a tensor can be made from. */
export type TensorValues = ArrayOf[DType];

/** The element type of a typed array, where the array alone tells. */
export type DTypeOf<A> = A extends Float32Array
  ? "float32"
  : A extends Float16Array
    ? "float16"
    : A extends Int8Array
      ? "int8"
      : A extends Uint8Array
        ? "uint8"
        : A extends Int32Array
          ? "int32"
          : "bfloat16";

export const arrays: {
  readonly [D in DType]: {
    readonly BYTES_PER_ELEMENT: number;
    readonly name: string;
    new (content: number | ArrayBuffer): ArrayOf[D];
  };
} = {
  float32: Float32Array,
  float16: Float16Array,
  bfloat16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int32: Int32Array,
};

/** Bytes of one element. */
export function dtypeBytes(dtype: DType): number {
  return arrays[dtype].BYTES_PER_ELEMENT;
}

const typedArray = Object.getPrototypeOf(Uint8Array.prototype) as object;
const getterOf = (name: PropertyKey) => Object.getOwnPropertyDescriptor(typedArray, name)!.get!;
const tagGetter = getterOf(Symbol.toStringTag);
const lengthGetter = getterOf("length");
const byteLengthGetter = getterOf("byteLength");

/**
 * The class of a typed array, such as `"Float32Array"`, by %TypedArray%'s own getter; undefined for everything else.
 * Here and below a subclass, a proxy or a property of the array's own has no say: what they claim could be more than
 * there is to read.
 */
export function arrayNameOf(value: unknown): string | undefined {
  return tagGetter.call(value);
}

/** The elements that a typed array has. */
export function arrayLength(array: ArrayBufferView): number {
  return lengthGetter.call(array);
}

/** The bytes that a typed array has. */
export function arrayBytes(array: ArrayBufferView): number {
  return byteLengthGetter.call(array);
}

/** The dtype whose values a typed array holds as they are; undefined for an array that no dtype is held in. */
export function dtypeOfArray(values: unknown): DType | undefined {
  const name = arrayNameOf(values);
  for (const dtype of Object.keys(arrays) as DType[]) if (name === arrays[dtype].name) return dtype;
  return undefined;
}
