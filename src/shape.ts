// Shapes: n-dimensional for the user, rows × columns for the library.
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

/** Whether two shapes are one. */
export function sameShape(a: Shape, b: Shape): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** `[2, 3]`, for messages. */
export function format(shape: Shape): string {
  return `[${shape.join(", ")}]`;
}
