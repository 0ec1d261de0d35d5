// Owns the calls to the system's C library that Bun has no function for.
import { type CString, dlopen, FFIType } from "bun:ffi";

const { cstring, i32, u32 } = FFIType;
const isMac = process.platform === "darwin";

/** What both systems have. */
const common = { flock: { args: [i32, i32], returns: i32 }, getenv: { args: [cstring], returns: cstring } } as const;

/** renamex_np(2) of macOS, renameat2(2) and memfd_create(2) of Linux: each system has a call that the other lacks. */
const ofMac = { renamex_np: { args: [cstring, cstring, u32], returns: i32 } } as const;
const ofLinux = {
  renameat2: { args: [i32, cstring, i32, cstring, u32], returns: i32 },
  memfd_create: { args: [cstring, u32], returns: i32 },
} as const;

const mac = isMac ? dlopen("libSystem.B.dylib", { ...common, ...ofMac }).symbols : undefined;
const linux = isMac ? undefined : dlopen("libc.so.6", { ...common, ...ofLinux }).symbols;
const { flock, getenv } = (mac ?? linux)!;

/** Bun's FFI makes C text of a string, and its types know only what it gives back. */
const text = (value: string) => value as unknown as CString;

/** An object, so that the fault suite can put a function of its own in a call's place. */
export const libc = {
  /**
   * Exchanges two paths of one file system in one step: at no instant is either absent.
   *
   * @returns false where it was refused: by the file system, which may lack this, or for a reason that renaming has too
   */
  exchange(a: string, b: string): boolean {
    const swap = 2; // RENAME_SWAP and RENAME_EXCHANGE are the same number
    if (mac) return mac.renamex_np(text(a), text(b), swap) === 0;
    const here = -100; // AT_FDCWD
    return linux!.renameat2(here, text(a), here, text(b), swap) === 0;
  },

  /**
   * Locks an open file for as long as it stays open, also beyond kill -9, for the system itself lets go of the lock.
   *
   * @returns false where another holds it, or the file system has no locks
   */
  lock(descriptor: number): boolean {
    const exclusiveNow = 2 | 4; // LOCK_EX | LOCK_NB
    return flock(descriptor, exclusiveNow) === 0;
  },

  /** A variable of the environment that this process was started with; Bun adds to process.env what a `.env` file says. */
  startedWith(name: string): string | undefined {
    const value: CString | string | null = getenv(text(name));
    return value === null ? undefined : String(value);
  },

  /** The descriptor of a new file of memory, which other programs that this one starts do not get; negative if refused. */
  memoryFile(name: string): number {
    const closeOnExec = 1;
    return linux ? linux.memfd_create(text(name), closeOnExec) : -1;
  },
};
