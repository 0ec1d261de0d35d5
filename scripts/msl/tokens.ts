// Owns the words of a Metal source: splitting preprocessed text into tokens that know their line, and moving among
// them.

/** What the translator (or the preprocessor) refuses; `message` starts with `file:line:` and names the construct. */
export class TranslateError extends Error {
  override readonly name = "TranslateError";

  constructor(
    message: string,
    readonly file: string,
    readonly line: number,
  ) {
    super(`${file}:${line}: ${message}`);
  }
}

/**
 * `before` is the white space (and line markers and pragmas) in front of the token, kept so that lines stay in
 * step.
 */
export interface Token {
  readonly kind: "word" | "number" | "string" | "symbol";
  readonly text: string;
  readonly before: string;
  readonly file: string;
  readonly line: number;
}

const tokenPattern =
  /(?<space>[ \t\r\f\v]+)|(?<newline>\n)|(?<directive>#[^\n]*)|(?<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?<word>[A-Za-z_]\w*)|(?<number>\.?\d(?:[eEpP][+-]|[\w.])*)|(?<symbol>::|->|\+\+|--|&&|\|\||<<=?|[-+*/%&|^=!<]=|[-+*/%&|^=!<>()[\]{},;:.?~])/y;

/**
 * Splits preprocessed text. Line markers (`# 3 "x.metal"`, `#line`) set the line; `pragma` is asked what a pragma
 * becomes and throws if it is not allowed. `>` is always a token of its own, so that nested template arguments close
 * one by one.
 */
export function tokenize(
  source: string,
  name: string,
  pragma: (text: string, file: string, line: number) => string,
): Token[] {
  const tokens: Token[] = [];
  let file = name;
  let line = 1;
  let before = "";
  tokenPattern.lastIndex = 0;
  while (tokenPattern.lastIndex < source.length) {
    const at = tokenPattern.lastIndex;
    const match = tokenPattern.exec(source);
    if (!match) throw new TranslateError(`the character ${JSON.stringify(source[at])} is not Metal`, file, line);
    const groups = match.groups!;
    const text = match[0];
    if (groups.newline) {
      line++;
      before += "\n";
    } else if (groups.space) {
      before += text;
    } else if (groups.directive) {
      const marker = /^#\s*(?:line\s+)?(\d+)\s+"([^"]*)"/.exec(text);
      if (marker) {
        file = marker[2]!;
        line = Number(marker[1]) - 1;
        before += `#line ${marker[1]} "${file}"`;
      } else if (/^#\s*pragma\b/.test(text)) {
        before += pragma(text, file, line);
      } else {
        throw new TranslateError(`the directive ${text} is not understood`, file, line);
      }
    } else {
      const kind = groups.word ? "word" : groups.number ? "number" : groups.string ? "string" : "symbol";
      tokens.push({ kind, text, before, file, line });
      before = "";
    }
  }
  tokens.push({ kind: "symbol", text: "", before, file, line }); // the end, so that looking ahead needs no checks
  return tokens;
}

const closers: Readonly<Record<string, string>> = { "(": ")", "[": "]", "{": "}" };

/** The index of the bracket that closes the one at `open`. */
export function closing(tokens: readonly Token[], open: number): number {
  const stack: string[] = [];
  for (let i = open; i < tokens.length; i++) {
    const text = tokens[i]!.text;
    const closer = tokens[i]!.kind === "symbol" ? closers[text] : undefined;
    if (closer) stack.push(closer);
    else if (stack.length > 0 && text === stack.at(-1) && tokens[i]!.kind === "symbol") stack.pop();
    if (stack.length === 0) return i;
  }
  const token = tokens[open]!;
  throw new TranslateError(`the bracket ${token.text} is never closed`, token.file, token.line);
}

/** The index of the `>` that closes the `<` at `open` of a template's arguments. */
export function closingAngle(tokens: readonly Token[], open: number): number {
  let depth = 0;
  for (let i = open; i < tokens.length; i++) {
    const text = tokens[i]!.text;
    if (text === "<") depth++;
    else if (text === ">" && --depth === 0) return i;
    else if (closers[text]) i = closing(tokens, i);
    else if (text === ";" || text === "") break;
  }
  const token = tokens[open]!;
  throw new TranslateError("the template argument list is never closed", token.file, token.line);
}

/**
 * Splits `[begin, end)` at its commas outside brackets and template arguments; `isTemplate` tells which `<` opens
 * some.
 */
export function splitAtCommas(
  tokens: readonly Token[],
  begin: number,
  end: number,
  isTemplate: (index: number) => boolean,
): [begin: number, end: number][] {
  const parts: [number, number][] = [];
  let start = begin;
  for (let i = begin; i < end; i++) {
    const text = tokens[i]!.text;
    if (tokens[i]!.kind === "symbol" && closers[text]) i = closing(tokens, i);
    else if (text === "<" && isTemplate(i)) i = closingAngle(tokens, i);
    else if (text === ",") {
      parts.push([start, i]);
      start = i + 1;
    }
  }
  if (start < end || parts.length > 0) parts.push([start, end]);
  return parts;
}

/** Whether an attribute list, `[[`, starts here. */
export function isAttribute(tokens: readonly Token[], i: number): boolean {
  return tokens[i]!.text === "[" && tokens[i + 1]?.text === "[" && tokens[i + 1]!.before === "";
}

/** The tokens' text without what stood before the first. */
export function textOf(tokens: readonly Token[], begin: number, end: number): string {
  let text = "";
  for (let i = begin; i < end; i++)
    text += i === begin ? tokens[i]!.text : tokens[i]!.before.replace(/\s+/g, " ") + tokens[i]!.text;
  return text;
}
