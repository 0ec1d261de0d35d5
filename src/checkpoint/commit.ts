// The last step of writing a folder: it gets its name in such an order that at every instant a model is there that
// loads, the old one or the new one, and every file of the user's.
import fs from "node:fs";
import { dirname, join } from "node:path";
import { BnbError } from "../error.ts";
import { libc } from "../libc.ts";
import { found } from "./folder.ts";
import { checkKind, checkReplaceable, kindOf, type Plan } from "./plan.ts";
import { likeBefore, type Staging, sync, syncTree } from "./staging.ts";

/** What becomes of names in the folder that is replaced. */
export interface Replaced {
  /** Whether an entry of the folder belongs to the weights, all of which the new ones replace. */
  isWeights(name: string): boolean;
}

/**
 * Puts a staged folder in its target's place.
 *
 * @returns a sentence for whatever a person should know: of what stays behind, or of files that were moved one by one
 * @throws BnbError naming the place where the result stays, if that could not be done
 */
export function commitFolder(staging: Staging, plan: Plan, replaced: Replaced): string[] {
  const commit = new Commit(staging, plan, replaced);
  try {
    return commit.run();
  } catch (error) {
    throw commit.isPlaced ? notDurable(error, staging) : staging.keep(error);
  }
}

/** One of the user's files when it got a second name, or was copied. */
interface Joined {
  readonly stats: fs.Stats;
  readonly copied: boolean;
}

/** For what failed when the result had its name already. */
function notDurable(cause: unknown, { target, work, journal }: Staging): BnbError {
  journal.close();
  const reason = (cause as Error).message;
  const rest = `What is left of what it replaced, if anything, is in ${work}.`;
  return new BnbError(`The result is at ${target}, but may not survive a power cut: ${reason}. ${rest}`, "invalid", {
    cause,
  });
}

class Commit {
  /** Whether the result has its name. */
  isPlaced = false;
  readonly #staging: Staging;
  readonly #plan: Plan;
  readonly #replaced: Replaced;
  /** Files of the result, before the user's own join them. */
  readonly #names: readonly string[];
  /** The user's files as they were when they got their second name, in the stage. */
  readonly #joined = new Map<string, Joined>();
  /** Files of the user's whose names the file system takes for names of the result: it may not tell `A` from `a`. */
  readonly #sameNames = new Set<string>();

  constructor(staging: Staging, plan: Plan, replaced: Replaced) {
    this.#staging = staging;
    this.#plan = plan;
    this.#replaced = replaced;
    this.#names = filesOf(staging.path);
  }

