// Owns the reading of a kernel's parameters: how each is bound, and what its type may be.

import type { Parameter, Scope } from "./scope.ts";
import { closing, isAttribute, splitAtCommas, textOf } from "./tokens.ts";
import { positionAttributes } from "./vocabulary.ts";

interface Found {
  /** The parameter without its attributes. */
  readonly range: readonly [begin: number, end: number];
  readonly parameter: Parameter;
  readonly type: string;
  readonly isGrid: boolean;
}

/** The parameters between the parentheses at `open` and `close`, and where each stands without its attributes. */
export function parseParameters(
  scope: Scope,
  open: number,
  close: number,
): { parameters: Parameter[]; ranges: (readonly [begin: number, end: number])[] } {
  const found: Found[] = [];
  const used = { buffer: new Set<number>(), threadgroup: new Set<number>() };
  for (const [begin, end] of splitAtCommas(scope.tokens, open + 1, close, scope.opensTemplate)) {
    found.push(parseParameter(scope, begin, end, used));
  }
  if (scope.dialect === "ours") checkGridTypes(scope, open, found);
  return { parameters: found.map((f) => f.parameter), ranges: found.map((f) => f.range) };
}

type Used = Readonly<Record<"buffer" | "threadgroup", Set<number>>>;

function parseParameter(scope: Scope, begin: number, end: number, used: Used): Found {
  let stop = begin;
  while (stop < end && !isAttribute(scope.tokens, stop)) stop++;
  const name = scope.text(stop - 1);
  const declared = textOf(scope.tokens, begin, stop);
  if (scope.tokens[stop - 1]!.kind !== "word") scope.refuse(begin, `the kernel parameter ${declared}`);
  const words = new Set(declared.split(/\W+/));
  const type = declared.slice(0, declared.length - name.length).trim();
  const range = [begin, stop] as const;

  const attribute = stop < end ? readAttribute(scope, stop, end) : implied(scope, begin, declared, words, used);
  const position = positionAttributes.get(attribute.word);
  if (position) {
    if (!position.types.includes(type.replace(/\bconst\b/, "").trim())) {
      scope.refuse(begin, `[[${attribute.word}]] must be ${position.types.join(", ")}, not ${type}`);
    }
    return { range, type, isGrid: position.grid, parameter: { kind: "value", name, value: position.value } };
  }
  const { index } = attribute;
  if ((attribute.word !== "buffer" && attribute.word !== "threadgroup") || index === undefined) {
    return scope.refuse(stop, `the attribute ${textOf(scope.tokens, stop, end)}`);
  }
  const pointer = type.includes("*");
  const reference = type.includes("&");
  if (index > 30) scope.refuse(stop, `[[${attribute.word}(${index})]]: the greatest index is 30`);
  if (used[attribute.word].has(index)) scope.refuse(stop, `[[${attribute.word}(${index})]] is used twice`);
  used[attribute.word].add(index);
  if (attribute.word === "threadgroup") {
    if (!words.has("threadgroup") || !pointer)
      scope.refuse(begin, `${declared}: [[threadgroup(n)]] takes a threadgroup pointer`);
    return { range, type, isGrid: false, parameter: { kind: "threadgroup", name, index } };
  }
  const space = words.has("device") ? "device" : words.has("constant") ? "constant" : undefined;
  if (!space || !(pointer || reference))
    scope.refuse(begin, `${declared}: [[buffer(n)]] takes a device or constant pointer or reference`);
  const readOnly = space === "constant" || words.has("const");
  return { range, type, isGrid: false, parameter: { kind: "buffer", index, name, space, readOnly, reference } };
}

function readAttribute(scope: Scope, at: number, end: number): { word: string; index?: number } {
  const stop = closing(scope.tokens, at) + 1;
  const all = textOf(scope.tokens, at, stop);
  // Of a list, the place: third-party kernels say beside it on which function constant a parameter depends.
  const one = scope.dialect === "any" ? all.replace(/\s*,?\s*function_constant\s*\(\s*\w+\s*\)\s*,?/, "") : all;
  const match = /^\[\[\s*(\w+)\s*(?:\(\s*(\d+)\s*\))?\s*\]\]$/.exec(one);
  if (!match || stop !== end) scope.refuse(at, `the attribute ${textOf(scope.tokens, at, end)}`);
  return { word: match[1]!, ...(match[2] === undefined ? {} : { index: Number(match[2]) }) };
}

/** Third-party kernels leave indices to the compiler, which counts buffers and threadgroup arguments by themselves. */
function implied(
  scope: Scope,
  begin: number,
  declared: string,
  words: Set<string>,
  used: Used,
): { word: string; index: number } {
  if (scope.dialect === "ours")
    scope.refuse(begin, `the kernel parameter ${declared} has no attribute; add [[buffer(n)]] or the like`);
  const word = words.has("threadgroup") ? "threadgroup" : "buffer";
  let index = 0;
  while (used[word].has(index)) index++;
  return { word, index };
}

/** Metal wants the same number of components in all parameters that tell places in the grid; one for all is safe. */
function checkGridTypes(scope: Scope, open: number, found: readonly Found[]): void {
  const vectors = found.filter((f) => f.isGrid);
  const sizes = new Set(vectors.map((f) => /[23]$/.exec(f.type)?.[0]));
  if (sizes.size > 1) {
    scope.refuse(
      open,
      `the parameters ${vectors.map((f) => `${f.type} ${f.parameter.name}`).join(" and ")} differ in components`,
    );
  }
}
