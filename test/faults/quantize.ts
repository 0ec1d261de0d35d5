// One quantisation in a process of its own, which a test kills, starves or disturbs: `bun quantize.ts <job>`,
// where the job is JSON. Prints JSON: the error's message, if there was one, what lies in the output's parent after it,
// and how many calls there were.
import fs from "node:fs";
import { dirname, join } from "node:path";
import { quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { writeSafetensors } from "../../src/checkpoint/writer.ts";
import { BnbError } from "../../src/error.ts";
import { libc } from "../../src/libc.ts";
import { needRoom, onCalls, record } from "./hook.ts";

export interface Job {
  readonly input: string;
  readonly output: string;
  readonly quantType?: "nf4" | "fp4";
  readonly force?: boolean;
  /** Whether the file system is to lack the exchange of folders. */
  readonly moves?: boolean;
  /** Whether only the file of the output's weights is to be written anew. */
  readonly file?: boolean;
  /** What happens at the call of this number: a kill, a full disk, or another job from its beginning to its end. */
  readonly at?: number;
  readonly action?: "kill" | "full" | "other";
  readonly other?: Job;
  /** A file that gets every change of the disk. */
  readonly record?: string;
}

export interface Done {
  readonly error?: string | undefined;
  readonly left: readonly string[];
  readonly calls: number;
  /** What the other job printed, where it ran. */
  readonly other?: Done | undefined;
}

const job: Job = JSON.parse(process.argv[2]!);
let calls = 0;
let other: Done | undefined;
let error: string | undefined;
if (job.moves) libc.exchange = () => false;
const changes = job.record === undefined ? undefined : record();
if (!changes) onCalls(disturb, () => {});

function disturb(name: string): void {
  if (job.action === "full" && !needRoom.includes(name)) return;
  if (calls++ !== job.at) return;
  if (job.action === "kill") process.kill(process.pid, "SIGKILL");
  if (job.action === "full")
    throw Object.assign(new Error(`ENOSPC: no space left on device, ${name}`), { syscall: name });
  if (job.action === "other") {
    const command = [process.execPath, import.meta.path, JSON.stringify(job.other)];
    other = JSON.parse(Bun.spawnSync(command, { stderr: "inherit" }).stdout.toString());
  }
}

try {
  const { quantType = "nf4", force = true } = job;
  const bytes = new Uint8Array(1000).fill(7);
  const tensor = { name: "a new file", dtype: "U8" as const, shape: [bytes.length], bytes };
  if (job.file) await writeSafetensors(join(job.output, "model.safetensors"), [tensor]);
  // Small shards, so that there are many files to be caught between.
  else await quantizeCheckpoint(job.input, { output: job.output, quantType, shardBytes: 30_000, force });
} catch (cause) {
  if (!(cause instanceof BnbError || (cause instanceof Error && "syscall" in cause))) throw cause;
  error = cause.message;
}
if (changes) await Bun.write(job.record!, JSON.stringify(changes));
const left = fs.existsSync(dirname(job.output)) ? fs.readdirSync(dirname(job.output)).sort() : [];
console.log(JSON.stringify({ error, left, calls, other } satisfies Partial<Done>));
