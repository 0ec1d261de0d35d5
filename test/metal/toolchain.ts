// Owns the calls of zig's clang that compile and link translated kernels, and the cache of the results.

import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { atExit, countersFolder, countingClang, countingFlags, tellCounted } from "../../scripts/coverage/counters.ts";
import { appleHeader } from "../../scripts/msl/apple.ts";
import { firstError, libraryFolder, zig } from "../../scripts/msl/clang.ts";

const here = import.meta.dir;
const root = join(here, "../..");
const runtime = join(here, "runtime");
const translator = join(root, "scripts/msl");
const cache = join(root, ".cache/metal");

/** What a function that is neither precise:: nor fast:: is taken for: Metal's compile options say. */
export type Functions = "precise" | "fast";

/** `"fast"`: optimised, buffers between guard pages. `"check"`: every access is followed. */
export type Mode = "fast" | "check";

const undefinedChecks =
  "alignment,array-bounds,local-bounds,shift-exponent,integer-divide-by-zero,float-cast-overflow,unreachable,return," +
  "signed-integer-overflow,unsigned-integer-overflow";

const commonFlags = [
  ...["-std=c++20", "-ffreestanding", "-nostdinc", "-nostdinc++", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"],
  ...["-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-lax-vector-conversions", "-march=x86_64_v3"],
  ...["-Xclang", "-ffloat16-excess-precision=none", "-gline-tables-only", "-gdwarf-4", "-ferror-limit=5"],
  ...[
    "-Wno-everything",
    "-Werror=uninitialized",
    "-Werror=sometimes-uninitialized",
    "-Werror=vla",
    "-Werror=return-type",
    "-Werror=c++11-narrowing",
  ],
];

const modeFlags: Readonly<Record<Mode, readonly string[]>> = {
  // Contraction is on here and off in the checked build, for Metal promises neither: results must not depend on it.
  fast: ["-O2", "-ffp-contract=on", "-fno-sanitize=all", "-DSIM_IS_CHECKED=false"],
  check: [
    ...["-O1", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern", "-fno-vectorize", "-fno-slp-vectorize"],
    ...[
      "-fsanitize=thread",
      "-mllvm",
      "-tsan-instrument-func-entry-exit=0",
      "-mllvm",
      "-tsan-instrument-read-before-write=1",
    ],
    ...["-Xclang", `-fsanitize=${undefinedChecks}`, "-Xclang", `-fsanitize-recover=${undefinedChecks}`],
    ...["-DSIM_IS_CHECKED=true", "-DSIM_CHECKED"],
  ],
};

function listFiles(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: "utf8" })
    .filter((file) => /\.(c|h|ts)$/.test(file))
    .sort();
}

let toolchainKey: string | undefined;

/** Changes whenever the translator, the runtime or zig does. */
function toolchain(): string {
  if (toolchainKey) return toolchainKey;
  const hash = new Bun.CryptoHasher("sha256");
  hash.update(zig(["version"]).stdout);
  if (countersFolder()) hash.update("counted");
  const own = readdirSync(here).filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"));
  for (const file of own.sort()) hash.update(readFileSync(join(here, file)));
  for (const folder of [translator, runtime])
    for (const file of listFiles(folder)) hash.update(readFileSync(join(folder, file)));
  toolchainKey = hash.digest("hex").slice(0, 16);
  return toolchainKey;
}

/** Where something made from `parts` by this toolchain is kept. */
export function cached(suffix: string, ...parts: readonly string[]): string {
  const hash = new Bun.CryptoHasher("sha256").update(toolchain());
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return join(cache, `${hash.digest("hex").slice(0, 24)}${suffix}`);
}

