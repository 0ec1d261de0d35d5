// Owns the parsing of JSON that a file holds, which may be anything.

/** Deeper than any file has a reason to be. What is much deeper can be parsed, but overflows the stack of who walks it. */
const nestingMax = 100;

type Reviver = NonNullable<Parameters<typeof JSON.parse>[1]>;

/** `JSON.parse`. @throws SyntaxError where the text is not JSON, or is nested too deeply */
export function parseJson(text: string, reviver?: Reviver): unknown {
  if (isTooDeep(text)) throw new SyntaxError(`lists and objects are nested more than ${nestingMax} deep`);
  return JSON.parse(text, reviver);
}

function isTooDeep(text: string): boolean {
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "{" || character === "[") {
      if (++depth > nestingMax) return true;
    } else if (character === "}" || character === "]") depth--;
    else if (character === '"') at = endOfString(text, at);
  }
  return false;
}

/** Where the string that begins at `start` ends. */
function endOfString(text: string, start: number): number {
  let at = start + 1;
  while (at < text.length && text[at] !== '"') at += text[at] === "\\" ? 2 : 1;
  return at;
}

/** The first key that stands twice in one object of a valid JSON text; `JSON.parse` keeps the last and says nothing. */
export function duplicateKey(text: string): string | undefined {
  const open: Set<string>[] = [];
  for (let at = 0; at < text.length; at++) {
    const character = text[at];
    if (character === "{") open.push(new Set());
    else if (character === "}") open.pop();
    else if (character === '"') {
      const start = at;
      at = endOfString(text, at);
      if (!isKey(text, at + 1)) continue;
      const literal = text.slice(start, at + 1);
      const key: string = literal.includes("\\") ? JSON.parse(literal) : literal.slice(1, -1);
      const keys = open.at(-1)!;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return undefined;
}

/** Whether a colon follows. */
function isKey(text: string, at: number): boolean {
  while (at < text.length && " \t\n\r".includes(text[at]!)) at++;
  return text[at] === ":";
}
