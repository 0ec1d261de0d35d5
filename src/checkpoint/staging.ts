// The second step of writing: what is made lies in a work folder beside its target, on the same file system,
// locked and journalled, until it is whole and durable; without a commit nothing of it stays.
import { randomBytes } from "node:crypto";
import fs from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { BnbError } from "../error.ts";
import { printable } from "../printable.ts";
import { found, isInside } from "./folder.ts";
import { clearLeftovers, Journal, removeWork } from "./journal.ts";
import { type Place, placeOf } from "./plan.ts";

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const pending = new Set<Staging>();

/** A name may have 255 bytes on most file systems; the rest of a work folder's name needs 22. */
const stemBytesMax = 120;

/**
 * A file or folder that is being made at `path`, which the caller creates; `commit` of {@link StagedFile} or of
 * `commit.ts` gives it its name.
 *
 * What was not committed is removed when the object is disposed, when the process exits, and when a signal ends it.
 * What a crash leaves is removed by the next process that writes to the same target.
 */
export class Staging implements Disposable {
  readonly target: string;
  /** A hidden folder, for this user only. */
  readonly work: string;
  readonly path: string;
  readonly journal: Journal;
  /** What a person should know of leftovers of others. */
  readonly notes: readonly string[];
  /** Folders that were made on the way to the target. */
  readonly #parents: string[] = [];

  /** @throws BnbError where another process is writing to the same place */
  constructor({ path, parents, home }: Place) {
    this.target = path;
    const stem = Buffer.from(basename(path)).subarray(0, stemBytesMax).toString().replaceAll("\ufffd", "_");
    this.work = join(home, `.${stem}.${randomBytes(8).toString("hex")}.tmp`);
    this.path = join(this.work, "new");
    try {
      for (const parent of parents) this.#makeParent(parent);
      fs.mkdirSync(this.work, { mode: 0o700 });
      this.journal = new Journal(this.work, path);
    } catch (error) {
      this.#remove();
      throw error;
    }
    if (pending.size === 0) listen();
    pending.add(this);
    try {
      // After the own lock is there to be seen: of two at once at least one sees the other.
      this.notes = clearLeftovers(home, path, this.work);
      sync(home);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Notes a file of the stage before it is made. @param path where it is going to be */
  wrote(path: string): void {
    this.journal.content({ wrote: relative(this.path, path) });
  }

  /** Takes the fate of the work folder out of this object's hands: from here on it may hold what others need. */
  release(): void {
    if (!pending.delete(this)) return;
    if (pending.size === 0) unlisten();
  }

  /** After a commit that failed: the result stays where it is. @returns the error to throw, which names that place */
  keep(cause: unknown): BnbError {
    this.release();
    try {
      this.journal.state({ state: "kept" });
    } catch {
      // A disk that is full to the last byte: the sentence below is all that can be done.
    }
    this.journal.close();
    const reason = (cause as Error).message.replace(/\.?$/, ".");
    const place = `It stays at ${this.path}: move it from there.`;
    return new BnbError(
      `The result is whole, but could not be put at ${this.target}: ${reason} ${place}`,
      cause instanceof BnbError ? cause.code : "invalid",
      { cause },
    );
  }

  /** After a commit that succeeded: removes the work folder, in which nothing is left. */
  finish(): void {
    this.release();
    removeWork(this.work); // under its lock, so that nobody takes it for left
    this.journal.close();
  }

  /** Removes what was written, unless it was committed. */
  [Symbol.dispose](): void {
    if (!pending.has(this)) return;
    this.release();
    this.#remove();
    this.journal.close();
  }

  #makeParent(parent: string): void {
    try {
      fs.mkdirSync(parent);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EEXIST") return; // another process made it since
      throw error;
    }
    this.#parents.unshift(parent);
    sync(dirname(parent));
  }

  #remove(): void {
    fs.rmSync(this.work, { recursive: true, force: true });
    for (const parent of this.#parents) {
      if (fs.readdirSync(parent).length > 0) break;
      fs.rmdirSync(parent);
    }
  }
}

