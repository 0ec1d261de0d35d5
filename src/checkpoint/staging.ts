// Owns output that appears whole or not at all: written beside its target under another name, then renamed.
import { closeSync, existsSync, fsyncSync, openSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
const pending = new Set<Staging>();
let count = 0;

/**
 * A file or directory that is being made. Write to `path`; `commit()` moves it to `target`.
 *
 * What was not committed is removed when the object is disposed, when the process exits, and when a signal ends it.
 * A crash or a power cut can leave the hidden temporary name behind, but never a half-written target.
 */
export class Staging implements Disposable {
  readonly target: string;
  /** Where to write: a hidden name in the target's own directory, since a rename cannot cross file systems. */
  readonly path: string;

  constructor(target: string) {
    this.target = resolve(target);
    this.path = join(dirname(this.target), `.${basename(this.target)}.${process.pid}-${count++}.tmp`);
    if (pending.size === 0) listen();
    pending.add(this);
  }

  /**
   * Puts the finished file or directory under its final name, and makes that durable. Data must be synced already.
   *
   * @param isLast where the target is a directory that exists: which files are moved after all others, in the order of
   * their names. Should the process end between, what they complete is missing, not mixed.
   */
  commit(isLast: (name: string) => boolean = () => false): void {
    if (statSync(this.path).isDirectory() && existsSync(this.target)) this.#merge(isLast);
    else renameSync(this.path, this.target);
    sync(dirname(this.target));
    this.#forget();
  }

  /** Moves the files one by one into a directory that exists, so that what else lies there stays. */
  #merge(isLast: (name: string) => boolean): void {
    const names = readdirSync(this.path).sort();
    for (const name of [...names.filter((name) => !isLast(name)), ...names.filter(isLast)]) {
      rmSync(join(this.target, name), { recursive: true, force: true });
      renameSync(join(this.path, name), join(this.target, name));
    }
    sync(this.target);
    rmSync(this.path, { recursive: true });
  }

  /** Removes what was written, unless it was committed. */
  [Symbol.dispose](): void {
    if (!pending.has(this)) return;
    rmSync(this.path, { recursive: true, force: true });
    this.#forget();
  }

  #forget(): void {
    pending.delete(this);
    if (pending.size === 0) unlisten();
  }
}

/** Makes a file's data, or a directory's names, survive a power cut. */
export function sync(path: string): void {
  const descriptor = openSync(path, "r");
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
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
