// `bun run test:faults`: the long form of the fault suite, with every sanitizer that this machine has. It prints
// what it tried, and what it could not; each run can be had again by its seed.
import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { Command } from "commander";
import { type Build, buildForms, findClang } from "./build.ts";
import { guided } from "./guided.ts";
import { canMount, interruptEverywhere, quantizeOnto, twoWriters } from "./interrupted.ts";
import { memory } from "./memory.ts";
import { type PowerReport, powerCuts } from "./power.ts";
import {
  ffi,
  files,
  forms,
  harness,
  liars,
  lifetime,
  type Mode,
  renamed,
  scratch,
  simulatedGpu,
  type Tally,
} from "./runs.ts";
import { attacks, attackTerminal, type TerminalReport } from "./terminal.ts";

const options = new Command("test:faults")
  .description("Feeds the library bad arguments, bad files, and a machine that runs out of memory, disk and luck.")
  .option("--seconds <n>", "how long each kind of fault is tried", Number, 60)
  .option("--seed <n>", "where the random numbers begin", Number, Date.now() % 1_000_000)
  .option("--only <names>", "kinds to try, by commas", (text: string) => text.split(","))
  .option("--list", "print the kinds as JSON, and try none")
  .parse()
  .opts<{ seconds: number; seed: number; only?: string[]; list?: boolean }>();
const { seconds, seed } = options;

/** Thrown by what can't be tried here: the sentence says why. */
class Skipped extends Error {}

function needs<T>(found: T | null | undefined | false, sentence: string): T {
  if (!found) throw new Skipped(sentence);
  return found;
}

/** Runs the harness again and again, each time from another seed, until the time is up. */
async function repeat(
  flavour: Build,
  mode: Mode,
  count: number,
  env: Record<string, string> = {},
  prefix: string[] = [],
) {
  const until = performance.now() + 1000 * seconds;
  const sum = { runs: 0, calls: 0, succeeded: 0, refused: 0, "out of memory": 0, lost: 0 };
  do {
    const tallies: Tally[] = Object.values(await harness(flavour, mode, seed + sum.runs, count, env, prefix));
    sum.runs++;
    for (const { calls, ok, invalid, unsupported, outOfMemory, lost } of tallies) {
      sum.calls += calls;
      sum.succeeded += ok;
      sum.refused += invalid + unsupported;
      sum["out of memory"] += outOfMemory;
      sum.lost += lost;
    }
  } while (performance.now() < until);
  return sum;
}

const needsClang = () => needs(findClang(), "there is no clang here, and zig has no AddressSanitizer");

function withAddresses(): Build {
  needsClang();
  return "address";
}

async function addressForms() {
  const program = await buildForms(needsClang());
  const isas =
    process.arch === "x64"
      ? ["base", "avx2", "avx512", "avx512vnni", "wide", "narrow", "emulated", "checked"]
      : ["neon", "dotprod", "i8mm", "wide", "checked"];
  const done = await Promise.all(isas.map(async (isa) => [isa, await forms(program, isa)] as const));
  return Object.fromEntries(done.map(([isa, ran]) => [isa, ran ? "clean" : "this processor can't"]));
}

async function fullDisks() {
  needs(canMount(), "no small disk can be made here: `unshare -Urm mount -t tmpfs` is refused");
  let failed = 0;
  let kilobytes = 4;
  for (; ; kilobytes += 8) {
    const { error, left } = await quantizeOnto(scratch, kilobytes);
    if (error === undefined) break;
    if (!/ENOSPC|are free/.test(error) || left.length > 0)
      throw new Error(`${kilobytes} KB: ${error}; it left ${left}`);
    failed++;
  }
  return { failed, "the first that sufficed, KB": kilobytes };
}

const folder = (name: string) => mkdtempSync(join(scratch, `${name}-`));