/** One file, made beside its target, or at once in its place where that is in a folder that is staged itself. */
export class StagedFile implements Disposable {
  /** Where to write. It does not exist. */
  readonly path: string;
  readonly target: string;
  readonly #staging: Staging | undefined;
  /** The file that it replaces. */
  readonly #there: fs.Stats | undefined;

  /** @throws BnbError where the path is no file's */
  constructor(path: string) {
    const { path: target, parents, home } = placeOf(path, "path");
    const folder = [...pending].find((staging) => isInside(target, staging.path));
    this.target = target;
    const there = found(target);
    if (there?.isDirectory()) throw new BnbError(`path ${path} is a folder, expected a file's name.`);
    if (there && !there.isFile()) throw new BnbError(`path ${path} is no ordinary file, and can't be replaced.`);
    this.#there = there;
    if (folder && !there) {
      folder.wrote(target);
      this.path = target;
      return;
    }
    // A missing folder is the caller's mistake more often than his wish.
    if (parents.length > 0) fs.statSync(dirname(target));
    this.#staging = new Staging({ path: target, parents: [], home });
    // There is no report that has room for it.
    for (const note of this.#staging.notes) process.emitWarning(printable(note));
    this.path = this.#staging.path;
  }

  /** Gives the file its name, durably. Its data must be synced. */
  commit(): void {
    const staging = this.#staging;
    if (!staging) return; // with the folder that it is in
    staging.release();
    try {
      if (this.#there) likeBefore(staging.path, this.#there);
      sync(staging.work);
      staging.journal.state({ state: "committing", stage: fs.lstatSync(staging.path).ino });
      fs.renameSync(staging.path, staging.target);
    } catch (error) {
      throw staging.keep(error);
    }
    sync(dirname(staging.target)); // an error of this leaves an empty work folder, for the next writer to remove
    staging.finish();
  }

  [Symbol.dispose](): void {
    this.#staging?.[Symbol.dispose]();
  }
}

/** Gives a file or folder the mode of what it replaces, and its owner, where this user may give things away. */
export function likeBefore(path: string, { mode, uid, gid }: fs.Stats): void {
  if (process.getuid?.() === 0) fs.chownSync(path, uid, gid);
  fs.chmodSync(path, mode & 0o7777);
  sync(path);
}

/** Writes a whole text file, durably; it replaces one that is there when all of it is written. */
export function writeText(path: string, text: string): void {
  using file = new StagedFile(path);
  const descriptor = fs.openSync(file.path, "wx");
  try {
    const bytes = Buffer.from(text);
    for (let done = 0; done < bytes.length; ) done += fs.writeSync(descriptor, bytes, done);
    fs.fsyncSync(descriptor);
  } catch (error) {
    throw about(error, resolve(path));
  } finally {
    fs.closeSync(descriptor);
  }
  file.commit();
}

/** The system's error of a call that knows no path, a full disk mostly, with the path that it was about. */
export function about(error: unknown, path: string): unknown {
  if (error instanceof Error) error.message += ` (${path})`;
  return error;
}

/** Makes a file's data, or a directory's names, survive a power cut. */
export function sync(path: string): void {
  const descriptor = fs.openSync(path, "r");
  try {
    fs.fsyncSync(descriptor);
  } catch (error) {
    throw about(error, path);
  } finally {
    fs.closeSync(descriptor);
  }
}

/** Makes a folder durable from the leaves up: what a name leads to before the name. */
export function syncTree(folder: string): void {
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) syncTree(path);
    else if (entry.isFile() && isReadable(path)) sync(path); // the user's own may not be, and were durable without us
  }
  sync(folder);
}

function isReadable(path: string): boolean {
  try {
    fs.accessSync(path, fs.constants.R_OK);
    return true;
  } catch {
    return false;
  }
}

function removePending(): void {
  for (const staging of [...pending]) staging[Symbol.dispose]();
}

/** Ends the process as the signal would have, unless the application has a handler of its own and so decides itself. */
function onSignal(signal: NodeJS.Signals): void {
  if (process.listenerCount(signal) > 1) return;
  removePending();
  process.kill(process.pid, signal);
}

function listen(): void {
  process.on("exit", removePending);
  for (const signal of signals) process.on(signal, onSignal);
}

function unlisten(): void {
  process.off("exit", removePending);
  for (const signal of signals) process.off(signal, onSignal);
}
