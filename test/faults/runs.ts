// The runs of the fault suite: each a program or script in a process of its own, watched, with what it tried.
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fakeMetal } from "../metal/host/build.ts";
import { type Build, build } from "./build.ts";
import type { RenamedReport } from "./renamed.ts";

export const scratch = mkdtempSync(join(tmpdir(), "bnb-faults-"));
process.on("exit", () => rmSync(scratch, { recursive: true, force: true }));
const note = join(scratch, "note");

/** Without a sign of life for so long, a process hangs. */
const millisecondsMax = 1_800_000;

/** What a run says it did. */
async function watch(what: string, command: string[], env: Record<string, string> = {}): Promise<string> {
  const child = Bun.spawn(command, { env: { ...process.env, ...env }, stdout: "pipe", stderr: "pipe" });
  let hangs = false;
  const timer = setTimeout(() => {
    hangs = true;
    child.kill("SIGKILL");
  }, millisecondsMax);
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  await child.exited;
  clearTimeout(timer);
  if (child.exitCode === 0 && child.signalCode === null) return stdout;
  // Each thread has its own page of the note.
  const pages = existsSync(note)
    ? readFileSync(note, "utf8")
        .split("\0")
        .filter((text) => text.trim())
    : [];
  const ended = hangs ? `was stopped after ${millisecondsMax} ms` : `ended with ${child.signalCode ?? child.exitCode}`;
  throw new Error(`${what} ${ended}: ${command.join(" ")}\nin ${pages.join("\n   ")}\n${stderr}`);
}

/** One entry of bnb.h: how often it was called, and what it gave. */
export interface Tally {
  readonly calls: number;
  readonly ok: number;
  readonly invalid: number;
  readonly unsupported: number;
  readonly outOfMemory: number;
  readonly lost: number;
}

const sanitizerEnv = {
  // What a test frees late, such as codebooks made once, is no leak; the harness counts allocations itself.
  ASAN_OPTIONS: "detect_leaks=0:abort_on_error=1",
  TSAN_OPTIONS: "halt_on_error=1:abort_on_error=1",
  UBSAN_OPTIONS: "print_stacktrace=1",
};

/**
 * For the harness's calls to go to the simulated GPU: each result a buffer of its own, each access checked, and as
 * little memory as hook.c gives on the CPU.
 */
export const simulatedGpu = () => ({
  FAULTS_DEVICE: "metal",
  BNB_METAL_LIBRARY: fakeMetal(),
  BNB_FAKE_METAL: `buffer_max=${8 << 20},working_set=${1 << 30}`,
  BNB_METAL_EXACT: "1",
  BNB_SIM: "check",
  BNB_SIM_BUN: process.execPath,
});

/** Runs one instruction set's forms_test, built with AddressSanitizer; false where the processor can't. */
export async function forms(program: string, isa: string): Promise<boolean> {
  const child = Bun.spawn([program, isa], { env: { ...process.env, ...sanitizerEnv }, stderr: "pipe" });
  const stderr = await new Response(child.stderr).text();
  if ((await child.exited) === 3) return false;
  if (child.exitCode !== 0)
    throw new Error(`forms_test ${isa} ended with ${child.signalCode ?? child.exitCode}\n${stderr}`);
  return true;
}

export type Mode = "fuzz" | "threads" | "allocations" | "races" | "forks";

/** Runs the C harness. @param prefix a program that runs it, such as valgrind */
export async function harness(
  flavour: Build,
  mode: Mode,
  seed: number,
  count: number,
  env: Record<string, string> = {},
  prefix: readonly string[] = [],
): Promise<Record<string, Tally>> {
  const { harness } = await build(flavour);
  const all = { ...sanitizerEnv, BNB_NUM_THREADS: "3", FAULTS_NOTE: note, ...env };
  const printed = await watch(`${flavour} ${mode}`, [...prefix, harness, mode, String(seed), String(count)], all);
  return Object.fromEntries(
    printed
      .trim()
      .split("\n")
      .map((line) => {
        const [name, ...numbers] = line.split(" ");
        const [calls, ok, invalid, unsupported, outOfMemory, lost] = numbers.map(Number) as [
          number,
          number,
          number,
          number,
          number,
          number,
        ];
        return [name!, { calls, ok, invalid, unsupported, outOfMemory, lost }];
      }),
  );
}

/** Runs a script of this folder and gives the JSON that it prints. */
async function script<T>(
  name: string,
  args: readonly (string | number)[],
  env: Record<string, string> = {},
): Promise<T> {
  const command = [process.execPath, join(import.meta.dir, name), ...args.map(String)];
  return JSON.parse(await watch(name, command, env)) as T;
}

export interface FfiReport {
  readonly calls: number;
  readonly refusedByBun: number;
  readonly failed: number;
  readonly succeeded: number;
}

/** Calls the library as JavaScript can. */
export async function ffi(seed: number, seconds: number, count?: number): Promise<FfiReport> {
  const { library } = await build("undefined");
  return await script("ffi.ts", [note, seed, seconds, ...(count ? [count] : [])], { BNB_LIBRARY: library });
}

export interface LiarsReport {
  readonly functions: number;
  readonly calls: number;
}

/** Calls the public functions with arguments that lie. */
export async function liars(seed: number, seconds: number, rounds?: number): Promise<LiarsReport> {
  const { library } = await build("undefined");
  return await script("liars.ts", [note, seed, seconds, ...(rounds ? [rounds] : [])], { BNB_LIBRARY: library });
}

export interface FilesReport {
  readonly count: number;
  readonly tried: Readonly<
    Record<string, { readonly inputs: number; readonly read: number; readonly refused: number }>
  >;
  /** Kinds of refusal. */
  readonly sentences: number;
  /** Milliseconds. */
  readonly slowest: number;
  readonly nativePeak: number;
}

/** Opens and reads damaged files. */
export async function files(seed: number, seconds: number, count?: number): Promise<FilesReport> {
  const folder = mkdtempSync(join(scratch, "files-"));
  return await script("files.ts", [folder, note, seed, seconds, ...(count ? [count] : [])]);
}

/** Puts lifetimes under stress. */
export function lifetime(
  mode: "dispose" | "collect" | "workers" | "terminate",
  count: number,
): Promise<Record<string, number>> {
  return script("lifetime.ts", [mode, count]);
}

/** Opens files that are renamed over meanwhile. */
export function renamed(seconds: number): Promise<RenamedReport> {
  return script("renamed.ts", [mkdtempSync(join(scratch, "renamed-")), seconds]);
}
