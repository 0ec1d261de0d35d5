// `bun run bench:peers`: this library beside others on the same inputs, in turn, so that every round's noise falls
// on all of them; times, errors, ratios, and the targets that hold.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import os from "node:os";
import * as commander from "commander";
import { root, say, stop } from "../scripts/run.ts";
import { table } from "../src/cli/table.ts";
import { normal } from "../test/cases.ts";
import { type Contest, classes, contests, type Entrant, type PeerName, peers } from "./peers/contestants.ts";
import { inputsFolder, modulesFolder } from "./peers/install.ts";
import { PeerProcess, WorkerEnded } from "./peers/process.ts";
import type { Answer, Command } from "./peers/protocol.ts";
import { median, type PeerRecord, type Result, saveRecord, schema } from "./peers/results.ts";
import { otherTable, productTable, targetTable } from "./peers/tables.ts";

interface Flags {
  readonly rounds: number;
  readonly time: number;
  readonly threads: number[];
  readonly filter?: RegExp;
  readonly peers?: string[];
  readonly quick?: boolean;
  readonly save: string;
}

/** The same numbers for every peer: a weight, activations, those with outlier columns, a gradient. */
function writeInputs(): void {
  if (existsSync(`${inputsFolder}/complete`)) return;
  mkdirSync(inputsFolder, { recursive: true });
  say("Making inputs …");
  const x = normal(512 * 4096, 2);
  writeFileSync(`${inputsFolder}/w.f32`, normal(4096 * 4096, 1, 0.02));
  writeFileSync(`${inputsFolder}/x.f32`, x);
  writeFileSync(
    `${inputsFolder}/x_outliers.f32`,
    x.map((value, i) => (i % 512 === 0 ? 10 * value : value)),
  );
  writeFileSync(`${inputsFolder}/g.f32`, normal(4096 * 4096, 3, 0.01));
  writeFileSync(`${inputsFolder}/complete`, "");
}

/** The bytes of the last-level cache, where the system tells; a guess that is large for most processors elsewhere. */
function lastLevelCache(): number {
  const folder = "/sys/devices/system/cpu/cpu0/cache";
  if (!existsSync(folder)) return 64 * 2 ** 20;
  const sizes = readdirSync(folder)
    .filter((name) => name.startsWith("index"))
    .map((name) => Number.parseInt(readFileSync(`${folder}/${name}/size`, "utf8"), 10) * 1024);
  return Math.max(...sizes);
}

/** A worker for each peer and number of threads; those that are absent become sentences. */
async function start(names: readonly PeerName[], threads: readonly number[], skipped: string[]) {
  const workers = new Map<string, PeerProcess>();
  const told = new Map<PeerName, string>();
  const begin = async (name: PeerName, count: number) => {
    const env = {
      BNB_NUM_THREADS: String(count),
      OMP_NUM_THREADS: String(count),
      BNB_PEERS_INPUTS: inputsFolder,
      BNB_PEERS_MODULES: modulesFolder,
      PYTHONDONTWRITEBYTECODE: "1",
    };
    const worker = new PeerProcess(name, peers[name].command(count), env);
    const { description, skip } = await worker.hello();
    if (skip === undefined) {
      told.set(name, description!);
      workers.set(`${name} ${count}`, worker);
    } else {
      skipped.push(`${name} is left out: ${skip}`);
      worker[Symbol.dispose]();
    }
  };
  const installed = names.filter((name) => {
    const reason = peers[name].install();
    if (reason !== undefined) skipped.push(`${name} is left out, since it could not be installed: ${reason}`);
    return reason === undefined;
  });
  await Promise.all(installed.flatMap((name) => threads.map((count) => begin(name, count))));
  const descriptions = Object.fromEntries(
    names.filter((name) => told.has(name)).map((name) => [name, told.get(name)!]),
  );
  return { workers, descriptions };
}

/** An entrant with so many threads, ready to run a contest. */
interface Ready {
  readonly worker: PeerProcess;
  readonly key: string;
  readonly entrant: Entrant;
  readonly threads: number;
  readonly error: number;
  readonly rounds: number[];
}

/** Asks a worker; one that has ended is dropped, with a sentence, and only this library's own must not. */
async function ask(workers: Map<string, PeerProcess>, worker: PeerProcess, command: Command): Promise<Answer> {
  try {
    return await worker.ask(command);
  } catch (error) {
    if (!(error instanceof WorkerEnded) || worker.name === "bunsandbytes") throw error;
    for (const [key, each] of workers) if (each === worker) workers.delete(key);
    worker[Symbol.dispose]();
    return { skip: error.message };
  }
}

