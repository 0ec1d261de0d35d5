// The power cut: from every change that a run made to the disk it works out what a cut after each may leave, puts
// that on a real disk, and sees that a model is there and every file of the user's.
import fs from "node:fs";
import { basename, dirname, join } from "node:path";
import { openSafetensors } from "../../src/checkpoint/safetensors.ts";
import type { Change } from "./hook.ts";
import { expectThat, prepare, run, stateOf } from "./interrupted.ts";
import { Random } from "./random.ts";

/** A file, folder or link, whatever names it has. Files have their writes by number, folders their entries. */
interface Inode {
  readonly kind: "file" | "folder" | "link";
  readonly target?: string;
  /** What was there before the run. */
  readonly data?: Buffer;
}

/**
 * A change of names: each of these entries leads to that inode afterwards, or to none. All of it happens, or nothing.
 */
interface Naming {
  readonly entries: readonly { readonly folder: Inode; readonly name: string; readonly to: Inode | undefined }[];
  /** The number of the first sync of a folder in it that came after it: from then on it has happened. */
  forcedAt: number;
}

interface Write {
  readonly inode: Inode;
  readonly at: number;
  readonly data: Buffer;
  forcedAt: number;
}

type Tree = Map<Inode, Map<string, Inode>>;

/** All changes of a run, by inodes instead of by paths. */
class History {
  readonly root: Inode = { kind: "folder" };
  readonly tree: Tree = new Map([[this.root, new Map()]]);
  readonly before: Tree;
  /** In order; a sync has no change of its own. */
  readonly steps: (Naming | Write | undefined)[] = [];

  constructor(
    readonly folder: string,
    changes: readonly Change[],
    snapshot: readonly { readonly path: string; readonly data?: Buffer }[],
  ) {
    for (const { path, data } of snapshot) {
      const inode: Inode = data ? { kind: "file", data } : { kind: "folder" };
      this.tree.set(inode, new Map());
      const { folder: parent, name } = this.#place(path);
      this.tree.get(parent)!.set(name, inode);
    }
    this.before = new Map([...this.tree].map(([inode, entries]) => [inode, new Map(entries)]));
    for (const change of changes) this.#take(change);
  }

