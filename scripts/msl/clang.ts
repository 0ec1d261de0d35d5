// The calls of zig's clang that translating takes: the preprocessor, and what its errors mean for the kernel's author.

import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "../run.ts";
import { findZig } from "../zig.ts";
import { TranslateError } from "./tokens.ts";

const cache = join(root, ".cache/metal");

/** The headers that translated kernels include for every target: the scalar and vector part of Metal's library. */
export const libraryFolder = join(root, "scripts/msl/library");

let zigPath: string | undefined;

/** Runs zig and gives its output; `stderr` on failure. */
export function zig(args: readonly string[], stdin?: string): { ok: boolean; stdout: string; stderr: string } {
  zigPath ??= findZig();
  const { exitCode, stdout, stderr } = Bun.spawnSync([zigPath, ...args], {
    stdin: stdin === undefined ? null : Buffer.from(stdin),
    env: { ...process.env, ZIG_LOCAL_CACHE_DIR: join(cache, "zig") },
    stdout: "pipe",
    stderr: "pipe",
  });
  return { ok: exitCode === 0, stdout: stdout.toString(), stderr: stderr.toString() };
}

/**
 * The first error of clang's output. If it is in a header of one of the folders `ours`, its place is where the kernel
 * used it.
 */
export function firstError(stderr: string, name: string, ours: readonly string[] = []): TranslateError {
  const isOurs = (file: string) => ours.some((folder) => file.startsWith(folder));
  const match = /^(.*?):(\d+):\d+: (?:fatal )?error: (.*)$/m.exec(stderr);
  if (!match) return new TranslateError(stderr.trim(), name, 1);
  const [all, file, line, text] = match as unknown as [string, string, string, string];
  if (!isOurs(file)) return new TranslateError(text, file, Number(line));
  for (const note of stderr.slice(match.index + all.length).matchAll(/^(.*?):(\d+):\d+: note: in instantiation/gm)) {
    if (!isOurs(note[1]!)) return new TranslateError(text, note[1]!, Number(note[2]));
  }
  return new TranslateError(text, file, Number(line));
}

/**
 * Metal's own headers by name: including one is allowed, and gives nothing, for all of Metal's names are known
 * already.
 */
const metalHeaders = [
  "atomic",
  "common",
  "compute",
  "geometric",
  "integer",
  "limits",
  "math",
  "matrix",
  "pack",
  "relational",
]
  .concat(["simdgroup", "simdgroup_matrix", "types", "type_traits", "uniform", "stdlib"])
  .map((part) => `metal_${part}`);

const preprocessed = new Map<string, string>();

/**
 * Runs the C preprocessor, once for each text: the lint and every target want the same. The result keeps line markers,
 * but for a file that zig makes of its input, by chance.
 */
export function preprocess(source: string, name: string, version: number, includes: readonly string[] = []): string {
  const key = JSON.stringify([source, name, version, includes]);
  const known = preprocessed.get(key) ?? runPreprocessor(source, name, version, includes);
  preprocessed.set(key, known);
  return known;
}

function runPreprocessor(source: string, name: string, version: number, includes: readonly string[]): string {
  const headers = join(cache, "headers");
  if (!metalHeaders.every((header) => existsSync(join(headers, header)))) {
    mkdirSync(headers, { recursive: true });
    for (const header of metalHeaders) writeFileSync(join(headers, header), "");
  }
  const marked = `#line 1 "${name}"\n${source}`;
  // What says in a kernel that a piece of threadgroup memory is its simdgroup's own: the simulator holds it to that.
  const slice = "-DOWN_SLICE(slice,elements)=own_slice(slice,elements)";
  const defines = [slice, "-D__METAL__=1", `-D__METAL_VERSION__=${version}`, "-U__x86_64__"];
  const paths = [headers, ...includes].map((path) => `-I${path}`);
  const args = [
    "c++",
    "-E",
    "-x",
    "c++",
    "-std=c++14",
    "-nostdinc",
    "-nostdinc++",
    "-fno-sanitize=all",
    ...defines,
    ...paths,
    "-",
  ];
  const { ok, stdout, stderr } = zig(args, marked);
  if (!ok) throw firstError(stderr, name);
  return stdout.replaceAll(/"[^"\n]*-stdin\.cpp"/g, '"<stdin>"');
}