  run(): string[] {
    const { path, output, stays } = this.#plan;
    const kind = kindOf(path, output); // again: hours may have passed
    checkKind(kind, this.#plan);
    if (kind !== "absent") checkReplaceable(path, output, this.#names);
    if (kind === "absent") return this.#appear();
    if (!stays) {
      this.#join("");
      likeBefore(this.#staging.path, fs.statSync(path));
      this.#begin();
      if (libc.exchange(this.#staging.path, path)) return this.#retire();
    }
    this.#move();
    return kind === "full" ? [movedNote(path)] : [];
  }

  /** Makes the stage durable, and from here on nobody removes it. */
  #begin(): void {
    const { path, work, journal } = this.#staging;
    syncTree(path);
    sync(work);
    this.#staging.release();
    journal.state({ state: "committing", stage: fs.lstatSync(path).ino });
  }

  /** Where nothing is, renaming is one step, and refused by the system if something is there by now. */
  #appear(): string[] {
    const { path, target } = this.#staging;
    this.#begin();
    fs.renameSync(path, target);
    this.isPlaced = true;
    sync(dirname(target));
    this.#staging.finish();
    return [];
  }

  /** Whether the new model replaces a file of the folder. */
  #isReplaced(name: string): boolean {
    return this.#names.includes(name) || this.#sameNames.has(name) || this.#replaced.isWeights(name);
  }

  /** Gives the user's other files a second name in the stage: a link, or a copy where the file system has no links. */
  #join(prefix: string): void {
    const { path: stage, journal } = this.#staging;
    for (const entry of fs.readdirSync(join(this.#plan.path, prefix))) {
      const name = join(prefix, entry);
      if (this.#isReplaced(name)) continue;
      const [from, to] = [join(this.#plan.path, name), join(stage, name)];
      const stats = fs.lstatSync(from);
      if (stats.isDirectory()) {
        if (!found(to)) fs.mkdirSync(to);
        this.#join(name);
        likeBefore(to, stats);
        continue;
      }
      if (found(to)) {
        this.#sameNames.add(name);
        continue;
      }
      journal.content({ linked: name });
      this.#joined.set(name, { stats, copied: joinFile(from, to, stats) });
    }
  }

  /** After the exchange: what is in the stage's place now is the folder that was replaced. */
  #retire(): string[] {
    const { path: old, target, work } = this.#staging;
    if (!this.#plan.force && fs.readdirSync(old).length > 0) {
      libc.exchange(old, target);
      throw new BnbError(`output ${this.#plan.output} has been filled by somebody else meanwhile.`);
    }
    this.isPlaced = true;
    // Names must be durable under the target before they are removed here.
    sync(dirname(target));
    sync(work);
    let stays: string;
    try {
      stays = this.#empty("").slice(0, 5).join(", ");
      if (stays === "") {
        fs.rmdirSync(old);
        this.#staging.finish();
        return [];
      }
    } catch (error) {
      stays = (error as Error).message;
    }
    this.#staging.journal.close();
    return [`${old} has something left of the folder that was replaced (${stays}): look through it, and remove it.`];
  }

  /** Empties the replaced folder, of what is replaced and of what has another name, and gives the names that stay. */
  #empty(prefix: string): string[] {
    const { path: old, target } = this.#staging;
    return fs.readdirSync(join(old, prefix)).flatMap((entry) => {
      const name = join(prefix, entry);
      const path = join(old, name);
      const stats = fs.lstatSync(path);
      if (stats.isDirectory()) {
        fs.chmodSync(path, stats.mode | 0o700); // one that may only be read can't be emptied
        const stays = this.#empty(name);
        if (stays.length === 0) fs.rmdirSync(path);
        return stays;
      }
      const joined = this.#joined.get(name);
      if (this.#isReplaced(name) || (joined && isUnchanged(joined, stats))) {
        fs.unlinkSync(path);
        return [];
      }
      // Written between the linking and the exchange: the newer one is the user's.
      const there = found(join(target, name));
      if (there && !joined) return [name];
      fs.mkdirSync(dirname(join(target, name)), { recursive: true });
      fs.renameSync(path, join(target, name));
      return [];
    });
  }

  /**
   * Where the folder can't be exchanged: the old weights are set aside, their index first; then the other files follow,
   * one by one, and the new weights, their index last. Whatever fails, all goes back.
   */
  #move(): void {
    const { path: stage, target, work, journal } = this.#staging;
    const aside = join(work, "old");
    for (const name of this.#joined.keys()) fs.unlinkSync(join(stage, name)); // they stay where they are
    syncTree(stage);
    fs.mkdirSync(aside);
    sync(work);
    this.#staging.release();
    journal.state({ state: "moving" });
    const moved: [from: string, to: string][] = [];
    const moveTo = (name: string, from: string, to: string) => {
      fs.mkdirSync(dirname(join(to, name)), { recursive: true });
      fs.renameSync(join(from, name), join(to, name));
      moved.push([join(from, name), join(to, name)]);
    };
    try {
      this.#moveAll(
        (name) => moveTo(name, target, aside),
        (name) => moveTo(name, stage, target),
      );
    } catch (error) {
      moveBack(moved, aside, error as Error);
      throw error;
    }
    this.isPlaced = true;
    fs.rmSync(aside, { recursive: true });
    fs.rmSync(stage, { recursive: true });
    this.#staging.finish();
  }

  #moveAll(setAside: (name: string) => void, put: (name: string) => void): void {
    const { target } = this.#staging;
    const isWeights = (name: string) => this.#replaced.isWeights(name);
    const others = this.#names.filter((name) => !isWeights(name));
    for (const name of fs.readdirSync(target).filter(isWeights).sort(indexLast).reverse()) setAside(name);
    sync(target);
    for (const name of others) {
      if (found(join(target, name))) setAside(name);
      put(name);
    }
    for (const folder of foldersOf(others)) sync(join(target, folder));
    for (const name of this.#names.filter(isWeights).sort(indexLast)) {
      put(name);
      sync(target);
    }
  }
}

/** Puts everything back where it was. Where even that fails, the error says where to look. */
function moveBack(moved: readonly (readonly [from: string, to: string])[], aside: string, error: Error): void {
  const stuck = moved.toReversed().filter(([from, to]) => {
    try {
      fs.renameSync(to, from);
      return false;
    } catch {
      return true;
    }
  });
  if (stuck.length > 0) error.message += ` What was replaced could not be put back, and is in ${aside}.`;
  else fs.rmSync(aside, { recursive: true });
}

const movedNote = (path: string) =>
  `${path} could not be exchanged as a whole, so its files were replaced one by one: for a moment it had no weights.`;

/** An index names files, and so comes after them. */
function indexLast(a: string, b: string): number {
  return Number(a.endsWith(".json")) - Number(b.endsWith(".json")) || (a < b ? -1 : 1);
}

/**
 * Gives a file a second name, under which it stays the same file; a link is made again.
 *
 * @returns whether it had to be copied, for its file system refuses a second name
 */
function joinFile(from: string, to: string, stats: fs.Stats): boolean {
  if (stats.isSymbolicLink()) {
    fs.symlinkSync(fs.readlinkSync(from), to);
    return false;
  }
  try {
    fs.linkSync(from, to);
    return false;
  } catch (cause) {
    if (!stats.isFile()) throw cause; // a pipe can't be copied
    // Why it was refused does not matter: whatever copying is refused for is told.
    fs.copyFileSync(from, to);
    fs.utimesSync(to, stats.atime, stats.mtime);
    likeBefore(to, stats);
    return true;
  }
}

/** Whether a file is still the one that got a second name; one that was copied must not have been written since. */
function isUnchanged({ stats, copied }: Joined, now: fs.Stats): boolean {
  if (stats.ino !== now.ino || stats.dev !== now.dev) return false;
  return !copied || (stats.size === now.size && stats.mtimeMs === now.mtimeMs);
}

/** Every file below a folder, relative to it, in order. */
function filesOf(folder: string, prefix = ""): string[] {
  return fs
    .readdirSync(join(folder, prefix), { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const name = join(prefix, entry.name);
      return entry.isDirectory() ? filesOf(folder, name) : [name];
    });
}

/** Every folder that leads to a file, the innermost first. */
function foldersOf(names: readonly string[]): string[] {
  const folders = new Set(["."]);
  for (const name of names)
    for (let folder = dirname(name); folder !== "."; folder = dirname(folder)) folders.add(folder);
  return [...folders].sort((a, b) => b.length - a.length);
}
