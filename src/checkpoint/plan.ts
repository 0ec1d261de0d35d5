// The first step of writing a model: all that can be foreseen is checked before any work is done.
import fs from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { BnbError } from "../error.ts";
import { found, isInside, isLink, isTooLong, type OtherFile, otherFiles } from "./folder.ts";

/** Options of everything that writes a model's folder. */
export interface OutputOptions {
  /** Where to write. It must not exist, or be empty, unless `force`. */
  readonly output: string;
  /** Replace the weights, config.json and other files of the same names that are there. */
  readonly force?: boolean | undefined;
}

/** What will be written, as far as it is known before. */
export interface OutputJob {
  /** What is read meanwhile: the output may not replace it. A folder's other files come along. */
  readonly input?: string | undefined;
  /** Bytes of the weights. */
  readonly bytes: number;
}

/** Where a folder or file is to appear. */
export interface Place {
  /** Without links, so that it means the same until the end. */
  readonly path: string;
  /** Folders that must be made first, the outermost first. */
  readonly parents: readonly string[];
  /** Where the stage is made, on the file system of `path`: beside it, or in it where that can't be replaced. */
  readonly home: string;
}

export interface Plan extends Place {
  /** As it was given, for sentences. */
  readonly output: string;
  readonly force: boolean;
  /** Whether the folder itself must stay, since it can't be replaced or this process is in it: its files are moved. */
  readonly stays: boolean;
  /** Files of the input that come along. */
  readonly carried: readonly OtherFile[];
}

/** The hidden folders in which outputs are made: beside each other's names they are no content. */
export const workName = /^\..+\.[0-9a-f]{16}\.tmp$/;

/** Where a path that somebody gave is. @throws BnbError for what can't be one */
export function placeOf(path: string, argument: string): Place {
  if (typeof path !== "string" || path === "" || path.includes("\0"))
    throw new BnbError(`${argument} ${JSON.stringify(path)} is no path; name where to write.`);
  const wanted = resolve(path);
  if (isTooLong(wanted))
    throw new BnbError(`${argument} ${path} is longer than names of files may be; choose a shorter one.`);
  const missing: string[] = [];
  let there = wanted;
  while (!found(there)) {
    missing.unshift(basename(there));
    there = dirname(there);
  }
  const real = realOf(there, path, argument);
  if (missing.length > 0 && !fs.statSync(real).isDirectory())
    throw new BnbError(`${argument} ${path} lies below ${real}, which is no folder; choose another place.`);
  const target = join(real, ...missing);
  if (target === dirname(target))
    throw new BnbError(`${argument} ${path} is the root of all folders; choose one in it.`);
  const parents = missing.slice(0, -1).map((_, index) => join(real, ...missing.slice(0, index + 1)));
  return { path: target, parents, home: isFixed(target) ? target : dirname(target) };
}

/** Whether a folder can be filled, but not replaced: it is a mount, or this user may not write beside it. */
function isFixed(path: string): boolean {
  if (!found(path)?.isDirectory()) return false;
  if (isMount(path)) return true;
  try {
    fs.accessSync(dirname(path), fs.constants.W_OK | fs.constants.X_OK);
    return false;
  } catch {
    return true;
  }
}

function realOf(there: string, path: string, argument: string): string {
  try {
    return fs.realpathSync(there);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (!isLink(there) || (code !== "ENOENT" && code !== "ELOOP")) throw cause;
    const where = `${there} is a link to ${fs.readlinkSync(there)}`;
    const fault = code === "ELOOP" ? "in a circle" : "which does not exist";
    throw new BnbError(`${argument} ${path} can't be written: ${where}, ${fault}. Remove the link.`);
  }
}

/** Whether another file system begins at a folder, or the same one a second time: nothing is renamed across that. */
function isMount(path: string, mounts = mountPoints()): boolean {
  const folder = fs.statSync(path, { throwIfNoEntry: false });
  if (!folder?.isDirectory()) return false;
  return folder.dev !== fs.statSync(dirname(path)).dev || mounts.has(path);
}

