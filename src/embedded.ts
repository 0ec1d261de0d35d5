// Opens the native library from inside a single-file executable: the system's loader needs a file, in a place
// that can be written and that may hold programs.
import { createHash } from "node:crypto";
import {
  constants,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { BnbError } from "./error.ts";
import { libc } from "./libc.ts";
import { version } from "./version.ts";

/**
 * Gives an embedded file a path that the system's loader can open, and returns what `open` does with it. No other user
 * can put a file of his own in its place.
 *
 * Bun does the same by itself, but in one folder only, which may be missing, read-only, or mounted `noexec`. Here every
 * place is tried in turn: memory on Linux, which leaves no file behind and takes the least time, then the folders for
 * temporary files, then the home folder. There the file stays, so that the Workers of this process, and the next one,
 * load the same.
 *
 * @throws BnbError (`unsupported`) if every place fails, with what each one's failure was
 */
export function openEmbedded<T>(embedded: string, open: (path: string) => T): T {
  const bytes = readFileSync(embedded);
  const folders = [tmpdir, homedir]; // homedir fails for a user whom the system does not know
  if (tmpdir() !== "/tmp") folders.splice(1, 0, () => "/tmp");
  const places = folders.map((folder) => () => inFolder(folder(), bytes, open));
  if (process.platform === "linux") places.unshift(() => inMemory(bytes, open));

  const failures: string[] = [];
  for (const place of places) {
    try {
      return place();
    } catch (error) {
      failures.push((error as Error).message);
    }
  }
  throw new BnbError(
    `The native library in this executable can't be opened: ${failures.join("; ")}. ` +
      "Set TMPDIR to a folder that can be written, on a file system that may hold programs.",
    "unsupported",
  );
}

/**
 * In a folder that only this user can enter, under a name that tells the contents. It is the same file for all who open
 * it: of another one the system would load a second copy, with queues, pools and limits of its own, as a Worker that
 * wrote its own would have.
 */
function inFolder<T>(parent: string, bytes: Uint8Array, open: (path: string) => T): T {
  const folder = join(parent, `.bunsandbytes-${process.getuid?.()}`);
  ownFolder(folder);
  const path = join(folder, `libbunsandbytes-${version}-${digest(bytes).slice(0, 16)}`);
  const made = settle(path, bytes);
  try {
    return open(path);
  } catch (error) {
    if (made) rmSync(path, { force: true }); // the place may not hold programs
    throw error;
  }
}

const digest = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** Makes the folder, or sees that the one that is there is this user's alone. */
function ownFolder(folder: string): void {
  try {
    mkdirSync(folder, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  const { uid, mode } = lstatSync(folder);
  const isOwn = (mode & constants.S_IFMT) === constants.S_IFDIR && uid === process.getuid?.() && (mode & 0o077) === 0;
  if (!isOwn) throw new Error(`${folder} is not a folder that this user alone can enter`);
}

/** Puts the file in its place, whole or not at all, unless it stands there; whether it had to be written. */
function settle(path: string, bytes: Uint8Array): boolean {
  if (isIntact(path, bytes)) return false;
  const partial = `${path}.${crypto.randomUUID()}`;
  try {
    writeFileSync(partial, bytes, { mode: 0o500, flag: "wx" });
    try {
      linkSync(partial, path); // another thread that was first keeps its file, for it may be loaded already
    } catch {
      if (isIntact(path, bytes)) return false;
      renameSync(partial, path); // over one that was damaged, or where there are no links
    }
    return true;
  } finally {
    rmSync(partial, { force: true });
  }
}

function isIntact(path: string, bytes: Uint8Array): boolean {
  try {
    return lstatSync(path).isFile() && digest(readFileSync(path)) === digest(bytes);
  } catch {
    return false; // it is not there, or can't be read
  }
}

/**
 * In a file of memory, memfd_create(2). It stays open, for the Workers of this process: the system takes a second copy
 * for another library, with threads and devices of its own.
 */
function inMemory<T>(bytes: Uint8Array, open: (path: string) => T): T {
  const name = `libbunsandbytes-${version}`;
  const folder = "/proc/self/fd";
  const known = readdirSync(folder).find((descriptor) => isWhole(join(folder, descriptor), name, bytes.length));
  return open(join(folder, known ?? String(memoryFile(name, bytes))));
}

/** Whether a descriptor is this file of memory, and another thread is not still writing it. */
function isWhole(path: string, name: string, length: number): boolean {
  try {
    return readlinkSync(path) === `/memfd:${name} (deleted)` && statSync(path).size === length;
  } catch {
    return false; // closed since it was listed, such as the one that listed it
  }
}

function memoryFile(name: string, bytes: Uint8Array): number {
  const descriptor = libc.memoryFile(name);
  if (descriptor < 0) throw new Error("memfd_create failed");
  writeFileSync(descriptor, bytes);
  return descriptor;
}
