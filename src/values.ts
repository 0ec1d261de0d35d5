// What tensors are made of in JavaScript: typed arrays as they are, and nested arrays of numbers, looked at one by one.
import { arrayLength, arrayNameOf, arrays, type DType, dtypeOfArray, type TensorValues } from "./dtype.ts";
import type { Shape } from "./shape.ts";
import type { Signature } from "./signature.ts";

/** Numbers in arrays in arrays, as deep as a tensor has dimensions: all arrays of one depth are as long. */
export type NestedNumbers = readonly (number | NestedNumbers)[];

/** Deeper arrays are taken for arrays that hold themselves. */
const depthMax = 64;

/** A typed array with the dtype that it is held in and the shape that it has by itself. */
export interface Values {
  readonly array: TensorValues;
  readonly dtype: DType;
  readonly shape: Shape;
}

const arrayNames = Object.values(arrays)
  .map((array) => array.name)
  .join(", ");

/**
 * The values that a caller gave for a tensor.
 *
 * @param dtype what numbers are to be held in, where they stand in plain arrays: float32 unless it is an integer type
 * @throws BnbError if they are no typed array of a dtype and no numbers, or some do not fit the dtype
 */
export function valuesOf(me: Signature, values: unknown, argument: string, dtype: DType | undefined): Values {
  const held = dtypeOfArray(values);
  if (held) {
    const array = values as TensorValues;
    return { array, dtype: held, shape: [arrayLength(array)] };
  }
  if (!Array.isArray(values)) throw me.wrong(argument, values, `an array of numbers or one of ${arrayNames}`);
  const numbers: number[] = [];
  const shape: number[] = [];
  flatten(me, values, argument, 0, shape, numbers);
  const to = dtype === "int8" || dtype === "uint8" || dtype === "int32" ? dtype : "float32";
  const array = new arrays[to](numbers.length);
  for (let i = 0; i < numbers.length; i++) array[i] = numbers[i]!;
  if (to !== "float32") checkWhole(me, numbers, array, argument, to);
  return { array, dtype: to, shape };
}

function flatten(me: Signature, from: unknown[], path: string, depth: number, shape: number[], to: number[]): void {
  const { length } = from;
  if (depth === depthMax) throw me.fail(`${path} is nested more than ${depthMax} deep.`);
  shape[depth] ??= length;
  if (length !== shape[depth])
    throw me.fail(`${path} has ${length} elements, expected ${shape[depth]}, as its neighbours have.`);
  for (let i = 0; i < length; i++) {
    const value = from[i];
    if (typeof value === "number" && depth === Math.max(shape.length, 1) - 1) to.push(value);
    else if (Array.isArray(value) && (depth + 1 < shape.length || i === 0))
      flatten(me, value, `${path}[${i}]`, depth + 1, shape, to);
    else throw me.wrong(`${path}[${i}]`, value, depth + 1 < shape.length ? "an array" : "a number");
  }
}

function checkWhole(me: Signature, numbers: number[], array: TensorValues, argument: string, dtype: DType): void {
  const at = numbers.findIndex((number, i) => number !== array[i]);
  if (at >= 0) throw me.fail(`${argument} has ${numbers[at]} at ${at}, expected whole numbers within ${dtype}.`);
}

/** Numbers as 32-bit floats: of a plain array, or of any typed array of numbers. */
export function floatsOf(me: Signature, values: unknown, argument: string): Float32Array {
  const name = arrayNameOf(values);
  if (name === "Float32Array") return values as Float32Array;
  if (name && !name.startsWith("Big")) return new Float32Array(values as Int8Array);
  if (!Array.isArray(values)) throw me.wrong(argument, values, "an array of numbers");
  const { length } = values;
  const floats = new Float32Array(length);
  for (let i = 0; i < length; i++) {
    const value: unknown = values[i];
    if (typeof value !== "number") throw me.wrong(`${argument}[${i}]`, value, "a number");
    floats[i] = value;
  }
  return floats;
}
