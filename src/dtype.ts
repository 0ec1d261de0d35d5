// Owns element types: their names, sizes, and the typed arrays that hold them in JavaScript.
import { BnbError } from "./error.ts";
import { dtypes } from "./native.ts";

/** An element type, by torch's name. */
export type DType = keyof typeof dtypes;

/** The element types that operations compute with. */
export type FloatDType = "float32" | "float16" | "bfloat16";

/** The typed array that holds each element type; bfloat16 is held as its bit patterns. */
export interface ArrayOf {
  float32: Float32Array;
  float16: Float16Array;
  bfloat16: Uint16Array;
  int8: Int8Array;
  uint8: Uint8Array;
  int32: Int32Array;
}

/** Any typed array that a tensor can be made of. */
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
  readonly [D in DType]: { readonly BYTES_PER_ELEMENT: number; new (length: number): ArrayOf[D] };
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

/** The number that stands for a dtype in the C ABI. @throws BnbError for a name that is none */
export function dtypeCode(dtype: DType, what: string): number {
  const code = Object.hasOwn(dtypes, dtype) ? dtypes[dtype] : undefined;
  if (code === undefined)
    throw new BnbError(
      `${what}: dtype is ${JSON.stringify(dtype)}, expected one of ${Object.keys(dtypes).join(", ")}.`,
    );
  return code;
}

/** The dtype whose values a typed array holds as they are; undefined for an array that no dtype is held in. */
export function dtypeOfArray(values: unknown): DType | undefined {
  for (const dtype of Object.keys(arrays) as DType[]) if (values instanceof arrays[dtype]) return dtype;
  return undefined;
}
