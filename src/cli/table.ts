// Owns tables for people: aligned columns, text to the left and numbers to the right.

/**
 * Lines of a table. The first row is the head; a column is aligned right where every cell under its head starts with a
 * digit, a sign or a dash.
 */
export function table(rows: readonly (readonly string[])[]): string {
  const columns = rows[0]!.map((_, column) => rows.map((row) => row[column]!));
  const widths = columns.map((cells) => Math.max(...cells.map((cell) => Bun.stringWidth(cell))));
  const isNumeric = columns.map((cells) => cells.slice(1).every((cell) => /^[-–+−\d.]/.test(cell)));
  const line = (row: readonly string[]) =>
    row
      .map((cell, column) => {
        const space = " ".repeat(widths[column]! - Bun.stringWidth(cell));
        return isNumeric[column] ? space + cell : cell + space;
      })
      .join("  ")
      .trimEnd();
  const rule = widths.map((width) => "─".repeat(width)).join("──");
  return [line(rows[0]!), rule, ...rows.slice(1).map(line)].join("\n");
}
