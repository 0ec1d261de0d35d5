// The support table of docs/devices.md: prints it for the devices that are here, and writes it with --write.
import { Device, devices } from "../src/index.ts";
import { support } from "../src/support.ts";
import { root } from "./run.ts";

export const path = `${root}/docs/devices.md`;
const block = /(<!-- support -->\n)([\s\S]*?)(<!-- \/support -->)/;
const columns = ["cpu", "metal", "cuda"] as const;

/** The table of the page, as `operation | format` → column → cell. */
export function readTable(page: string): Map<string, Record<string, string>> {
  const lines =
    block
      .exec(page)?.[2]
      ?.split("\n")
      .filter((line) => line.startsWith("|")) ?? [];
  const cells = lines.map((line) =>
    line
      .split("|")
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
  const [head = [], , ...rows] = cells;
  return new Map(
    rows.map((row) => [
      `${row[0]} | ${row[1]}`,
      Object.fromEntries(head.map((name, i) => [name.toLowerCase(), row[i]!])),
    ]),
  );
}

/** The table's text, with the columns of absent devices kept as they were. */
function writeTable(page: string): string {
  const before = readTable(page);
  const present = new Map(
    devices().flatMap((report) =>
      report.available ? [[report.kind as string, support(Device.open(report.kind))] as const] : [],
    ),
  );
  const rows = present.get("cpu")!.map(({ operation, format }, i) => {
    const cells = columns.map(
      (kind) => present.get(kind)?.[i]?.support ?? before.get(`${operation} | ${format}`)?.[kind] ?? "?",
    );
    return [operation, format, ...cells];
  });
  const table = [["operation", "format", "CPU", "Metal", "CUDA"], ...rows];
  const widths = table[0]!.map((_, i) => Math.max(...table.map((row) => row[i]!.length)));
  const [head, ...lines] = table.map((row) => `| ${row.map((cell, i) => cell.padEnd(widths[i]!)).join(" | ")} |`);
  return [head, `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`, ...lines, ""].join("\n");
}

if (import.meta.main) {
  const page = await Bun.file(path).text();
  const table = writeTable(page);
  if (process.argv.includes("--write"))
    await Bun.write(
      path,
      page.replace(block, (_, open, __, close) => open + table + close),
    );
  console.log(table);
}
