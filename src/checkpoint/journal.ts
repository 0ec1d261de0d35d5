// The journals of work folders: each says who makes what, which files are its own and how far it came, so that
// what a process left behind when it was killed can be told from what a living one needs, and from what is somebody's
// only copy.
import fs from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { BnbError } from "../error.ts";
import { libc } from "../libc.ts";
import { found } from "./folder.ts";
import { workName } from "./plan.ts";

/** Who made a work folder, and for which output. */
interface Identity {
  readonly process: number;
  readonly host: string;
  /** When the process began. */
  readonly started: string;
  /** What tells it from every other process, and its thread, where the system says that; else empty. */
  readonly birth: string;
  readonly thread: string;
  readonly target: string;
  /** Whether its file system could lock the journal: otherwise nobody can tell whether the process still lives. */
  readonly locked: boolean;
}

/**
 * How far it came, where that matters: `"committing"`, the stage with that inode is being put in place in one step;
 * `"moving"`, file by file; `"kept"`, that failed, and the stage holds a finished result.
 */
type State =
  | { readonly state: "committing"; readonly stage: number }
  | { readonly state: "moving" }
  | { readonly state: "kept" };

/** A file of the stage that is our own work, or the user's under a second name. */
type Content = { readonly wrote: string } | { readonly linked: string };

/** What a folder that nobody has written a journal into yet may take to get one. */
const birthMs = 60_000;

const journalName = "journal";

/** One line of JSON each. It is locked for as long as its process lives. */
export class Journal {
  readonly #descriptor: number;

