// The transposition of a matrix's bytes, for the models that store their weights by columns.
import { BnbError } from "../error.ts";

/** Elements a side of the tiles that are moved at once, so that reads and writes stay within a cache. */
const tile = 32;

/** The elements of a matrix [rows, columns] in the order of its transpose, in an array of the same kind. */
export function transposed<T extends Uint16Array | Uint32Array | Float16Array | Float32Array>(
  values: T,
  [rows, columns]: readonly [number, number],
): T {
  if (values.length !== rows * columns)
    throw new BnbError(`values has ${values.length} elements, expected ${rows} × ${columns}.`);
  const to = new (values.constructor as new (length: number) => T)(values.length);
  // As integers: a copy through a float could change the bits of a NaN.
  const Bits = values.BYTES_PER_ELEMENT === 2 ? Uint16Array : Uint32Array;
  const source = new Bits(values.buffer as ArrayBuffer, values.byteOffset, values.length);
  const target = new Bits(to.buffer as ArrayBuffer);
  for (let top = 0; top < rows; top += tile)
    for (let left = 0; left < columns; left += tile)
      for (let row = top; row < Math.min(top + tile, rows); row++)
        for (let column = left; column < Math.min(left + tile, columns); column++)
          target[column * rows + row] = source[row * columns + column]!;
  return to;
}
