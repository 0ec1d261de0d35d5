// `bun bench/against.ts FOLDER`: the benchmarks of this clone against those of another, such as the commit that
// a change is based on, in turns on the same machine.
//
// Exit status 1 tells of a case that is slower. Times of one machine differ from run to run, and those of machines that
// others share by more than most changes do. So each side runs several times, its least time counts, and a case is
// slower where that is beyond the tolerance and beyond the slowest that the other side's own rounds were: that is the
// noise.
import { Command } from "commander";
import { root, say, stop } from "../scripts/run.ts";
import type { BenchRecord } from "../src/bench/record.ts";
import { table } from "../src/cli/table.ts";

/** A case of both sides. */
export interface Verdict {
  readonly name: string;
  /** The least time of all rounds here, over that of the other side. */
  readonly ratio: number;
  /** The slowest round of the other side over its fastest. */
  readonly noise: number;
  readonly slower: boolean;
}

/** Cases that both sides have, by the least times of their rounds. */
export function verdicts(base: readonly BenchRecord[], here: readonly BenchRecord[], tolerance: number): Verdict[] {
  const timesOf = (records: readonly BenchRecord[], name: string) =>
    records.flatMap(({ results }) => results.filter((result) => result.name === name).map(({ leastMs }) => leastMs));
  return (here[0]?.results ?? []).flatMap(({ name }) => {
    const [before, now] = [timesOf(base, name), timesOf(here, name)];
    if (before.length === 0) return [];
    const ratio = Math.min(...now) / Math.min(...before);
    const noise = Math.max(...before) / Math.min(...before);
    return [{ name, ratio, noise, slower: ratio > Math.max(1 + tolerance, noise) }];
  });
}

function benchIn(folder: string, { time, filter }: Flags): BenchRecord {
  const command = [process.execPath, "run", "bench", "--json", "--time", String(time)];
  const env = { ...process.env, BNB_DEVICE: process.env.BNB_DEVICE ?? "cpu" };
  const { exitCode, stdout } = Bun.spawnSync([...command, ...(filter ? ["--filter", filter] : [])], {
    cwd: folder,
    env,
    stderr: "inherit",
  });
  if (exitCode !== 0) stop(`The benchmark of ${folder} failed: its message is above.`);
  return JSON.parse(stdout.toString());
}

interface Flags {
  readonly time: number;
  readonly rounds: number;
  readonly tolerance: number;
  readonly filter?: string;
}

function main(folder: string, flags: Flags): void {
  const [base, here]: [BenchRecord[], BenchRecord[]] = [[], []];
  for (let round = 1; round <= flags.rounds; round++) {
    say(`Round ${round} of ${flags.rounds} …`);
    base.push(benchIn(folder, flags));
    here.push(benchIn(root, flags));
  }
  const found = verdicts(base, here, flags.tolerance);
  const rows = found.map(({ name, ratio, noise, slower }) => [
    name,
    ratio.toFixed(2),
    noise.toFixed(2),
    slower ? "slower" : "",
  ]);
  console.log(table([["case", "ratio", "noise", ""], ...rows]));
  const slower = found.filter((one) => one.slower).length;
  console.log(`${slower} of ${found.length} cases are slower than in ${folder}.`);
  if (slower > 0) process.exitCode = 1;
}

if (import.meta.main)
  await new Command("against")
    .argument("<folder>", "another clone of this repository")
    .option("--time <ms>", "how long to time each case at least", Number, 200)
    .option("--rounds <n>", "how often each side runs", Number, 3)
    .option("--tolerance <share>", "the share by which a case may be slower", Number, 0.3)
    .option("--filter <pattern>", "time only the cases whose names match this regular expression")
    .action(main)
    .parseAsync();
