// What happens to a model that is being written when the process is killed, the disk is full, or another process
// writes to the same place: each time, what is under the output's name is whole or absent, and another run succeeds.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { BnbError } from "../../src/index.ts";
import { llamaDirectory } from "../models.ts";
import type { Done, Job } from "./quantize.ts";

const script = join(import.meta.dir, "quantize.ts");

export interface Ended extends Done {
  /** How the process ended. */
  readonly ended: string | number;
}

export function run(job: Job, prefix: readonly string[] = []): Ended {
  const command = [...prefix, process.execPath, script, JSON.stringify(job)];
  const { exitCode, signalCode, stdout, stderr } = Bun.spawnSync(command, { stdout: "pipe", stderr: "pipe" });
  if (signalCode === undefined && exitCode !== 0) throw new Error(`${command.join(" ")}\n${stderr}`);
  const printed: Done = stdout.length > 0 ? JSON.parse(stdout.toString()) : { left: [], calls: 0 };
  return { ended: signalCode ?? exitCode!, ...printed };
}

/** What is under a name: `"absent"`, `"nothing to load"`, or the format of a model that was found sound. */
export async function stateOf(output: string): Promise<string> {
  if (!existsSync(output)) return "absent";
  try {
    using opened = openCheckpoint(output);
    const { problems } = await verifyCheckpoint(output);
    if (problems.length > 0) return problems.join("; ");
    return [...opened.quantized.values()][0]!.format;
  } catch (error) {
    if (error instanceof BnbError && error.message.includes("has neither")) return "nothing to load";
    throw error;
  }
}

export interface Report {
  killed: number;
  full: number;
  /** How often each state was found under the output's name. */
  readonly states: Record<string, number>;
}

export function expectThat(holds: boolean, sentence: string): void {
  if (!holds) throw new Error(sentence);
}

/** A file of the user's, in the folder that is written to. */
const mine = "mine.txt";

/** Makes the output's parent anew, with nothing or another model in it. */
export async function prepare(folder: string, over: boolean): Promise<Job> {
  const [input, output] = [join(folder, "input"), join(folder, "out/model")];
  if (!existsSync(input)) await llamaDirectory(input);
  rmSync(join(folder, "out"), { recursive: true, force: true });
  mkdirSync(join(folder, "out"));
  if (over) {
    await quantizeCheckpoint(input, { output, quantType: "fp4" });
    writeFileSync(join(output, mine), mine);
  }
  return { input, output };
}

function expectMine(output: string, where: string): void {
  const path = join(output, mine);
  expectThat(existsSync(path) && readFileSync(path, "utf8") === mine, `${where}: the user's file is gone`);
}

/** A quantisation that is killed, or finds the disk full, at one of its calls that change files. */
interface Attempt {
  readonly action: "kill" | "full";
  readonly at: number;
  /** Whether another model lies under the output's name. */
  readonly over: boolean;
}

/** @returns false where the process makes no such call any more, and so came to its end */
async function interrupt(folder: string, attempt: Attempt, report: Report): Promise<boolean> {
  const { action, at, over } = attempt;
  const job = await prepare(folder, over);
  const { output } = job;
  const { ended, error } = run({ ...job, at, action });
  const where = `${action} at call ${at}${over ? " over another model" : ""}`;
  const state = await stateOf(output);
  const allowed = over ? ["fp4", "nf4"] : ["absent", "nf4"];
  expectThat(allowed.includes(state), `${where}: the output is ${state}, expected ${allowed.join(" or ")}`);
  if (over) expectMine(output, where);
  if (ended === 0 && error === undefined) {
    expectThat(state === "nf4", `${where}: it succeeded, and left ${state}`);
    return false;
  }
  report.states[state] = (report.states[state] ?? 0) + 1;
  report[action === "kill" ? "killed" : "full"]++;
  if (action === "full") {
    const beside = readdirSync(join(folder, "out")).filter((name) => name !== basename(output));
    expectThat(error?.includes("ENOSPC") === true, `${where}: ${error}`);
    const kept = /It stays at (.*): move it/.exec(error!)?.[1];
    if (error!.includes("may not survive a power cut")) expectThat(state === "nf4", `${where}: it left ${state}`);
    else if (kept === undefined) expectThat(beside.length === 0, `${where}: it left ${beside}`);
    else expectThat((await stateOf(kept)) === "nf4", `${where}: it kept ${await stateOf(kept)}`);
  }
  const again = run(job);
  const end = await stateOf(output);
  expectThat(again.error === undefined && end === "nf4", `${where}: run again, ${again.error ?? end}`);
  if (over) expectMine(output, `${where}, run again`);
  return true;
}

