// How the comparison with peers is shown: tables of cells, for the terminal and for Markdown alike.
import { classes } from "./contestants.ts";
import { median, oursBeside, type PeerRecord, type Result, ratio, select } from "./results.ts";
import { targets } from "./targets.ts";

export type Table = readonly (readonly string[])[];

export const digits = (ms: number) =>
  ms < 0.01 ? ms.toFixed(4) : ms < 10 ? ms.toFixed(2) : ms.toFixed(ms < 100 ? 1 : 0);

/** A time, and how many times ours it is. */
function cell(record: PeerRecord, result: Result | undefined): string {
  if (!result) return "–";
  const time = digits(median(result.rounds));
  const beside = oursBeside(record, result);
  if (result.wrong) return `${time} WRONG`;
  if (!beside || beside === result) return time;
  const times = ratio([result], beside);
  return `${time} (${times.toFixed(times < 10 ? 2 : 0)}×)`;
}

const isProduct = ({ contest }: Result) => contest.startsWith("M = ");

/** Milliseconds of the products: a row for each entrant, by class, a column for each contest. */
export function productTable(record: PeerRecord, threads: number): Table {
  const results = select(record, { threads }).filter(isProduct);
  const columns = [...new Set(results.map(({ contest }) => contest))];
  const name = ({ entrant }: Result) => `${entrant.peer} ${entrant.variant}`;
  const rows = Object.keys(classes).flatMap((kind) => {
    const inClass = results.filter(({ entrant }) => entrant.class === kind);
    return [...new Set(inClass.map(name))].map((entrant) => {
      const mine = inClass.filter((result) => name(result) === entrant);
      const error = Math.max(...mine.map((result) => result.error));
      const cells = columns.map((contest) =>
        cell(
          record,
          mine.find((result) => result.contest === contest),
        ),
      );
      return [kind, entrant, mine[0]!.entrant.format, ...cells, error.toExponential(0)];
    });
  });
  return [["class", "", "weight", ...columns, "error"], ...rows];
}

/** Milliseconds of everything else: a row for each contest and entrant, a column for each number of threads. */
export function otherTable(record: PeerRecord): Table {
  const results = record.results.filter((result) => !isProduct(result));
  const threads = [...new Set(results.map((result) => result.threads))];
  const key = ({ contest, entrant }: Result) => `${contest}\n${entrant.peer}\n${entrant.format}`;
  const rows = [...new Set(results.map(key))].map((row) => {
    const mine = results.filter((result) => key(result) === row);
    const cells = threads.map((count) =>
      cell(
        record,
        mine.find((result) => result.threads === count),
      ),
    );
    return [...row.split("\n"), ...cells, Math.max(...mine.map(({ error }) => error)).toExponential(0)];
  });
  const heads = threads.map((count) => (count === 1 ? "1 thread" : `${count} threads`));
  return [["", "", "dtype", ...heads, "error"], ...rows];
}

export function targetTable(record: PeerRecord): Table {
  const rows = targets(record).map(({ text, wanted, found, unit, holds }) => {
    const bound = unit === "×" ? `${wanted}×` : `< ${wanted} ${unit}`;
    return [text, bound, `${found.toFixed(2)} ${unit}`.replace(" ×", "×"), holds ? "yes" : "NO"];
  });
  return [["target", "wanted", "found", "holds"], ...rows];
}
