// The record of a bench: where and how it was made, the file it is kept in, and its comparison with another.
import { readFileSync, writeFileSync } from "node:fs";
import { BnbError } from "../error.ts";
import type { Limits } from "./limits.ts";

/** What was measured of a case, and what that makes a second. */
export interface BenchResult {
  readonly name: string;
  readonly medianMs: number;
  readonly leastMs: number;
  readonly gigabytesPerSecond: number;
  readonly gigaflops?: number;
  /** Of what the machine can do at most; absent where its limits were not measured. */
  readonly shareOfLimit?: number;
  /** What a run uses, in joules, of the whole processor; absent where it was not asked for, or is not told. */
  readonly joules?: number;
  /** Why there are none, where there is a meter for them. */
  readonly joulesUnknown?: string;
}

/** A whole bench. Two with the same `place` were made in the same circumstances. */
export interface BenchRecord {
  readonly schema: typeof schema;
  /** Processor, system, device, threads: what has to be the same for times to be compared. */
  readonly place: Readonly<Record<string, string | number>>;
  readonly versions: Readonly<Record<string, string>>;
  readonly date: string;
  readonly limits?: Limits;
  readonly results: readonly BenchResult[];
}

export const schema = "bunsandbytes-bench-1";

export function saveRecord(path: string, record: BenchRecord): void {
  writeFileSync(path, `${JSON.stringify(record, null, 2)}\n`);
}

/** @throws BnbError if the file is not a record of this version's form; a system error if it can't be read */
export function loadRecord(path: string): BenchRecord {
  const text = readFileSync(path, "utf8");
  let value: Partial<BenchRecord> | null;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new BnbError(`${path} is not JSON, expected a file that bench --save wrote.`, "invalid", { cause });
  }
  if (value?.schema !== schema || !value.place || !Array.isArray(value.results))
    throw new BnbError(
      `${path} has schema ${JSON.stringify(value?.schema)}, expected "${schema}": save it anew with bench --save.`,
    );
  return value as BenchRecord;
}

/** A case in two records. The ratio is of the least times, which noise moves least: above 1, it is slower now. */
export interface ComparedCase {
  readonly name: string;
  readonly beforeMs?: number;
  readonly nowMs?: number;
  readonly ratio?: number;
  readonly regressed: boolean;
}

export interface BenchComparison {
  /** What of the place differs, such as `threads: 1, now 2`. Where something does, ratios do not tell of the code. */
  readonly differences: readonly string[];
  readonly cases: readonly ComparedCase[];
}

/**
 * Compares two records case by case.
 *
 * @param tolerance a case has regressed if its time is above (1 + tolerance) times what it was
 */
export function compareRecords(before: BenchRecord, now: BenchRecord, tolerance: number): BenchComparison {
  const keys = new Set([...Object.keys(before.place), ...Object.keys(now.place)]);
  const differences = [...keys]
    .filter((key) => before.place[key] !== now.place[key])
    .map((key) => `${key}: ${before.place[key] ?? "unknown"}, now ${now.place[key] ?? "unknown"}`);
  const was = new Map(before.results.map(({ name, leastMs }) => [name, leastMs]));
  const is = new Map(now.results.map(({ name, leastMs }) => [name, leastMs]));
  const cases = [...new Set([...was.keys(), ...is.keys()])].map((name): ComparedCase => {
    const [beforeMs, nowMs] = [was.get(name), is.get(name)];
    if (beforeMs === undefined) return { name, nowMs: nowMs!, regressed: false };
    if (nowMs === undefined) return { name, beforeMs, regressed: false };
    const ratio = nowMs / beforeMs;
    return { name, beforeMs, nowMs, ratio, regressed: ratio > 1 + tolerance };
  });
  return { differences, cases };
}
