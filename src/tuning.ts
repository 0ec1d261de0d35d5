// What `bunsandbytes tune` found out about the GPUs of this machine, kept in the user's cache: where it is, and who
// uses it.
import { mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { startedWith } from "./environment.ts";
import { lastError, type NativePointer, native, sizes } from "./native.ts";
import { version } from "./version.ts";

/** Where a GPU's products change from one kernel to the next: csrc/gpu/driver.h says what each means. */
export type Sizes = Record<keyof typeof sizes, number>;

const names = Object.keys(sizes) as (keyof Sizes)[];
/** Work is divided by these. */
const divisors: readonly string[] = ["tilesWanted", "splitLeast"];
const isSize = (name: string, value: unknown) =>
  Number.isInteger(value) && (value as number) >= (divisors.includes(name) ? 1 : 0);

/** What is used on a GPU: the driver's own sizes, or what was measured here; or a file that makes no sense, and why. */
export type Tuning =
  | { readonly state: "not tuned" | "ignored: BNB_TUNE=0" }
  | { readonly state: "tuned"; readonly sizes: Sizes; readonly path: string }
  | { readonly state: "unreadable"; readonly reason: string; readonly path: string };

/** The file, one for all GPUs and versions. */
export function tuningPath(): string {
  const named = startedWith("XDG_CACHE_HOME");
  const usual = process.platform === "darwin" ? join(homedir(), "Library/Caches") : join(homedir(), ".cache");
  return join(named?.startsWith("/") ? named : usual, "bunsandbytes/tune.json");
}

/** What a measurement holds for: another GPU, or another version's kernels, may have other sizes. */
const keyOf = (description: string) => `${description.split(",")[0]}, version ${version}`;

type File = Record<string, Record<string, unknown>>;
const bytesMost = 1 << 20;

function readFile(path: string): File | undefined {
  const found = statSync(path, { throwIfNoEntry: false });
  if (!found) return undefined;
  if (!found.isFile() || found.size > bytesMost) throw new Error(`it is no regular file of up to ${bytesMost} bytes`);
  const file: unknown = JSON.parse(readFileSync(path, "utf8"));
  if (typeof file !== "object" || file === null || Array.isArray(file)) throw new Error("it is no JSON object");
  return file as File;
}

/** What is kept for a GPU. Never throws: what is wrong with the file is told by doctor. */
export function tuningOf(description: string): Tuning {
  if (process.env.BNB_TUNE === "0") return { state: "ignored: BNB_TUNE=0" };
  let path = "";
  try {
    path = tuningPath();
    const kept = readFile(path)?.[keyOf(description)];
    if (!kept) return { state: "not tuned" };
    const wrong = names.find((name) => !isSize(name, kept[name]));
    if (wrong) throw new Error(`${wrong} is ${JSON.stringify(kept[wrong])}, expected a whole number`);
    return { state: "tuned", sizes: Object.fromEntries(names.map((name) => [name, kept[name]])) as Sizes, path };
  } catch (error) {
    return { state: "unreadable", reason: (error as Error).message, path };
  }
}

/** Keeps what was measured, beside what is kept of other GPUs; a file that can't be read is replaced. */
export function keepTuning(description: string, found: Sizes): string {
  const path = tuningPath();
  let file: File = {};
  try {
    file = readFile(path) ?? {};
  } catch {
    // what it said can't be used anyway
  }
  mkdirSync(dirname(path), { recursive: true });
  const partial = `${path}.${process.pid}`;
  writeFileSync(partial, `${JSON.stringify({ ...file, [keyOf(description)]: found }, null, 2)}\n`);
  renameSync(partial, path);
  return path;
}

/** A GPU's sizes as they are. @throws BnbError (`unsupported`) of a device that has none */
export function readSizes(pointer: NativePointer): Sizes {
  return Object.fromEntries(names.map((name) => [name, setSize(pointer, name, -1)])) as Sizes;
}

export function writeSizes(pointer: NativePointer, wanted: Sizes): void {
  for (const name of names) setSize(pointer, name, wanted[name]);
}

function setSize(pointer: NativePointer, name: keyof Sizes, value: number): number {
  const now = native.bnb_device_size(pointer, sizes[name], value);
  if (now < 0) throw lastError();
  return now;
}