/** Writes a file so that other processes see it whole or not at all. */
export function writeWhole(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}`;
  writeFileSync(temporary, text);
  renameSync(temporary, path);
}

/** What a build of C sources gives. */
export type Kind = "library" | "program";

/**
 * Compiles C sources to a shared library or a program, by zig's own linker commands: `zig cc` would first make runtimes
 * that nothing here calls, for half a minute on a machine that has never made them.
 *
 * @param flags of the compiler
 * @param link of the linker
 */
export function buildNative(
  kind: Kind,
  to: string,
  sources: readonly string[],
  flags: readonly string[],
  link: readonly string[] = [],
): void {
  mkdirSync(dirname(to), { recursive: true });
  const temporary = `${to}.${process.pid}`;
  const command = kind === "library" ? ["build-lib", "-dynamic", `-fsoname=${basename(to)}`] : ["build-exe"];
  const bare = ["-lc", "-fno-compiler-rt", "-fno-ubsan-rt", "-fsanitize-c=trap"];
  const compiled = ["-cflags", ...flags, "--", ...sources];
  const { ok, stderr } = zig([...command, ...bare, ...link, `-femit-bin=${temporary}`, ...compiled]);
  if (!ok) throw new Error(`${basename(to)} does not compile:\n${stderr}`);
  renameSync(temporary, to);
}

/** How the runtime's library is linked to, and found again. */
export function withSimulator(): string[] {
  const folder = dirname(runtimeLibrary());
  return ["-L", folder, "-lsimulator", "-rpath", folder];
}

/** The runtime as a shared library; made once. */
export function runtimeLibrary(): string {
  const path = join(cache, toolchain(), "libsimulator.so");
  if (existsSync(path)) return path;
  const sources = listFiles(runtime).filter((file) => file.endsWith(".c"));
  const flags = ["-std=c23", "-Wall", "-Wextra", "-Werror", "-O2", "-g1", "-fvisibility=hidden"];
  const paths = sources.map((file) => join(runtime, file));
  buildNative("library", path, paths, flags, ["-OReleaseFast", "-fno-strip", "-fno-sanitize-c"]);
  return path;
}

/** The flags for translated C++, with the folder of its headers. */
export function kernelFlags(mode: Mode, functions: Functions = "precise"): string[] {
  const forms = functions === "fast" ? ["-DSIM_FAST_FUNCTIONS"] : [];
  return [...commonFlags, ...modeFlags[mode], `-I${runtime}`, `-I${libraryFolder}`, ...forms];
}

/** Compiles translated C++ to a library of kernels and returns its path. Errors name lines of the .metal file. */
export function compileKernels(cpp: string, name: string, mode: Mode, functions: Functions): string {
  const path = cached(`.${mode}.so`, functions, cpp);
  const isCounted = countersFolder() !== undefined && mode === "fast";
  if (isCounted) tellCounted(path);
  if (existsSync(path)) return path;
  const library = runtimeLibrary();
  const temporary = `${path}.${process.pid}`;
  const source = path.replace(/\.so$/, ".cpp");
  writeWhole(source, cpp);
  const flags = [...kernelFlags(mode, functions), ...(isCounted ? countingFlags : [])];
  const compiled = zig(["c++", ...flags, "-c", source, "-o", `${temporary}.o`]);
  if (!compiled.ok) throw firstError(compiled.stderr, name, [runtime, libraryFolder]);
  const directory = dirname(library);
  const links = ["-shared", `${temporary}.o`, "-o", temporary, `-L${directory}`, "-lsimulator"];
  const from = `$ORIGIN/${relative(dirname(path), directory)}`;
  const linked = isCounted
    ? countingClang([...countingFlags, ...links, atExit, `-Wl,-rpath,${from}`])
    : zig(["ld.lld", ...links, "-rpath", from]);
  if (!linked.ok) throw new Error(`${name}: the translated kernels do not link:\n${linked.stderr}`);
  renameSync(temporary, path);
  return path;
}

/**
 * Compiles a program or library of C that drives the simulator, or gives what was made of the same files before.
 *
 * @param path where it is kept: by what is in it
 * @param counted whether the product's own code is in it, whose lines count while tests are counted
 */
export function compileHost(
  kind: Kind,
  path: string,
  sources: readonly string[],
  more: readonly string[],
  link: readonly string[],
  counted = false,
): string {
  const isCounted = countersFolder() !== undefined && counted;
  if (isCounted) tellCounted(path);
  if (existsSync(path)) return path;
  const flags = ["-std=c23", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-fvisibility=hidden", ...more];
  if (!isCounted) {
    buildNative(kind, path, sources, flags, link);
    return path;
  }
  mkdirSync(dirname(path), { recursive: true });
  const counting = [...countingFlags, atExit, "-ldl", "-pthread", "-lm", ...link];
  const temporary = `${path}.${process.pid}`;
  const { ok, stderr } = countingClang([...flags, ...sources, ...counting, "-o", temporary]);
  if (!ok) throw new Error(`${basename(path)} does not compile:\n${stderr}`);
  renameSync(temporary, path);
  return path;
}

/** The folder of apple.h, which lint.h includes. */
function appleFolder(): string {
  const path = cached("/apple.h");
  if (!existsSync(path)) writeWhole(path, appleHeader());
  return dirname(path);
}

/** Type-checks what the translator made, without compiling it: C++20 of the target "run", or C++14 of "lint". */
export function typeCheck(cpp: string, name: string, standard: "c++14" | "c++20"): void {
  const source = cached(`.${standard}.cpp`, cpp);
  writeWhole(source, cpp);
  const flags = ["-ffreestanding", "-nostdinc", "-nostdinc++", "-fno-lax-vector-conversions", "-Wno-everything"];
  const { ok, stderr } = zig([
    ...[
      "clang",
      "-fsyntax-only",
      "-target",
      "x86_64-linux-gnu",
      `-std=${standard}`,
      ...flags,
      "-DSIM_IS_CHECKED=false",
    ],
    ...[`-I${runtime}`, `-I${libraryFolder}`, `-I${appleFolder()}`, source],
  ]);
  if (!ok) throw firstError(stderr, name, [runtime, libraryFolder]);
}