  #find(path: string): Inode {
    if (path === this.folder) return this.root;
    const { folder, name } = this.#place(path);
    const inode = this.tree.get(folder)?.get(name);
    if (!inode) throw new Error(`${path} is changed, and was never made by a call that is known`);
    return inode;
  }

  #place(path: string): { folder: Inode; name: string } {
    return { folder: this.#find(dirname(path)), name: basename(path) };
  }

  #take(change: Change): void {
    const naming = (...entries: Naming["entries"]) => {
      for (const { folder, name, to } of entries) {
        if (to) this.tree.get(folder)!.set(name, to);
        else this.tree.get(folder)!.delete(name);
      }
      this.steps.push({ entries, forcedAt: Number.POSITIVE_INFINITY });
    };
    const made = (inode: Inode) => {
      this.tree.set(inode, new Map());
      naming({ ...this.#place(change.path), to: inode });
    };
    if (change.op === "create") made({ kind: "file" });
    else if (change.op === "mkdir") made({ kind: "folder" });
    else if (change.op === "symlink") made({ kind: "link", target: change.target });
    else if (change.op === "unlink") naming({ ...this.#place(change.path), to: undefined });
    else if (change.op === "link") naming({ ...this.#place(change.to), to: this.#find(change.path) });
    else if (change.op === "rename")
      naming(
        { ...this.#place(change.to), to: this.#find(change.path) },
        { ...this.#place(change.path), to: undefined },
      );
    else if (change.op === "exchange")
      naming(
        { ...this.#place(change.to), to: this.#find(change.path) },
        { ...this.#place(change.path), to: this.#find(change.to) },
      );
    else if (change.op === "write") {
      const data = Buffer.from(change.data, "base64");
      const inode = this.#find(change.path);
      this.steps.push({ inode, at: change.at, data, forcedAt: Number.POSITIVE_INFINITY });
    } else this.#sync(this.#find(change.path));
  }

  #sync(inode: Inode): void {
    for (const step of this.steps) {
      if (!step || step.forcedAt < this.steps.length) continue;
      const isIn = "entries" in step ? step.entries.some(({ folder }) => folder === inode) : step.inode === inode;
      if (isIn) step.forcedAt = this.steps.length;
    }
    this.steps.push(undefined);
  }

  /** What a cut after so many steps leaves, of those that were not forced by then, if `happens` says so. */
  after(count: number, happens: (step: Naming | Write) => boolean): { tree: Tree; writes: Map<Inode, Write[]> } {
    const tree: Tree = new Map([...this.tree.keys()].map((inode) => [inode, new Map(this.before.get(inode))]));
    const writes = new Map<Inode, Write[]>();
    for (const step of this.steps.slice(0, count)) {
      if (!step || !(step.forcedAt < count || happens(step))) continue;
      if ("entries" in step) {
        for (const { folder, name, to } of step.entries) {
          if (to) tree.get(folder)!.set(name, to);
          else tree.get(folder)!.delete(name);
        }
      } else writes.set(step.inode, [...(writes.get(step.inode) ?? []), step]);
    }
    return { tree, writes };
  }
}

/** Puts what a cut left on the real disk. */
function materialise({ tree, writes }: ReturnType<History["after"]>, root: Inode, path: string): void {
  const contents = (inode: Inode) => {
    const parts = writes.get(inode) ?? [];
    const length = parts.reduce((end, { at, data }) => Math.max(end, at + data.length), inode.data?.length ?? 0);
    const bytes = Buffer.alloc(length);
    inode.data?.copy(bytes);
    for (const { at, data } of parts) data.copy(bytes, at);
    return bytes;
  };
  const walk = (inode: Inode, at: string) => {
    if (inode.kind === "link") fs.symlinkSync(inode.target!, at);
    else if (inode.kind === "file") fs.writeFileSync(at, contents(inode));
    else {
      fs.mkdirSync(at);
      for (const [name, to] of tree.get(inode)!) walk(to, join(at, name));
    }
  };
  walk(root, path);
}

/** A key of what a cut leaves, so that what is the same is looked at once. */
function keyOf({ tree, writes }: ReturnType<History["after"]>, root: Inode, ids: Map<object, number>): string {
  const id = (object: object) => {
    if (!ids.has(object)) ids.set(object, ids.size);
    return ids.get(object);
  };
  const walk = (inode: Inode): string => {
    const own = `${id(inode)}:${(writes.get(inode) ?? []).map(id).join(",")}`;
    return `${own}{${[...tree.get(inode)!].map(([name, to]) => `${name}=${walk(to)}`).join(";")}}`;
  };
  return walk(root);
}

export interface PowerReport {
  /** Changes of the disk, after each of which the power was cut. */
  cuts: number;
  /** Different disks that were left. */
  disks: number;
  readonly states: Record<string, number>;
}

/** Files of the user's in the folder that is written to. */
const mine = ["mine.txt", "onnx/mine.txt", "sub/deep/mine.txt"];

/** What is written, and onto what: a folder onto nothing, over another, over one that can't be exchanged; a file. */
const kinds = [
  { over: false, moves: false, file: false, allowed: ["absent", "nf4"] },
  { over: true, moves: false, file: false, allowed: ["fp4", "nf4"] },
  { over: true, moves: true, file: false, allowed: ["fp4", "nf4", "nothing to load"] },
  { over: true, moves: false, file: true, allowed: ["fp4", "a new file"] },
] as const;

type Kind = (typeof kinds)[number];

/**
 * Cuts the power after every change of a run: onto nothing, over another model, where folders can't be exchanged, and
 * where one file replaces another.
 *
 * @param random how many random choices of what was not forced are tried a cut, beside all, nothing, names only and
 *   data only
 */
export async function powerCuts(folder: string, seed: number, random: number): Promise<PowerReport> {
  const report: PowerReport = { cuts: 0, disks: 0, states: {} };
  for (const kind of kinds) await cutRun(folder, kind, new Random(seed), random, report);
  return report;
}

async function cutRun(folder: string, kind: Kind, random: Random, times: number, report: PowerReport): Promise<void> {
  const job = await prepare(folder, kind.over);
  const out = dirname(job.output);
  if (kind.over)
    for (const name of mine) {
      fs.mkdirSync(dirname(join(job.output, name)), { recursive: true });
      fs.writeFileSync(join(job.output, name), name);
    }
  const snapshot = listed(out);
  const log = join(folder, "changes");
  const { error } = run({ ...job, moves: kind.moves, file: kind.file, record: log });
  expectThat(error === undefined, `the run that is recorded failed: ${error}`);
  const history = new History(out, JSON.parse(fs.readFileSync(log, "utf8")), snapshot);
  const seen = new Set<string>();
  const ids = new Map<object, number>();
  for (let count = 0; count <= history.steps.length; count++) {
    report.cuts++;
    const choices = [
      () => true,
      () => false,
      (step: object) => "entries" in step,
      (step: object) => !("entries" in step),
    ];
    for (let i = 0; i < times; i++) choices.push(() => random.oneIn(2));
    for (const happens of choices) {
      const left = history.after(count, happens);
      const key = keyOf(left, history.root, ids);
      if (seen.has(key)) continue;
      seen.add(key);
      report.disks++;
      fs.rmSync(out, { recursive: true, force: true });
      materialise(left, history.root, out);
      const state = await look(
        job.output,
        kind,
        `a cut after change ${count} of ${history.steps.length} ${JSON.stringify(kind)}`,
      );
      report.states[state] = (report.states[state] ?? 0) + 1;
    }
  }
}

async function look(output: string, { over, file, allowed }: Kind, where: string): Promise<string> {
  const isNew = file && fs.readFileSync(join(output, "model.safetensors")).includes("a new file");
  const state = isNew ? newFile(output) : await stateOf(output).catch((error: Error) => error.message);
  expectThat(
    (allowed as readonly string[]).includes(state),
    `${where}: the output is ${state}, expected ${allowed.join(" or ")}`,
  );
  if (over)
    for (const name of mine) {
      const path = join(output, name);
      expectThat(fs.existsSync(path) && fs.readFileSync(path, "utf8") === name, `${where}: ${name} is gone`);
    }
  return state;
}

/** The file that quantize.ts writes in the place of a model's, if it is whole. */
function newFile(output: string): string {
  using file = openSafetensors(join(output, "model.safetensors"));
  return file.tensor("a new file").bytes.every((byte) => byte === 7) ? "a new file" : "a new file with other data";
}

/** Everything below a folder, what is in a folder after it. */
function listed(folder: string): { path: string; data?: Buffer }[] {
  return fs.readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? [{ path }, ...listed(path)] : [{ path, data: fs.readFileSync(path) }];
  });
}
