// Owns the figures of docs/performance.md and the plot beside it: both are written from bench/results.
import { root, say } from "../scripts/run.ts";
import { loadRecord, type PeerRecord } from "./peers/results.ts";
import { otherTable, productTable, type Table, targetTable } from "./peers/tables.ts";
import { plot } from "./plot.ts";
import { limitTable, type ScalingRecord, scalingTables } from "./scaling.ts";

const results = `${root}/bench/results`;
export const page = `${root}/docs/performance.md`;

/** A table in Markdown, numbers to the right. */
function markdown(rows: Table): string {
  const [head, ...body] = rows.map((cells) => `| ${cells.join(" | ")} |`);
  const isNumeric = rows[0]!.map((_, column) => rows.slice(1).every((row) => /^[-–\d<]/.test(row[column]!)));
  const rule = `|${isNumeric.map((numeric) => (numeric ? "--:" : "---")).join("|")}|`;
  return [head, rule, ...body].join("\n");
}

function machine({ machine: facts, date }: PeerRecord | ScalingRecord): string {
  const { processor, processors, system, "load before the run": load } = facts;
  return `Measured on ${processor}, ${processors} processors, ${system}, on ${date.slice(0, 10)}; the machine's load before: ${load}.`;
}

/** What stands between each pair of marks. */
function blocks(peers: PeerRecord, scaling: ScalingRecord): Record<string, string> {
  const counts = [...new Set(peers.results.map(({ threads }) => threads))];
  const products = counts.flatMap((count) => [
    `With ${count} ${count === 1 ? "thread" : "threads"}:`,
    markdown(productTable(peers, count)),
  ]);
  const skipped = [...new Set(peers.skipped)].map((sentence) => `- ${sentence}`).join("\n");
  return {
    limits: [machine(scaling), markdown(limitTable(scaling))].join("\n\n"),
    scaling: scalingTables(scaling)
      .flatMap(({ title, table }) => [`**${title}**`, markdown(table)])
      .join("\n\n"),
    peers: [
      machine(peers),
      Object.values(peers.descriptions)
        .map((description) => `- ${description}`)
        .join("\n"),
      ...products,
      markdown(otherTable(peers)),
      ...(skipped ? [`Left out:\n\n${skipped}`] : []),
    ].join("\n\n"),
    targets: markdown(targetTable(peers)),
  };
}

/** The page with its figures as they are in bench/results. */
export async function documented(text: string): Promise<string> {
  const peers = loadRecord(`${results}/peers.json`);
  const scaling: ScalingRecord = await Bun.file(`${results}/scaling.json`).json();
  let page = text;
  for (const [name, block] of Object.entries(blocks(peers, scaling))) {
    const between = new RegExp(`(<!-- ${name} -->\n)[\\s\\S]*?(<!-- /${name} -->)`);
    if (!between.test(page)) throw new Error(`docs/performance.md has no <!-- ${name} --> … <!-- /${name} -->`);
    page = page.replace(between, (_, open, close) => `${open}\n${block}\n\n${close}`);
  }
  return page;
}

if (import.meta.main) {
  await Bun.write(page, await documented(await Bun.file(page).text()));
  await Bun.write(`${root}/docs/peers.svg`, await plot(loadRecord(`${results}/peers.json`)));
  say("Wrote docs/performance.md and docs/peers.svg.");
}
