// Owns shapes: n-dimensional for the user, rows × columns for the library.
import { BnbError } from "./error.ts";
import { type NativePointer, size } from "./native.ts";

/** The dimensions of a tensor, outermost first; `[]` is a scalar. */
export type Shape = readonly number[];

/** The number of elements. */
export function sizeOf(shape: Shape): number {
  let size = 1; // a loop, as every call comes by here: reduce() takes several times as long
  for (let i = 0; i < shape.length; i++) size *= shape[i]!;
  return size;
}

/** The library's matrix, as two `size_t` arguments: the last dimension is the columns, all others make the rows. */
export function matrixOf(shape: Shape): [rows: NativePointer, columns: NativePointer] {
  const columns = shape[shape.length - 1] ?? 1;
  return [size(sizeOf(shape) / columns), size(columns)];
}

/** Checks a shape that a caller gave. @throws BnbError naming the dimension at fault */
export function checkShape(shape: Shape, what: string): void {
  for (const dimension of shape)
    if (!Number.isSafeInteger(dimension) || dimension < 1)
      throw new BnbError(
        `${what}: shape is ${format(shape)}, expected whole numbers of at least 1 in every dimension.`,
      );
  if (!Number.isSafeInteger(sizeOf(shape)))
    throw new BnbError(`${what}: shape is ${format(shape)}, which has more elements than can be counted.`);
}

/** `[2, 3]`, for messages. */
export function format(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}
