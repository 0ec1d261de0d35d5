// The way to the native library: which file it is on this platform, and what to say when it is missing.
import { existsSync, readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { startedWith } from "./environment.ts";
import { BnbError } from "./error.ts";

/** A native library, and how it was found. */
export interface LibraryFile {
  readonly path: string;
  /**
   * - `"BNB_LIBRARY"`: the environment names it;
   * - `"package"`: it is where package.json's `imports` say: in the package, or in zig-out of a clone;
   * - `"executable"`: it is embedded in this single-file executable, and the system's loader can't see it there.
   */
  readonly origin: "BNB_LIBRARY" | "package" | "executable";
}

/** The native library that the environment names. */
export function namedLibrary(): string | undefined {
  return startedWith("BNB_LIBRARY");
}

/**
 * The native library: what `BNB_LIBRARY` in the environment names, else the one for this platform that came with this
 * code.
 *
 * @throws BnbError (`unsupported`) if there is none, with the next step
 */
export function findLibrary(): LibraryFile {
  const forced = namedLibrary();
  if (forced) {
    const path = resolve(forced);
    if (existsSync(path)) return { path, origin: "BNB_LIBRARY" };
    throw missing(`BNB_LIBRARY names ${path}, which does not exist. Unset it, or give the path of libbunsandbytes.`);
  }
  const path = placed(ownLibrary());
  return { path, origin: path.startsWith("/$bunfs/") ? "executable" : "package" };
}

/**
 * CUDA's kernels as the library takes them; undefined where none came with this code, as in a clone whose setup was not
 * asked for them.
 */
export function cudaKernels(): Uint8Array | undefined {
  const path = ownKernels();
  const bytes = path === undefined ? new Uint8Array() : readFileSync(placed(path));
  if (!bytes.length) return undefined;
  try {
    return Bun.zstdDecompressSync(bytes);
  } catch {
    return bytes; // damaged, and so the library will find it, and say so of CUDA
  }
}

/**
 * The path of a file that came with this code. A bundle that is no executable names it relative to itself, where the
 * system would look in the working directory.
 */
function placed(own: string): string {
  const paths = [thisFolder(), import.meta.dir].map((folder) => resolve(folder, own));
  return paths.find((path) => existsSync(path)) ?? paths[0]!;
}

/**
 * The folder of the file that runs. In a bundle as CommonJS, and so with `--bytecode`, Bun writes down import.meta.dir
 * as it was where the bundle was made (oven-sh/bun#39715); a stack knows better.
 */
function thisFolder(): string {
  const frame = new Error().stack?.split("\n")[1] ?? "";
  const file = /^ +at (?:.*\()?(\/.+?):\d+:\d+\)?$/.exec(frame)?.[1];
  return file ? dirname(file) : import.meta.dir;
}

/**
 * The library for this platform that the package, the clone or the executable has.
 *
 * `bun build --compile` knows the platform that it compiles for: it takes these conditions as constants, drops the
 * branches that fail, and so embeds one library. `require` keeps a module from being looked at before its branch is
 * taken: a clone has the libraries only that were built there.
 */
function ownLibrary(): string {
  try {
    if (process.platform === "darwin" && process.arch === "arm64") return require("./platform/darwin-arm64").default;
    if (process.platform === "darwin" && process.arch === "x64") return require("./platform/darwin-x64").default;
    if (process.platform === "linux" && process.arch === "arm64") return require("./platform/linux-arm64").default;
    if (process.platform === "linux" && process.arch === "x64") return require("./platform/linux-x64").default;
  } catch (error) {
    if ((error as { code?: string }).code !== "ERR_MODULE_NOT_FOUND") throw error;
    throw missing(
      `The native library for ${process.platform}-${process.arch} is missing. In a clone, build it with "bun run setup"; ` +
        "elsewhere, install the package again.",
    );
  }
  throw missing(
    `There is no native library for ${process.platform}-${process.arch}, only for macOS and Linux on arm64 and x64. ` +
      "One that you built yourself can be named by BNB_LIBRARY.",
  );
}

/** They go into executables for Linux alone: NVIDIA has no driver for macOS. */
function ownKernels(): string | undefined {
  try {
    if (process.platform === "linux") return require("./platform/kernels").default;
  } catch (error) {
    if ((error as { code?: string }).code !== "ERR_MODULE_NOT_FOUND") throw error;
  }
  return undefined;
}

const missing = (sentence: string) => new BnbError(sentence, "unsupported");