async function prepare(
  contest: Contest,
  workers: Map<string, PeerProcess>,
  threads: readonly number[],
  skipped: string[],
): Promise<Ready[]> {
  const ready: Ready[] = [];
  for (const entrant of contest.entrants)
    for (const count of threads) {
      const worker = workers.get(`${entrant.peer} ${count}`);
      if (!worker) continue;
      const key = `${contest.name} ${entrant.variant}`;
      const prepared = { do: "prepare", key, variant: entrant.variant, case: contest.case } as const;
      const { error, skip } = await ask(workers, worker, prepared);
      if (skip === undefined) ready.push({ worker, key, entrant, threads: count, error: error!, rounds: [] });
      else skipped.push(`${contest.name}: ${entrant.peer} ${entrant.variant} is left out: ${skip}`);
    }
  return ready;
}

async function run(
  contest: Contest,
  workers: Map<string, PeerProcess>,
  prepared: readonly Ready[],
  flags: Flags,
  skipped: string[],
): Promise<Result[]> {
  let ready = prepared;
  for (let round = 0; round < flags.rounds; round++)
    for (const one of round % 2 ? ready.toReversed() : ready) {
      const command = { do: "measure", key: one.key, milliseconds: flags.time } as const;
      const { samples, skip } = await ask(workers, one.worker, command);
      if (samples) one.rounds.push(Number((median(samples) / contest.case.copies).toPrecision(4)));
      else {
        skipped.push(`${contest.name}: ${one.entrant.peer} is left out: ${skip}`);
        ready = ready.filter(({ worker }) => worker !== one.worker);
      }
    }
  for (const { worker, key } of ready) await ask(workers, worker, { do: "release", key });
  return ready.map(({ entrant, threads, error, rounds }) => {
    const wrong = !(error <= (contest.errorMost ?? classes[entrant.class].errorMost));
    return { contest: contest.name, threads, entrant, rounds, error, wrong };
  });
}

function print(record: PeerRecord): void {
  for (const count of new Set(record.results.map(({ threads }) => threads))) {
    console.log(
      `\nProducts with ${count} ${count === 1 ? "thread" : "threads"}, ms (and how many times ours of the class):`,
    );
    console.log(table(productTable(record, count)));
  }
  const [others, held] = [otherTable(record), targetTable(record)];
  if (others.length > 1) console.log(`\nThe rest on [4096, 4096], ms (and how many times ours):\n${table(others)}`);
  if (held.length > 1) console.log(`\n${table(held)}`);
  for (const sentence of new Set(record.skipped)) console.log(sentence);
}

async function compare(given: Flags): Promise<void> {
  const flags = given.quick ? { ...given, rounds: 2, time: 40 } : given;
  const wanted = (Object.keys(peers) as PeerName[]).filter(
    (name) => name === "bunsandbytes" || (flags.peers?.includes(name) ?? true),
  );
  const load = os.loadavg()[0]!;
  const cache = lastLevelCache();
  const chosen = contests(cache).filter(({ name }) => flags.filter?.test(name) ?? true);
  if (!chosen.length)
    stop(
      `--filter ${flags.filter!.source} matches none of: ${contests(cache)
        .map(({ name }) => name)
        .join("; ")}.`,
    );
  writeInputs();
  const skipped: string[] = [];
  const { workers, descriptions } = await start(wanted, flags.threads, skipped);
  for (const description of Object.values(descriptions)) console.log(description);

  const results: Result[] = [];
  for (const contest of chosen) {
    const began = performance.now();
    const ready = await prepare(contest, workers, flags.threads, skipped);
    results.push(...(await run(contest, workers, ready, flags, skipped)));
    say(`${contest.name}: ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
  for (const worker of workers.values()) worker[Symbol.dispose]();

  const machine = {
    processor: os.cpus()[0]?.model.trim() ?? "unknown",
    processors: os.cpus().length,
    system: `${os.type()} ${process.arch}`,
    "last-level cache, MB": cache / 2 ** 20,
    "load before the run": Number(load.toFixed(2)),
  };
  const record = { schema, machine, date: new Date().toISOString(), descriptions, skipped, results } as const;
  saveRecord(flags.save, record);
  print(record);
  say(`\nKept in ${flags.save}.`);
}

function positive(text: string): number {
  const value = Number(text);
  if (value > 0) return value;
  throw new commander.InvalidArgumentError("Expected a number above 0.");
}

await new commander.Command("bench:peers")
  .description("Compare with other libraries, installed into .peers; BNB_PYTHON names a Python that has them already.")
  .option("--rounds <n>", "how often each is measured, in turn", positive, 5)
  .option("--time <ms>", "how long each is measured in a round", positive, 120)
  .option("--threads <n,n>", "numbers of threads", (text) => text.split(",").map(positive), [1, 2])
  .option("--filter <pattern>", "only the contests whose names match", (text) => new RegExp(text, "i"))
  .option("--peers <name,name>", "only these, beside this library", (text) => text.split(","))
  .option("--quick", "two short rounds: a look, not a measurement")
  .option("--save <file>", "where to keep the result", `${root}/.peers/results.json`)
  .action(compare)
  .parseAsync();
