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

/** Kills a quantisation, or fails it, at every `stride`-th of its calls that make, move or remove files. */
export async function interruptEverywhere(folder: string, stride = 1): Promise<Report> {
  const shim = await compileShim();
  const [input, output] = [join(folder, "input"), join(folder, "out/model")];
  await llamaDirectory(input);
  const report: Report = { killed: 0, full: 0, states: {} };
  for (const action of ["kill", "full"])
    for (const over of [false, true])
      for (let at = 0; ; at += stride) {
        rmSync(join(folder, "out"), { recursive: true, force: true });
        mkdirSync(join(folder, "out"));
        if (over) await quantizeCheckpoint(input, { output, quantType: "fp4" });
        const env = { LD_PRELOAD: shim, FAULTS_AT: String(at), FAULTS_ACTION: action };
        const { ended, error } = run([], input, output, env);
        const where = `${action} at call ${at}${over ? " over another model" : ""}`;
        const state = await stateOf(output);
        const allowed = over ? ["fp4", "nf4", "nothing to load"] : ["absent", "nf4"];
        if (!allowed.includes(state))
          throw new Error(`${where}: the output is ${state}, expected ${allowed.join(" or ")}`);
        if (ended === 0 && error === undefined) {
          if (state !== "nf4") throw new Error(`${where}: it succeeded, and left ${state}`);
          break;
        }
        report.states[state] = (report.states[state] ?? 0) + 1;
        if (action === "kill") report.killed++;
        else {
          report.full++;
          const beside = readdirSync(join(folder, "out")).filter((name) => name !== basename(output));
          if (beside.length > 0) throw new Error(`${where}: it left ${beside}`);
          if (!error!.includes("ENOSPC")) throw new Error(`${where}: ${error}`);
        }
        const again = run([], input, output);
        const end = await stateOf(output);
        if (again.error !== undefined || end !== "nf4") throw new Error(`${where}: run again, ${again.error ?? end}`);
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
