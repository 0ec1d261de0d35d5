// What the comparison with peers found: times by contest, entrant and threads, ratios taken round by round, and
// the file that they are kept in.
import { readFileSync, writeFileSync } from "node:fs";
import type { Class, Entrant } from "./contestants.ts";

/** What an entrant took in a contest. */
export interface Result {
  readonly contest: string;
  readonly threads: number;
  readonly entrant: Entrant;
  /**
   * Milliseconds for one weight: the median of each round. Those with the same index were measured one after
   * another.
   */
  readonly rounds: readonly number[];
  /** Of what was computed; see the workers. */
  readonly error: number;
  /** Whether the error is above what the class allows: then the time is of something else. */
  readonly wrong: boolean;
}

export interface PeerRecord {
  readonly schema: typeof schema;
  readonly machine: Readonly<Record<string, string | number>>;
  readonly date: string;
  /** What each peer says that it is. */
  readonly descriptions: Readonly<Record<string, string>>;
  /** Sentences about what was left out. */
  readonly skipped: readonly string[];
  readonly results: readonly Result[];
}

export const schema = "bunsandbytes-peers-1";

/** Writes a record, a line for each result. */
export function saveRecord(path: string, { results, ...head }: PeerRecord): void {
  const lines = results.map((result) => JSON.stringify(result)).join(",\n");
  writeFileSync(path, `${JSON.stringify(head, null, 1).slice(0, -2)},\n "results": [\n${lines}\n]}\n`);
}

export function loadRecord(path: string): PeerRecord {
  const record: PeerRecord = JSON.parse(readFileSync(path, "utf8"));
  if (record.schema !== schema)
    throw new Error(`${path} has schema ${record.schema}, expected ${schema}: run bench:peers.`);
  return record;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** The median over rounds of how many times as long the fastest of `others` took. */
export function ratio(others: readonly Result[], mine: Result): number {
  return median(mine.rounds.map((ms, round) => Math.min(...others.map(({ rounds }) => rounds[round]!)) / ms));
}

/** Picks results by any of their fields. */
export function select(
  { results }: PeerRecord,
  wanted: { contest?: string; threads?: number; peer?: string; variant?: string; class?: Class },
): Result[] {
  return results.filter(
    ({ contest, threads, entrant }) =>
      (wanted.contest ?? contest) === contest &&
      (wanted.threads ?? threads) === threads &&
      (wanted.peer ?? entrant.peer) === entrant.peer &&
      (wanted.variant ?? entrant.variant) === entrant.variant &&
      (wanted.class ?? entrant.class) === entrant.class,
  );
}

/** A machine with more waiting processes than this is too busy to measure anything on. */
const loadMost = 0.5;

/** What to say of figures that were made on a busy machine; nothing where it was not. */
export function warning({ machine }: { readonly machine: PeerRecord["machine"] }): string | undefined {
  const load = Number(machine["load before the run"]);
  return load > loadMost ? `The machine was busy (load ${load}): these figures are no measure of speed.` : undefined;
}

/** This library's result in the same contest, class and threads. */
export function oursBeside(record: PeerRecord, { contest, threads, entrant }: Result): Result | undefined {
  return select(record, { contest, threads, peer: "bunsandbytes", class: entrant.class })[0];
}
