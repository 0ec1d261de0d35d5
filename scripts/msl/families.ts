// Owns the product's kernel families as the host gives them to Metal: the shared headers, then one family's text. Those
// of cuda/ are in the same language, with a few words more, and go to CUDA only.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { root } from "../run.ts";

const text = (file: string) => readFileSync(join(root, file), "utf8");
const headers = [...text("csrc/gpu/kernels.c").matchAll(/^ +\{"(\w+\.h)", /gm)].map(([, file]) => `metal/${file}`);

const stemsIn = (folder: string) =>
  (existsSync(join(root, folder)) ? readdirSync(join(root, folder)) : [])
    .filter((file) => file.endsWith(".metal"))
    .map((file) => file.slice(0, -".metal".length))
    .sort();

/** The stems of metal/*.metal. */
export const families = stemsIn("metal");

/** The stems of cuda/*.metal, which are no stems of metal/. */
export const cudaFamilies = stemsIn("cuda");

/** What a family of cuda/ shares with others beside metal/'s headers. */
const cudaHeaders = (stem: string) => (isHoppers(stem) ? ["cuda/tensor.h", "cuda/hopper.h"] : ["cuda/tensor.h"]);

/** Whether a family of cuda/ is for Hopper alone, which has words of its own. */
export const isHoppers = (stem: string): boolean => stem.endsWith("_hopper");

/**
 * A family's whole source; places in it are named by `#line`. It is the text that csrc/gpu/metal/pipelines.c gives to
 * Metal, so that the simulator compiles it once for the host and for tests of kernels.
 */
export function familySource(stem: string): string {
  const own = cudaFamilies.includes(stem) ? [...cudaHeaders(stem), `cuda/${stem}.metal`] : [`metal/${stem}.metal`];
  const parts = [...headers, ...own].map((file) => `#line 1 "${file}"\n${text(file)}\n`);
  return `#include <metal_stdlib>\nusing namespace metal;\n${parts.join("")}`;
}

/**
 * What tells whether a compiled Metal library was made of these files: FNV-1a of each, combined so that order does not
 * matter, as csrc/gpu/metal/pipelines.c does.
 */
export function fingerprint(texts: readonly string[]): string {
  const hash = (one: string) =>
    Buffer.from(one).reduce(
      (hash, byte) => BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n),
      0xcbf29ce484222325n,
    );
  return texts
    .reduce((all, one) => all ^ hash(one), 0n)
    .toString(16)
    .padStart(16, "0");
}

/** The texts of all files that the product's kernels are made of. */
export const kernelTexts = (): string[] => [...headers, ...families.map((stem) => `metal/${stem}.metal`)].map(text);
