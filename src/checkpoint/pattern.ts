// Patterns of modules' names: regular expressions that a person gave, matched to names that a stranger gave, in
// bounded time.
import { BnbError } from "../error.ts";

/** Longer than any module's name: how long matching takes grows with a power of the length. */
const nameLengthMax = 500;

/** How many `*`, `+` and `{n,}` a pattern may have, and how many repetitions and options in all. */
const unboundedMax = 3;
const variableMax = 8;
const timesMax = 50;

interface Group {
  hasVariable: boolean;
  hasChoice: boolean;
}

/**
 * What repeats the last item: `?`, `*`, `+`, `{2}`, `{2,}` or `{2,5}`, and `?` behind it, which only changes the order.
 */
const quantifier = /(?:[?*+]|\{(\d+)(?:(,)(\d*))?\})\??/y;

/** Why a regular expression may take exponential time, or long; `undefined` where it can't. */
function slowness(pattern: string): string | undefined {
  const open: Group[] = [{ hasVariable: false, hasChoice: false }];
  let last: Group | undefined; // the group that the last item was
  let [unbounded, variable] = [0, 0];
  for (let at = 0; at < pattern.length; ) {
    quantifier.lastIndex = at;
    const found = quantifier.exec(pattern);
    if (found) {
      const [text, least, comma, most] = found;
      if (text[0] === "*" || text[0] === "+" || (comma && most === "")) unbounded++;
      if (Number(most || least) > timesMax) return `repeats something more than ${timesMax} times`;
      if (text[0] !== "?" && (last?.hasVariable || last?.hasChoice)) return "repeats something that can vary";
      if (comma || least === undefined) variable++;
      for (const group of open) group.hasVariable = true;
      at = quantifier.lastIndex;
      last = undefined;
      continue;
    }
    last = undefined;
    if (pattern[at] === "\\") {
      if (/[1-9k]/.test(pattern[at + 1] ?? "")) return "refers back to a group";
      at += 2;
    } else if (pattern[at] === "[") {
      at++;
      while (at < pattern.length && pattern[at] !== "]") at += pattern[at] === "\\" ? 2 : 1;
      at++;
    } else if (pattern[at] === "(") {
      if (/^\(\?<?[=!]/.test(pattern.slice(at))) return "looks ahead or behind";
      at += /^\((\?(:|<\w+>))?/.exec(pattern.slice(at))![0].length;
      open.push({ hasVariable: false, hasChoice: false });
    } else {
      if (pattern[at] === "|") for (const group of open) group.hasChoice = true;
      if (pattern[at] === ")" && open.length > 1) last = open.pop();
      at++;
    }
  }
  if (unbounded > unboundedMax) return `has more than ${unboundedMax} of * and +`;
  return variable > variableMax ? `has more than ${variableMax} repetitions and options` : undefined;
}

/**
 * transformers' `should_convert_module`, for one pattern: it matches a module from its start to a dot, as a regular
 * expression, or is the end of its name.
 *
 * @throws BnbError for what is no regular expression, or one that may take long
 */
export function modulePattern(pattern: string): (module: string) => boolean {
  const regex = boundedRegex(pattern, `^(?:${pattern})(?:(?<=\\.)|(?=\\.|$))`, "skip");
  return (module) => module.endsWith(pattern) || bounded(module, "skip", regex);
}

/**
 * PEFT's `get_pattern_key`, for one pattern: it matches the end of a module's name, from its start or behind a dot.
 *
 * @throws BnbError for what is no regular expression, or one that may take long
 */
export function endingPattern(pattern: string, what: string): (module: string) => boolean {
  const regex = boundedRegex(pattern, `(?:^|\\.)(?:${pattern})$`, what);
  return (module) => bounded(module, what, regex);
}

function boundedRegex(pattern: string, whole: string, what: string): RegExp {
  let regex: RegExp;
  try {
    regex = new RegExp(whole);
  } catch (cause) {
    throw new BnbError(`${what} ${JSON.stringify(pattern)} is no regular expression: ${(cause as Error).message}.`);
  }
  const reason = slowness(pattern);
  if (reason)
    throw new BnbError(
      `${what} ${JSON.stringify(pattern)} ${reason}, which can take for ever: give several simpler ones.`,
    );
  return regex;
}

function bounded(module: string, what: string, regex: RegExp): boolean {
  if (module.length <= nameLengthMax) return regex.test(module);
  throw new BnbError(
    `${what} can't be matched to a name of ${module.length} characters, above ${nameLengthMax}: ${module}.`,
  );
}
