// The figures of docs/performance.md and the plot beside it: both are written from bench/results, where those of GPUs
// are as `bun run bench:cuda` and `bench:shapes` printed them.
import { root, say } from "../scripts/run.ts";
import { layerChart } from "./chart.ts";
import { loadRecord, type PeerRecord, warning } from "./peers/results.ts";
import { otherTable, productTable, type Table, targetTable } from "./peers/tables.ts";
import { plot } from "./plot.ts";
import { limitTable, type ScalingRecord, scalingTables } from "./scaling.ts";

const results = `${root}/bench/results`;
export const page = `${root}/docs/performance.md`;

/** A table in Markdown, numbers to the right, padded as the formatter of the repository does it. */
function markdown(rows: Table): string {
  const columns = rows[0]!.map((_, column) => {
    const cells = rows.map((row) => row[column]!);
    const width = Math.max(3, ...cells.map((cell) => Bun.stringWidth(cell)));
    return { width, isNumeric: cells.slice(1).every((cell) => /^[-–\d<]/.test(cell)) };
  });
  const line = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
  const pad = (cell: string, column: number) => {
    const { width, isNumeric } = columns[column]!;
    const space = " ".repeat(width - Bun.stringWidth(cell));
    return isNumeric ? space + cell : cell + space;
  };
  const rule = columns.map(({ width, isNumeric }) => (isNumeric ? `${"-".repeat(width - 1)}:` : "-".repeat(width)));
  const [head, ...body] = rows.map((row) => line(row.map(pad)));
  return [head, line(rule), ...body].join("\n");
}

function machine(record: PeerRecord | ScalingRecord): string {
  const { processor, processors, system } = record.machine;
  const busy = warning(record);
  return `${processor}, ${processors} processors, ${system}, ${record.date.slice(0, 10)}.${busy ? `\n\n**${busy}**` : ""}`;
}

/** The table that bench:cuda printed, which is Markdown. */
const cudaTable = (printed: string): Table =>
  printed
    .split("\n")
    .filter((line) => line.startsWith("| ") && !line.startsWith("| :"))
    .map((line) => line.slice(2, -2).split(" | "));

/** A row a shape of what bench:shapes printed, a line a figure. */
function shapesTable(printed: string): Table {
  const figures = [...printed.matchAll(/^ *(\w+) {2}(?:prompt of|tokens behind) (\d+) +([\d.]+) (ms|\/s)$/gm)];
  const shapes = new Map<string, string[]>();
  const head = new Set<string>();
  for (const [, shape, count, figure, unit] of figures) {
    head.add(unit === "ms" ? `prompt of ${count}, ms` : `tokens/s behind ${count}`);
    shapes.set(shape!, [...(shapes.get(shape!) ?? []), figure!]);
  }
  return [["shape", ...head], ...[...shapes].map(([shape, figures]) => [shape, ...figures])];
}

/** Who was timed beside us, on what, and how long all took. */
function besidePeers(record: PeerRecord): string {
  const counts = [...new Set(record.results.map(({ threads }) => threads))];
  const products = counts.flatMap((count) => [
    `With ${count} ${count === 1 ? "thread" : "threads"}:`,
    markdown(productTable(record, count)),
  ]);
  const skipped = [...new Set(record.skipped)].map((sentence) => `- ${sentence}`).join("\n");
  return [
    machine(record),
    Object.values(record.descriptions)
      .map((description) => `- ${description}`)
      .join("\n"),
    ...products,
    markdown(otherTable(record)),
    ...(skipped ? [`Left out:\n\n${skipped}`] : []),
  ].join("\n\n");
}

/** What stands between each pair of marks. */
async function blocks(peers: PeerRecord, scaling: ScalingRecord): Promise<Record<string, string>> {
  return {
    limits: [machine(scaling), markdown(limitTable(scaling))].join("\n\n"),
    scaling: scalingTables(scaling)
      .flatMap(({ title, table }) => [`**${title}**`, markdown(table)])
      .join("\n\n"),
    peers: besidePeers(peers),
    avx512: besidePeers(loadRecord(`${results}/peers_avx512.json`)),
    targets: markdown(targetTable(peers)),
    cuda: markdown(cudaTable(await Bun.file(`${results}/cuda.txt`).text())),
    shapes: markdown(shapesTable(await Bun.file(`${results}/shapes.txt`).text())),
  };
}

/** The page with its figures as they are in bench/results. */
export async function documented(text: string): Promise<string> {
  const peers = loadRecord(`${results}/peers.json`);
  const scaling: ScalingRecord = await Bun.file(`${results}/scaling.json`).json();
  let page = text;
  for (const [name, block] of Object.entries(await blocks(peers, scaling))) {
    const between = new RegExp(`(<!-- ${name} -->\n)[\\s\\S]*?(<!-- /${name} -->)`);
    if (!between.test(page)) throw new Error(`docs/performance.md has no <!-- ${name} --> … <!-- /${name} -->`);
    page = page.replace(between, (_, open, close) => `${open}\n${block}\n\n${close}`);
  }
  return page;
}

if (import.meta.main) {
  await Bun.write(page, await documented(await Bun.file(page).text()));
  await Bun.write(`${root}/docs/layer.svg`, layerChart(loadRecord(`${results}/peers.json`)));
  await Bun.write(`${root}/docs/peers.svg`, await plot(loadRecord(`${results}/peers.json`)));
  say("Wrote docs/performance.md, docs/layer.svg and docs/peers.svg.");
}