/** Cuts the power again and again, each time with other choices of what was not durable. */
async function powerCut() {
  const until = performance.now() + 1000 * seconds;
  const sum: PowerReport = { cuts: 0, disks: 0, states: {} };
  for (let run = 0; run === 0 || performance.now() < until; run++) {
    const { cuts, disks, states } = await powerCuts(folder("power"), seed + run, 8);
    sum.cuts += cuts;
    sum.disks += disks;
    for (const [state, count] of Object.entries(states)) sum.states[state] = (sum.states[state] ?? 0) + count;
  }
  return sum;
}

async function terminal() {
  const report: TerminalReport = { runs: 0, characters: 0 };
  for (const attack of [...attacks, attacks.join("")]) await attackTerminal(folder("terminal"), attack, report);
  return report;
}

const kinds: Record<string, () => Promise<unknown>> = {
  entries: () => repeat("undefined", "fuzz", 50_000),
  plain: () => repeat("undefined", "fuzz", 50_000, { BNB_ISA: "plain" }),
  allocations: () => repeat("undefined", "allocations", 2),
  threads: () => repeat("thread", "threads", 20_000),
  races: () => repeat("undefined", "races", 20_000),
  "races-plain": () => repeat("undefined", "races", 20_000, { BNB_ISA: "plain" }),
  fork: () => repeat("undefined", "forks", 300),
  address: () => repeat(withAddresses(), "fuzz", 20_000),
  "address-allocations": () => repeat(withAddresses(), "allocations", 1),
  guided: async () => {
    needsClang();
    const { holes: _, ...report } = await guided(seconds, seed);
    return report;
  },
  "address-forms": addressForms,
  valgrind: async () => {
    const valgrind = needs(Bun.which("valgrind"), "valgrind is not installed");
    return await repeat("plain", "fuzz", 2000, { BNB_NUM_THREADS: "1" }, [valgrind, "-q", "--error-exitcode=9"]);
  },
  metal: async () => {
    needs(process.platform === "linux" && process.arch === "x64", "the simulated GPU runs on Linux x64 only");
    return await repeat("undefined", "fuzz", 600, simulatedGpu());
  },
  "races-metal": async () => {
    needs(process.platform === "linux" && process.arch === "x64", "the simulated GPU runs on Linux x64 only");
    return await repeat("undefined", "races", 600, simulatedGpu());
  },
  ffi: () => ffi(seed, seconds),
  liars: () => liars(seed, seconds),
  files: () => files(seed, seconds),
  interrupted: () => interruptEverywhere(folder("interrupted")),
  "two-writers": () => twoWriters(folder("two-writers")),
  "power-cut": powerCut,
  renamed: () => renamed(seconds),
  terminal,
  memory: () => memory(folder("memory")),
  "full-disks": fullDisks,
  dispose: () => lifetime("dispose", 100_000 * seconds),
  collect: () => lifetime("collect", 50 * seconds),
  workers: () => lifetime("workers", 10 * seconds),
  terminate: () => lifetime("terminate", 10 * seconds),
};

if (options.list) {
  console.log(JSON.stringify(Object.keys(kinds)));
  process.exit();
}
console.log(`Seed ${seed}, ${seconds} s a kind. Again: bun run test:faults --seed ${seed} --seconds ${seconds}`);
let failures = 0;
for (const [name, run] of Object.entries(kinds)) {
  if (options.only && !options.only.includes(name)) continue;
  const started = performance.now();
  const took = () => `${((performance.now() - started) / 1000).toFixed(0)} s`;
  try {
    console.log(`${name}: ${JSON.stringify(await run())} in ${took()}`);
  } catch (error) {
    if (error instanceof Skipped) console.log(`${name}: skipped, for ${error.message}`);
    else {
      failures++;
      console.error(`${name}: FAILED after ${took()}\n${(error as Error).message}`);
    }
  }
}
console.log(failures ? `${failures} kinds of fault were not borne.` : "Every fault was borne.");
process.exit(failures ? 1 : 0);
