// Opens the native library: what is looked at first, and for each way to fail a sentence with the next step.
import { dlopen, type FFIFunction } from "bun:ffi";
import { openEmbedded } from "./embedded.ts";
import { BnbError } from "./error.ts";
import { inspectExecutable } from "./executable.ts";
import { withoutJit } from "./libc.ts";
import { findLibrary, namedLibrary } from "./library.ts";
import { version } from "./version.ts";

const platform = `${process.platform}-${process.arch}`;

/**
 * Opens the native library and gives its functions.
 *
 * @throws BnbError (`unsupported`) if it is missing, damaged, for another platform or of another version, or if Bun
 * runs without the JIT that its FFI needs
 */
export function openLibrary<const Symbols extends Record<string, FFIFunction>>(symbols: Symbols) {
  const { path, origin } = findLibrary();
  if (origin !== "executable") checkFile(path);
  const open = (file: string) => load(file, symbols);
  const { symbols: native } = origin === "executable" ? openEmbedded(path, open) : open(path);
  const found = String((native.bnb_version as unknown as () => unknown)());
  if (found !== version) throw otherVersion(path, `it is ${found}`);
  return native;
}

function checkFile(path: string): void {
  let file: ReturnType<typeof inspectExecutable>;
  try {
    file = inspectExecutable(path);
  } catch (cause) {
    throw refusal(`${path} can't be read: ${(cause as Error).message}. Check its permissions. ${remedy()}`, cause);
  }
  if (!file.platform) throw refusal(`${path} is no native library, or a damaged one. ${remedy()}`);
  if (file.platform !== platform)
    throw refusal(`${path} is a library for ${file.platform}, and this is ${platform}. ${remedy()}`);
  if (file.bytes < file.bytesPromised)
    throw refusal(`${path} was cut short: ${file.bytes} of ${file.bytesPromised} bytes are there. ${remedy()}`);
}

function load<const Symbols extends Record<string, FFIFunction>>(path: string, symbols: Symbols) {
  try {
    return dlopen(path, symbols);
  } catch (cause) {
    throw refusedByLoader(path, cause as Error);
  }
}

/** What the system's loader said, as a sentence with the next step. */
export function refusedByLoader(path: string, cause: Error): BnbError {
  const { message } = cause;
  const jitless = withoutJit(cause);
  if (jitless) return jitless;
  if (/^Error (loading shared library|relocating)/m.test(message))
    return refusal(
      `${path} needs glibc, and the C library here is musl, as on Alpine: ${message}. Use a system with glibc, such as ` +
        "the image oven/bun:debian.",
      cause,
    );
  if (/different Team IDs|library validation/i.test(message))
    return refusal(
      `macOS does not load ${path} into this signed program: ${message}. Sign the program with the entitlement ` +
        "com.apple.security.cs.disable-library-validation: docs/executables.md has the whole list.",
      cause,
    );
  const missing = /Symbol "(\w+)" not found/.exec(message)?.[1];
  if (missing) return otherVersion(path, `it lacks ${missing}`);
  return refusal(`The system does not load ${path}: ${message}. ${remedy()}`, cause);
}

function otherVersion(path: string, how: string): BnbError {
  return refusal(`${path} is of another version than this package, ${version}: ${how}. ${remedy()}`);
}

function refusal(sentence: string, cause?: unknown): BnbError {
  return new BnbError(sentence, "unsupported", { cause });
}

function remedy(): string {
  return namedLibrary()
    ? `BNB_LIBRARY names it: unset that, or give the path of a library ${version} for ${platform}.`
    : 'In a clone, build it with "bun run setup"; elsewhere, install the package again.';
}
