// Owns the product's kernel families as the host gives them to Metal: the shared headers, then one family's text. Those
// of cuda/ are in the same language, with a few words more, and go to CUDA only.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";

const folder = join(import.meta.dir, "../../metal");
const cudaFolder = join(import.meta.dir, "../../cuda");
const embedded = readFileSync(join(import.meta.dir, "../../csrc/gpu/kernels.c"), "utf8");
const headers = [...embedded.matchAll(/^#embed <(\w+\.h)>/gm)].map(([, file]) => file!);

const stemsIn = (from: string) =>
  (existsSync(from) ? readdirSync(from) : [])
    .filter((file) => file.endsWith(".metal"))
    .map((file) => file.slice(0, -".metal".length))
    .sort();

/** The stems of metal/*.metal. */
export const families = stemsIn(folder);

/** The stems of cuda/*.metal, which are no stems of metal/. */
export const cudaFamilies = stemsIn(cudaFolder);

/** What the families of cuda/ share beside metal/'s headers. */
const cudaHeaders = cudaFamilies.length ? [join(cudaFolder, "tensor.h")] : [];

/** A family's whole source; places in it are named by `#line`. */
export function familySource(stem: string): string {
  const own = cudaFamilies.includes(stem)
    ? [...cudaHeaders, join(cudaFolder, `${stem}.metal`)]
    : [join(folder, `${stem}.metal`)];
  const parts = [...headers.map((file) => join(folder, file)), ...own].map(
    (path) => `#line 1 "${basename(path)}"\n${readFileSync(path, "utf8")}`,
  );
  return `#include <metal_stdlib>\nusing namespace metal;\n${parts.join("\n")}`;
}

/**
 * What tells whether a compiled Metal library was made of these files: FNV-1a of each, combined so that order does not
 * matter, as csrc/gpu/metal/pipelines.c does.
 */
export function fingerprint(texts: readonly string[]): string {
  const hash = (text: string) =>
    Buffer.from(text).reduce(
      (hash, byte) => BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n),
      0xcbf29ce484222325n,
    );
  return texts
    .reduce((all, text) => all ^ hash(text), 0n)
    .toString(16)
    .padStart(16, "0");
}

/** The texts of all files that the product's kernels are made of. */
export const kernelTexts = (): string[] =>
  [...headers, ...families.map((stem) => `${stem}.metal`)].map((file) => readFileSync(join(folder, file), "utf8"));
