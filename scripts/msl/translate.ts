// Owns the translation of a Metal source to C++ as a whole: preprocess, split into tokens, translate, add the table.

import { preprocess } from "./clang.ts";
import { DeclarationTranslator } from "./declarations.ts";
import { type Dialect, type KernelInfo, Scope, type Target } from "./scope.ts";
import { kernelTable } from "./table.ts";
import { TranslateError, tokenize } from "./tokens.ts";

export type { BufferInfo, ConstantInfo, Dialect, KernelInfo } from "./scope.ts";
export { TranslateError } from "./tokens.ts";

export interface Translation {
  /** C++ for the runtime (or for lint). */
  readonly cpp: string;
  readonly kernels: readonly KernelInfo[];
}

/**
 * Translates Metal Shading Language to C++ that clang compiles against runtime/metal.h.
 *
 * @param source the whole text; it may hold `#line N "file.metal"` and includes no headers but Metal's own
 * @param name the file name for places before the first `#line`
 * @param only the host names of the kernels to keep; all if not given
 * @throws TranslateError for everything that is not recognised, or that the project forbids in its kernels
 */
export function translate(
  source: string,
  name: string,
  {
    dialect = "ours",
    target = "run",
    includes = [],
    only,
  }: { dialect?: Dialect; target?: Target; includes?: readonly string[]; only?: readonly string[] } = {},
): Translation {
  const text = preprocess(source, name, dialect === "ours" ? 300 : 310, includes);
  const tokens = tokenize(text, name, (pragma, file, line) => translatePragma(pragma, file, line, dialect, target));
  const scope = new Scope(tokens, dialect, target);
  const declarations = new DeclarationTranslator(scope).translate();
  const { kernels, cpp } = kernelTable(scope, only);
  const library = target !== "run" ? [`${target}.h`] : dialect === "ours" ? ["metal.h"] : ["metal.h", "third_party.h"];
  const includeLines = library.map((file) => `#include "${file}"\n`).join("");
  return { cpp: `${includeLines}${declarations}\n#line 1 "<simulator>"\n${cpp}`, kernels };
}

function translatePragma(pragma: string, file: string, line: number, dialect: Dialect, target: Target): string {
  const words = pragma.replace(/^#\s*pragma\s*/, "").trim();
  const contract = /^METAL\s+fp\s+contract\s*\(\s*(off|on|fast)\s*\)$/.exec(words);
  if (contract) return `#pragma clang fp contract(${contract[1]})`;
  if (/^METAL\s+fp\s+math_mode\s*\(\s*safe\s*\)$/.test(words)) return "";
  const unrolls = /^(clang\s+loop\s+unroll(_count)?\s*\(\s*\w+\s*\)|unroll(\s*\(\s*\d+\s*\)|\s+\d+)?)$/.test(words);
  // The simulator's loops stay loops: they give the same, and unrolled they take the compiler five times as long.
  if (unrolls) return target === "run" ? "" : `#pragma ${words}`;
  if (dialect === "any" && /^(METAL|clang|once|unroll)/.test(words)) return "";
  throw new TranslateError(`the pragma ${words}`, file, line);
}