/** Where Linux has mounted something; elsewhere each file system has a number of its own, which is enough. */
function mountPoints(): ReadonlySet<string> {
  const path = "/proc/self/mountinfo";
  const table = fs.existsSync(path) ? fs.readFileSync(path, "utf8") : "";
  const unescaped = (field: string) =>
    field.replace(/\\(\d{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
  return new Set(table.split("\n").map((line) => unescaped(line.split(" ")[4] ?? "")));
}

/** What stands at a path now. @throws BnbError if that is no folder */
export function kindOf(path: string, output: string): "absent" | "empty" | "full" {
  const there = found(path);
  if (!there) return "absent";
  if (!there.isDirectory()) throw new BnbError(`output ${output} is a file, expected a directory.`);
  return fs.readdirSync(path).some((name) => !workName.test(name)) ? "full" : "empty";
}

/** @throws BnbError where a folder with something in it would be replaced without `force` */
export function checkKind(kind: ReturnType<typeof kindOf>, { output, force }: Pick<Plan, "output" | "force">): void {
  if (kind !== "full" || force) return;
  throw new BnbError(`output ${output} is not empty; choose another directory, or replace its files with --force.`);
}

/** @throws BnbError, or the system's error, for whatever would fail later and can be seen now */
export function planOutput({ output, force = false }: OutputOptions, { input, bytes }: OutputJob): Plan {
  const place = placeOf(output, "output");
  const { path } = place;
  const kind = kindOf(path, output);
  if (input !== undefined) checkApart(path, output, input);
  checkKind(kind, { output, force });
  const carried = input !== undefined && fs.statSync(input).isDirectory() ? otherFiles(input) : [];
  if (kind === "full") checkReplaceable(path, output, ["config.json", ...carried.map(({ name }) => name)]);
  const existing = place.parents[0] === undefined ? place.home : dirname(place.parents[0]);
  fs.accessSync(existing, fs.constants.W_OK | fs.constants.X_OK);
  checkSpace(
    existing,
    output,
    carried.reduce((sum, file) => sum + file.bytes, bytes),
  );
  return { ...place, output, force, stays: place.home === path || isInside(process.cwd(), path), carried };
}

function checkApart(path: string, output: string, input: string): void {
  const real = fs.realpathSync(input);
  const isFolder = fs.statSync(real).isDirectory();
  if (path === real || (!isFolder && path === dirname(real)))
    throw new BnbError(`output ${output} is where the input is; choose another directory.`);
  if (isInside(real, path))
    throw new BnbError(`output ${output} has the input ${input} in it; choose another directory.`);
  if (isFolder && isInside(path, real))
    throw new BnbError(`output ${output} lies in the input ${input}; choose a directory beside it.`);
}

/** @throws BnbError where a file would stand in a folder's place, or the other way round, or a file system is inside */
export function checkReplaceable(path: string, output: string, names: readonly string[]): void {
  const isFolder = (name: string) => found(join(path, name))?.isDirectory();
  for (const name of names) {
    if (isFolder(name)) throw new BnbError(`output ${output} has a folder ${name}, where a file must stand; move it.`);
    for (let above = dirname(name); above !== "."; above = dirname(above))
      if (isFolder(above) === false)
        throw new BnbError(`output ${output} has a file ${above}, where a folder must stand; move it.`);
  }
  const mounts = mountPoints();
  const walk = (folder: string) => {
    for (const entry of fs.readdirSync(folder, { withFileTypes: true })) {
      if (!entry.isDirectory() || workName.test(entry.name)) continue;
      const inner = join(folder, entry.name);
      if (isMount(inner, mounts))
        throw new BnbError(`output ${output} has another file system in it, at ${inner}; unmount it.`);
      walk(inner);
    }
  };
  walk(path);
}

function checkSpace(folder: string, output: string, bytes: number): void {
  const { blocks, bavail, bfree, bsize } = fs.statfsSync(folder);
  const free = (process.getuid?.() === 0 ? bfree : bavail) * bsize;
  if (blocks === 0 || bytes <= free) return; // some file systems don't know
  const needs = `output ${output} needs ${bytes} bytes, and ${free} are free`;
  throw new BnbError(`${needs}; make room, or choose another disk.`);
}