/** Interrupts a quantisation at every `stride`-th of its calls, in both ways, onto nothing and over another model. */
export async function interruptEverywhere(folder: string, stride = 1): Promise<Report> {
  const report: Report = { killed: 0, full: 0, states: {} };
  for (const action of ["kill", "full"] as const)
    for (const over of [false, true]) {
      let at = 0;
      while (await interrupt(folder, { action, at, over }, report)) at += stride;
    }
  return report;
}

export interface TwoReport {
  pairs: number;
  readonly outcomes: Record<string, number>;
}

/**
 * Runs another writer, from its beginning to its end, at every `stride`-th call of one that writes to the same place.
 */
export async function twoWriters(folder: string, stride = 1): Promise<TwoReport> {
  const report: TwoReport = { pairs: 0, outcomes: {} };
  for (const force of [false, true])
    for (let at = 0, isOver = false; !isOver; at += stride) {
      const job = await prepare(folder, force);
      const other: Job = { ...job, quantType: "fp4", force };
      const done = run({ ...job, force, at, action: "other", other });
      isOver = done.other === undefined;
      if (isOver) break;
      const outcome = await outcomeOf(
        job.output,
        done,
        `the other at call ${at}${force ? ", both by force" : ""}`,
        force,
      );
      report.outcomes[outcome] = (report.outcomes[outcome] ?? 0) + 1;
      report.pairs++;
    }
  return report;
}

async function outcomeOf(output: string, done: Done, where: string, force: boolean): Promise<string> {
  const [first, second] = [done.error === undefined, done.other!.error === undefined];
  const state = await stateOf(output);
  const refusals = [done.error, done.other!.error].filter((error) => error !== undefined);
  for (const error of refusals)
    expectThat(/is being written by process|is not empty|has been filled/.test(error), `${where}: ${error}`);
  // Without force the one that is refused is not the one whose model is there; by force, whoever was last.
  const expected = [
    ...(first ? ["nf4"] : []),
    ...(second ? ["fp4"] : []),
    ...(first || second ? [] : ["absent", "fp4"]),
  ];
  expectThat(expected.includes(state), `${where}: ${first}, ${second}, and the output is ${state}`);
  expectThat(force || !(first && second), `${where}: both succeeded`);
  if (force) expectMine(output, where);
  return `${first ? "the first" : second ? "the second" : "neither"}${first && second ? ", then the second" : ""}`;
}

/** Whether a small disk can be had here: a tmpfs in a namespace of its own, without being root. */
export function canMount(): boolean {
  if (!Bun.which("unshare")) return false;
  return (
    Bun.spawnSync(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], { stderr: "ignore" }).exitCode === 0
  );
}

/** Quantises onto a disk of that size, and gives what became of it. */
export async function quantizeOnto(folder: string, kilobytes: number): Promise<Ended> {
  const [input, disk] = [join(folder, "input"), join(folder, "disk")];
  if (!existsSync(input)) await llamaDirectory(input);
  mkdirSync(disk, { recursive: true });
  const mount = `mount -t tmpfs -o size=${kilobytes}k tmpfs ${disk} && exec "$@"`;
  return run({ input, output: join(disk, "model") }, ["unshare", "-Urm", "sh", "-c", mount, "sh"]);
}