  constructor(work: string, target: string) {
    this.#descriptor = fs.openSync(join(work, journalName), "wx");
    const locked = libc.lock(this.#descriptor);
    const started = new Date(Date.now() - 1000 * process.uptime()).toISOString();
    const identity = {
      process: process.pid,
      host: os.hostname(),
      started,
      birth: birth(),
      thread: thread(),
      target,
      locked,
    };
    this.#write(identity satisfies Identity);
    fs.fsyncSync(this.#descriptor);
  }

  /** Notes a file before it is made: without this line it counts as somebody else's. */
  content(content: Content): void {
    this.#write(content);
  }

  /** Notes a step before it is taken, durably. */
  state(state: State): void {
    this.#write(state);
    fs.fsyncSync(this.#descriptor);
  }

  close(): void {
    fs.closeSync(this.#descriptor);
  }

  #write(line: object): void {
    fs.writeSync(this.#descriptor, `${JSON.stringify(line)}\n`);
  }
}

/** What tells this process from every other: its number and name may be those of one in another container. */
function birth(): string {
  try {
    const start = fs.readFileSync("/proc/self/stat", "utf8").split(") ").at(-1)!.split(" ")[19];
    return `${fs.readlinkSync("/proc/self/ns/pid")} ${start}`;
  } catch {
    return ""; // not Linux
  }
}

/** The path below /proc of this thread: a Worker's goes when it is terminated, and its locks stay with the process. */
function thread(): string {
  try {
    return fs.readlinkSync("/proc/thread-self");
  } catch {
    return ""; // not Linux
  }
}

function isTerminatedWorkers(identity: Identity): boolean {
  return identity.birth !== "" && identity.birth === birth() && !fs.existsSync(join("/proc", identity.thread));
}

/** Removes a journal whose work folder has nothing else in it, and the folder. */
export function removeWork(work: string): void {
  fs.unlinkSync(join(work, journalName));
  fs.rmdirSync(work);
}

interface Record {
  readonly identity: Identity;
  readonly state: State | undefined;
  readonly wrote: ReadonlySet<string>;
  readonly linked: ReadonlySet<string>;
}

/** @returns undefined where no whole first line is there */
function readJournal(descriptor: number): Record | undefined {
  const lines = fs.readFileSync(descriptor, "utf8").split("\n").slice(0, -1).flatMap(parsed);
  const identity = lines.find((line) => "process" in line) as Identity | undefined;
  if (!identity) return undefined;
  const of = (key: string) =>
    lines.flatMap((line) => (key in line ? [String((line as { [k: string]: unknown })[key])] : []));
  const state = lines.findLast((line) => "state" in line) as State | undefined;
  return { identity, state, wrote: new Set(of("wrote")), linked: new Set(of("linked")) };
}

/** A power cut may tear lines. */
function parsed(line: string): object[] {
  try {
    return [Object(JSON.parse(line))];
  } catch {
    return [];
  }
}

/**
 * Removes work folders for a target whose processes have ended, if all in them is those processes' own.
 *
 * @param own the caller's, which is passed over
 * @returns a sentence for each that was removed, or that somebody must look at
 * @throws BnbError where a living process is writing to the target
 */
export function clearLeftovers(home: string, target: string, own: string): string[] {
  return fs
    .readdirSync(home)
    .filter((name) => workName.test(name))
    .map((name) => join(home, name))
    .filter((work) => work !== own)
    .flatMap((work) => clearLeftover(work, target) ?? []);
}

function clearLeftover(work: string, target: string): string | undefined {
  let descriptor: number;
  try {
    descriptor = fs.openSync(join(work, journalName), "r+");
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT") return clearUnborn(work);
    return code === "ENOTDIR" ? undefined : `${work} can't be looked at (${code}).`;
  }
  try {
    const record = readJournal(descriptor);
    if (record === undefined) return clearUnborn(work);
    if (record.identity.target !== target) return undefined;
    const { process: id, host, started, locked } = record.identity;
    const who = `process ${id} on ${host}, begun at ${started}`;
    if (!locked) return `${work} is of ${who}; whether that has ended can't be told here: remove it if so.`;
    if (!libc.lock(descriptor) && !isTerminatedWorkers(record.identity))
      throw new BnbError(`output ${target} is being written by ${who}: wait for its end, or choose another place.`);
    const reason = whyKept(work, record);
    if (reason) return `${work} was left by ${who}, and ${reason}: look through it, and remove it by hand.`;
    fs.rmSync(work, { recursive: true });
    return `Removed ${work}, which was left unfinished by ${who}.`;
  } finally {
    fs.closeSync(descriptor);
  }
}

/** Without a journal: a process may be about to write one, or was killed before it could. */
function clearUnborn(work: string): string | undefined {
  const folder = found(work);
  if (!folder?.isDirectory() || Date.now() - folder.mtimeMs < birthMs) return undefined;
  const inside = fs.readdirSync(work);
  if (inside.some((name) => name !== journalName))
    return `${work} has no journal: look through it, and remove it by hand.`;
  if (inside.length > 0) fs.unlinkSync(join(work, journalName));
  fs.rmdirSync(work);
  return `Removed ${work}, which was left empty.`;
}

/** Why a leftover is not removed; `undefined` where all that is in it is its process's own, or stands elsewhere too. */
function whyKept(work: string, { state, wrote, linked }: Record): string | undefined {
  if (state?.state === "kept") return "holds a finished result that could not be put in place";
  if (state?.state === "moving") return "holds files that were being replaced";
  const stage = found(join(work, "new"));
  if (state?.state === "committing" && stage && stage.ino !== state.stage) return "holds what was replaced";
  if (fs.readdirSync(work).some((name) => name !== journalName && name !== "new")) return "holds files of others";
  if (!stage?.isDirectory()) return undefined;
  const isOurs = (name: string): boolean => {
    const entry = fs.lstatSync(join(work, "new", name));
    if (entry.isDirectory()) return fs.readdirSync(join(work, "new", name)).every((inner) => isOurs(join(name, inner)));
    return wrote.has(name) || (linked.has(name) && entry.nlink > 1);
  };
  return isOurs("") ? undefined : "holds files of others";
}
