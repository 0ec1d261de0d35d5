// The changes that the mutation run makes: a fixed list of operators, each on one place of a line of TypeScript, C
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
    (found) => (Number(found) === 0 ? found : (Number(found) * 1.1).toPrecision(6).replace(/(\.\d+?)0+$/, "$1")),
  ],
];

/** Lines in which a change says nothing: comments, imports, checks by the compiler, and what people read. */
const skipped =
  /^\s*(\/\/|\*|\/\*|import |export (type|interface)|#include|static_assert|type |interface )|`|fail\(|refuse\(|"/;

/** Places in C and Metal where a change says nothing, for all operators or for one, and why. */
const silent: [why: string, places: RegExp, operator?: string][] = [
  [
    "how much work a thread is called for, which only the speed depends on",
    /(?<=parallel_for\(.*, )(ceil_div\(1 << \d+, .*?\)|\(1 << \d+\) \/ .*? \+ 1|1 << \d+|VECTOR_WORK \/ .*? \+ 1)(?=,)/g,
  ],
  ["the same", /\bgrain = .*|#define TURNS.*/g],
  [
    "how much is looked at, kept or waited for at a time: speed again",
    /\b(PIECES_A_THREAD|SPIN_NANOSECONDS|SEEN_BLOCK|SCALED_AHEAD|MOST_GROUP|VECTOR_WORK|AHEAD|PART_KEYS|PARTS_MOST|keep_bytes) = [^,;}]*/g,
  ],
  ["what is fetched ahead", /^.*(__builtin_prefetch|fetch_ahead)\(.*/g],
  ["how many bytes a launch moves, which profiles tell", /\bbytes_moved \+?= .*/g],
  [
    "an array with room for one more holds what it held",
    /(?<=^ *((static|const|threadgroup|struct) )*(?!return |else |case )(\w+ +\**|\} )\w+(\[\w+\](, \w+)?)*\[)\d+(?=\])/g,
    "a number, one more",
  ],
  ["which lane of a simdgroup writes what all of them have", /(?<=if \(lane == )0\b/g, "a number, one more"],
  [
    "a counter from 0 on, less its step, is beyond every bound: the loop of single steps behind does it all",
    /(?<=for \(; )\w+ \+ [^;]* <= [^;]*(?=;)/g,
    "plus → minus",
  ],
];

/** Whether a change of an operator at a place of a line says nothing. */
function isSilent(operator: string, code: string, at: number): boolean {
  return silent.some(
    ([, places, only]) =>
      (only === undefined || only === operator) &&
      [...code.matchAll(places)].some(({ index, 0: found }) => index <= at && at < index + found.length),
  );
}

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
        if (after !== before && !isSilent(operator, code, at))
          mutants.push({ file, line: index + 1, operator, before, after });
      }
  }
  return mutants;
}
