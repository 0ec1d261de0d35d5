// The calls to the system's C library that Bun has no function for.
import { type CString, dlopen, type FFIFunction, FFIType } from "bun:ffi";
import { BnbError } from "./error.ts";

const { cstring, i32, u32 } = FFIType;

/** What both systems have; and the calls of macOS and of Linux, of which each lacks the other's. */
const common = { flock: { args: [i32, i32], returns: i32 }, getenv: { args: [cstring], returns: cstring } } as const;
const ofMac = { renamex_np: { args: [cstring, cstring, u32], returns: i32 } } as const;
const ofLinux = {
  renameat2: { args: [i32, cstring, i32, cstring, u32], returns: i32 },
  memfd_create: { args: [cstring, u32], returns: i32 },
} as const;

const library = process.platform === "darwin" ? "/usr/lib/libSystem.B.dylib" : "libc.so.6";

/** Opens one of the system's own libraries; its functions are looked up when they are first needed. */
function opener<const Symbols extends Record<string, FFIFunction>>(symbols: Symbols) {
  let found: ReturnType<typeof dlopen<Symbols>>["symbols"] | undefined;
  return () => {
    try {
      found ??= dlopen(library, symbols).symbols;
    } catch (cause) {
      throw withoutJit(cause) ?? cause;
    }
    return found;
  };
}

const shared = opener(common);
const mac = opener(ofMac);
const linux = opener(ofLinux);

/** The sentence for Bun's refusal of every call into native code, or `undefined` for another error. */
export function withoutJit(cause: unknown): BnbError | undefined {
  if (!(cause as Error).message.includes("requires the JIT")) return undefined;
  return new BnbError(
    "Bun runs without its JIT, which calls into native code need. Unset BUN_JSC_useJIT; a hardened app on macOS " +
      "needs the entitlement com.apple.security.cs.allow-jit.",
    "unsupported",
    { cause },
  );
}

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
    if (process.platform === "darwin") return mac().renamex_np(text(a), text(b), swap) === 0;
    const here = -100; // AT_FDCWD
    return linux().renameat2(here, text(a), here, text(b), swap) === 0;
  },

  /**
   * Locks an open file for as long as it stays open, also beyond kill -9, for the system itself lets go of the lock.
   *
   * @returns false where another holds it, or the file system has no locks
   */
  lock(descriptor: number): boolean {
    const exclusiveNow = 2 | 4; // LOCK_EX | LOCK_NB
    return shared().flock(descriptor, exclusiveNow) === 0;
  },

  /** A variable of the environment that this process was started with. */
  getenv(name: string): string | undefined {
    const value: CString | string | null = shared().getenv(text(name));
    return value === null ? undefined : String(value);
  },

  /**
   * The descriptor of a new file of memory, which no program that this one starts gets; negative if refused. Of Linux.
   */
  memoryFile(name: string): number {
    const closeOnExec = 1;
    return linux().memfd_create(text(name), closeOnExec);
  },
};
