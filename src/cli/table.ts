// Tables for people: aligned columns, text to the left and numbers to the right.
import { printable } from "../printable.ts";
import { Printable } from "./print.ts";

/**
 * Lines of a table, escaped. The first row is the head; a column is aligned right where every cell under its head
 * starts with a digit, a sign or a dash.
 */
export function table(rows: readonly (readonly (string | Printable)[])[]): string {
  const cells = rows.map((row) => row.map((cell) => (cell instanceof Printable ? cell.text : printable(cell))));
  const columns = cells[0]!.map((_, column) => cells.map((row) => row[column]!));
  const widths = columns.map((column) => column.reduce((widest, cell) => Math.max(widest, Bun.stringWidth(cell)), 0));
  const isNumeric = columns.map((column) => column.slice(1).every((cell) => /^[-–+−\d.]/.test(cell)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => {
        const space = " ".repeat(widths[column]! - Bun.stringWidth(cell));
        return isNumeric[column] ? space + cell : cell + space;
      })
      .join("  ")
      .trimEnd();
  const rule = widths.map((width) => "─".repeat(width)).join("──");
  return [line(cells[0]!), rule, ...cells.slice(1).map(line)].join("\n");
}
