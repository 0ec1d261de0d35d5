// Owns opening the native library from inside a single-file executable: the system's loader needs a file, for as long as it
// loads, in a place that can be written and that may hold programs.
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { BnbError } from "./error.ts";
import { libc } from "./libc.ts";
import { version } from "./version.ts";

/**
 * Gives an embedded file a path for as long as `open` runs, and returns what that returns. No file is left behind, and no
 * other user can put a file of his own in its place.
 *
 * Bun does the same by itself, but in one folder only, where the file stays; and that folder may be missing, read-only, or
 * mounted `noexec`. Here every place is tried in turn: memory on Linux, which needs no folder and takes the least time, then
 * the folders for temporary files, then the home folder.
 *
 * @throws BnbError (`unsupported`) if every place fails, with what each one's failure was
 */
export function openEmbedded<T>(embedded: string, open: (path: string) => T): T {
  const bytes = readFileSync(embedded);
  const folders = [tmpdir, () => "/tmp", homedir]; // homedir fails for a user whom the system does not know
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

/** In a folder of its own that only this user can enter. The system keeps what it has loaded when the file is gone. */
function inFolder<T>(parent: string, bytes: Uint8Array, open: (path: string) => T): T {
  const folder = mkdtempSync(join(parent, ".bunsandbytes-"));
  try {
    const path = join(folder, "libbunsandbytes");
    writeFileSync(path, bytes, { mode: 0o500 });
    return open(path);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/**
 * In a file of memory, memfd_create(2). It stays open, for the Workers of this process: the system takes a second copy for
 * another library, with threads and devices of its own.
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
