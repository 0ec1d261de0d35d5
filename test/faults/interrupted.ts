// Owns what happens to a model that is being written when the process is killed or the disk is full: each time, what is
// under the output's name is whole or absent, and another run succeeds.
import { existsSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { BnbError } from "../../src/index.ts";
import { llamaDirectory } from "../models.ts";
import { compileShim } from "./build.ts";

const script = join(import.meta.dir, "quantize.ts");

export interface Interruption {
  /** How the process ended. */
  readonly ended: string | number;
  readonly error: string | undefined;
  /** What lay beside the output afterwards, as the process itself saw it. */
  readonly left: readonly string[];
}

function run(prefix: string[], input: string, output: string, env: Record<string, string> = {}, quantType = "nf4") {
  const command = [...prefix, process.execPath, script, input, output, quantType];
  const { exitCode, signalCode, stdout, stderr } = Bun.spawnSync(command, {
    env: { ...process.env, ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const printed = stdout.toString();
  if (signalCode === undefined && exitCode !== 0) throw new Error(`${command.join(" ")}\n${stderr}`);
  const { error, left } = printed ? JSON.parse(printed) : { error: undefined, left: [] };
  return { ended: signalCode ?? exitCode!, error, left } as Interruption;
}

/** What is under a name: `"absent"`, `"nothing to load"`, or the format of a model that was found sound. */
async function stateOf(output: string): Promise<string> {
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

function expectThat(holds: boolean, sentence: string): void {
  if (!holds) throw new Error(sentence);
}

/** A quantisation that is killed, or finds the disk full, at one of its calls that make, move or remove files. */
interface Attempt {
  readonly action: "kill" | "full";
  readonly at: number;
  /** Whether another model lies under the output's name. */
  readonly over: boolean;
}

/** @returns false where the process makes no such call any more, and so came to its end */
async function interrupt(folder: string, shim: string, attempt: Attempt, report: Report): Promise<boolean> {
  const { action, at, over } = attempt;
  const [input, output] = [join(folder, "input"), join(folder, "out/model")];
  rmSync(join(folder, "out"), { recursive: true, force: true });
  mkdirSync(join(folder, "out"));
  if (over) await quantizeCheckpoint(input, { output, quantType: "fp4" });
  const { ended, error } = run([], input, output, { LD_PRELOAD: shim, FAULTS_AT: String(at), FAULTS_ACTION: action });
  const where = `${action} at call ${at}${over ? " over another model" : ""}`;
  const state = await stateOf(output);
  const allowed = over ? ["fp4", "nf4"] : ["absent", "nf4"];
  expectThat(allowed.includes(state), `${where}: the output is ${state}, expected ${allowed.join(" or ")}`);
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
  const again = run([], input, output);
  const end = await stateOf(output);
  expectThat(again.error === undefined && end === "nf4", `${where}: run again, ${again.error ?? end}`);
  return true;
}

/** Interrupts a quantisation at every `stride`-th of its calls, in both ways, onto nothing and over another model. */
export async function interruptEverywhere(folder: string, stride = 1): Promise<Report> {
  const shim = await compileShim();
  await llamaDirectory(join(folder, "input"));
  const report: Report = { killed: 0, full: 0, states: {} };
  for (const action of ["kill", "full"] as const)
    for (const over of [false, true]) {
      let at = 0;
      while (await interrupt(folder, shim, { action, at, over }, report)) at += stride;
    }
  return report;
}

/** Whether a small disk can be had here: a tmpfs in a namespace of its own, without being root. */
export function canMount(): boolean {
  if (!Bun.which("unshare")) return false;
  return (
    Bun.spawnSync(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], { stderr: "ignore" }).exitCode === 0
  );
}

/** Quantises onto a disk of that size, and gives what became of it. */
export async function quantizeOnto(folder: string, kilobytes: number): Promise<Interruption> {
  const [input, disk] = [join(folder, "input"), join(folder, "disk")];
  if (!existsSync(input)) await llamaDirectory(input);
  mkdirSync(disk, { recursive: true });
  const mount = `mount -t tmpfs -o size=${kilobytes}k tmpfs ${disk} && exec "$@"`;
  return run(["unshare", "-Urm", "sh", "-c", mount, "sh"], input, join(disk, "model"));
}
