// Owns the changes that the mutation run makes: a fixed list of operators, each on one place of a line of TypeScript, C
// or Metal.

/** One place at which an operator applies. */
export interface Mutant {
  readonly file: string;
  /** From 1 on. */
  readonly line: number;
  readonly operator: string;
  readonly before: string;
  readonly after: string;
}

/** What is looked for, and what takes its place. Spaces keep generics, arrows and pointers out. */
const operators: [name: string, find: RegExp, replace: (found: string) => string][] = [
  ["less → at most", / < /g, () => " <= "],
  ["at most → less", / <= /g, () => " < "],
  ["more → at least", / > /g, () => " >= "],
  ["at least → more", / >= /g, () => " > "],
  ["equal → unequal", / ===? /g, (found) => found.replace("=", "!")],
  ["unequal → equal", / !==? /g, (found) => found.replace("!", "=")],
  ["and → or", / && /g, () => " || "],
  ["or → and", / \|\| /g, () => " && "],
  ["plus → minus", / \+ /g, () => " - "],
  ["minus → plus", / - /g, () => " + "],
  ["times → divided by", / \* /g, () => " / "],
  ["divided by → times", / \/ /g, () => " * "],
  ["min → max", /\b(Math\.min|least|fminf|min)\(/g, (found) => found.replace("min", "max").replace("least", "most")],
  ["max → min", /\b(Math\.max|most|fmaxf|max)\(/g, (found) => found.replace("max", "min").replace("most", "least")],
  ["not → as it is", /(?<=[ (])!(?=[a-z(])/g, () => ""],
  ["true → false", /\btrue\b/g, () => "false"],
  ["false → true", /\bfalse\b/g, () => "true"],
  ["a number, one more", /(?<![\w.])\d+(?![\w.])/g, (found) => String(Number(found) + 1)],
  [
    "a float, a tenth more",
    /(?<![\w.])\d+\.\d+(?=f?\b)/g,
    (found) => String(Number((Number(found) * 1.1).toPrecision(6))),
  ],
];

/** Lines in which a change says nothing: comments, imports, checks by the compiler, and what people read. */
const skipped =
  /^\s*(\/\/|\*|\/\*|import |export (type|interface)|#include|static_assert|type |interface )|`|fail\(|refuse\(|"/;

/** Every mutant of a file. */
export function mutantsOf(file: string, text: string): Mutant[] {
  const mutants: Mutant[] = [];
  let inComment = false;
  for (const [index, before] of text.split("\n").entries()) {
    const opens = before.lastIndexOf("/*");
    const wasInside = inComment;
    if (opens >= 0) inComment = before.indexOf("*/", opens) < 0;
    else if (before.includes("*/")) inComment = false;
    if (wasInside || inComment || skipped.test(before)) continue;
    const code = before.replace(/\/\/.*|\/\*.*?\*\//g, (comment) => " ".repeat(comment.length));
    for (const [operator, find, replace] of operators)
      for (const { index: at, 0: found } of code.matchAll(find)) {
        const after = before.slice(0, at) + replace(found) + before.slice(at + found.length);
        if (after !== before) mutants.push({ file, line: index + 1, operator, before, after });
      }
  }
  return mutants;
}
