// The one escape for text that may come from a stranger, such as a tensor's name: what it gives moves no cursor,
// changes no colour, and turns no line around.

/**
 * Control characters (C0, DEL, C1), line separators, halves of surrogate pairs, what changes direction or can't be
 * seen.
 */
const unsafe = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

const short: Record<string, string> = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };

/** As JSON escapes, so that the same function serves text in JSON and outside of it. */
function escaped(match: string): string {
  const units = Array.from({ length: match.length }, (_, index) => match.charCodeAt(index));
  return short[match] ?? units.map((unit) => `\\u${unit.toString(16).padStart(4, "0")}`).join("");
}

/** Text on one line, with escapes in the place of whatever a terminal would obey. */
export function printable(text: string): string {
  return text.replace(unsafe, escaped);
}

/** The same for text of several lines: those stay. */
export function printableLines(text: string): string {
  return text.split("\n").map(printable).join("\n");
}
