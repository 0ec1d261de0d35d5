// How handles look where they are printed: a line that says what they are and, for tensors, the values as numpy shows
// them.
import { type Shape, sizeOf } from "./shape.ts";

/** What console.log and util.inspect call, in Bun and in Node. */
export const inspect = Symbol.for("nodejs.util.inspect.custom");

/** A tensor of more elements is shown by the first and last of each dimension: as numpy does from 1,000 on. */
export const elementsMax = 100;
export const edgeItems = 3;

/** The indices of a dimension that are shown; -1 stands for those between. */
function shownOf(extent: number, whole: boolean): number[] {
  if (whole || extent <= 2 * edgeItems) return Array.from({ length: extent }, (_, i) => i);
  const ends = Array.from({ length: edgeItems }, (_, i) => i);
  return [...ends, -1, ...ends.map((i) => extent - edgeItems + i)];
}

const numberText = (value: number) => String(Number(value.toPrecision(5)) + 0); // -0 becomes 0

/**
 * Values as nested lists, the innermost dimension on a line: `[[1, 2], [3, 4]]` with each number as wide as the
 * widest.
 */
export function formatValues(valueAt: (at: number) => number, shape: Shape): string {
  if (shape.length === 0) return numberText(valueAt(0));
  const whole = sizeOf(shape) <= elementsMax;

  const listed = (dimension: number, start: number, text: (at: number) => string): string => {
    const step = sizeOf(shape.slice(dimension + 1));
    const inner = shape.length - 1 - dimension;
    const between = inner > 0 ? `,${"\n".repeat(inner)}${" ".repeat(dimension + 1)}` : ", ";
    const items = shownOf(shape[dimension]!, whole).map((i) => {
      if (i < 0) return "…";
      return inner > 0 ? listed(dimension + 1, start + i * step, text) : text(start + i);
    });
    return `[${items.join(between)}]`;
  };

  let width = 0;
  listed(0, 0, (at) => {
    width = Math.max(width, numberText(valueAt(at)).length);
    return "";
  });
  return listed(0, 0, (at) => numberText(valueAt(at)).padStart(width));
}
