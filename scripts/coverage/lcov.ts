// Lines that ran, as lcov's files say it, which both Bun and llvm-cov write: put together, and summed up by folder.

/** By file, from the repository's root: how often each line with code ran. */
export type Lines = Map<string, Map<number, number>>;

/** Where a line of a file counts: the file's name and the line; undefined where it does not. */
export type PlaceOf = (path: string, line: number) => readonly [name: string, line: number] | undefined;

/** Adds what an lcov file says. */
export function addLcov(lines: Lines, text: string, placeOf: PlaceOf): void {
  let path = "";
  for (const row of text.split("\n")) {
    if (row.startsWith("SF:")) path = row.slice(3);
    if (!row.startsWith("DA:")) continue;
    const [line, count] = row.slice(3).split(",").map(Number) as [number, number];
    const place = placeOf(path, line);
    if (place) addLine(lines, ...place, count);
  }
}

function addLine(lines: Lines, name: string, line: number, count: number): void {
  const file = lines.get(name) ?? new Map<number, number>();
  lines.set(name, file);
  file.set(line, (file.get(line) ?? 0) + count);
}

/**
 * Adds what other counters say of lines that count already, or of whole files that do not: what is a line with code
 * differs between tools.
 */
export function addKnown(lines: Lines, more: Lines): void {
  for (const [name, file] of more) {
    const known = lines.get(name);
    if (!known) lines.set(name, new Map(file));
    else for (const [line, count] of file) if (known.has(line)) known.set(line, known.get(line)! + count);
  }
}

/** What a row of the table says. */
export interface Row {
  readonly name: string;
  readonly files: number;
  readonly lines: number;
  readonly ran: number;
}

const ranOf = (file: ReadonlyMap<number, number>) => [...file.values()].filter((count) => count > 0).length;

/** A row for each folder, and one for each of the roots that holds all of it. */
export function byFolder(lines: Lines): Row[] {
  const rows = new Map<string, { files: number; lines: number; ran: number }>();
  const add = (name: string, file: ReadonlyMap<number, number>) => {
    const { files, lines, ran } = rows.get(name) ?? { files: 0, lines: 0, ran: 0 };
    rows.set(name, { files: files + 1, lines: lines + file.size, ran: ran + ranOf(file) });
  };
  for (const [name, file] of lines) {
    const folder = name.slice(0, name.lastIndexOf("/"));
    add(`${folder}/`, file);
    add(`all of ${name.slice(0, name.indexOf("/"))}/`, file);
  }
  const sorted = [...rows].sort(([a], [b]) => a.localeCompare(b));
  return sorted.map(([name, row]) => ({ name, ...row }));
}

/** Files of which less than a share ran, the emptiest first, with the lines that did not: `3, 7–9`. */
export function holes(lines: Lines, least: number): { name: string; share: number; missed: string }[] {
  return [...lines]
    .map(([name, file]) => ({ name, share: file.size === 0 ? 1 : ranOf(file) / file.size, missed: missedOf(file) }))
    .filter(({ share }) => share < least)
    .sort((a, b) => a.share - b.share);
}

/** Runs of lines without code between two that were missed do not part them. */
function missedOf(file: ReadonlyMap<number, number>): string {
  const spans: [number, number][] = [];
  let isOpen = false;
  for (const [line, count] of [...file].sort(([a], [b]) => a - b)) {
    const last = spans.at(-1);
    if (count > 0) isOpen = false;
    else if (isOpen && last) last[1] = line;
    else {
      spans.push([line, line]);
      isOpen = true;
    }
  }
  return spans.map(([from, to]) => (from === to ? `${from}` : `${from}–${to}`)).join(", ");
}

const percent = (share: number) => `${(Math.floor(share * 1000) / 10).toFixed(1)} %`;

/** What of a root is below the share that it is held to in total, or that each of its files is: a sentence each. */
export function below(lines: Lines, root: string, least: { readonly total: number; readonly file: number }): string[] {
  const own: Lines = new Map([...lines].filter(([name]) => name.startsWith(`${root}/`)));
  const whole = byFolder(own).find(({ name }) => name === `all of ${root}/`) ?? { lines: 0, ran: 0 };
  const share = whole.lines === 0 ? 0 : whole.ran / whole.lines;
  const sentence = (name: string, share: number, of: number, where: string) =>
    `${name}: ${percent(share)} of its lines ran, expected at least ${percent(of)} (${where}).`;
  return [
    ...(share < least.total ? [sentence(`all of ${root}/`, share, least.total, "--least")] : []),
    ...holes(own, least.file).map(({ name, share }) => sentence(name, share, least.file, "bunfig.toml")),
  ];
}

/** The rows as a table in Markdown. */
export function tableOf(rows: readonly Row[]): string {
  const cells = rows.map(({ name, files, lines, ran }) => [
    name,
    `${files}`,
    `${lines}`,
    percent(lines === 0 ? 1 : ran / lines),
  ]);
  const head = ["folder", "files", "lines", "that ran"];
  const widths = head.map((title, i) => Math.max(title.length, ...cells.map((row) => row[i]!.length)));
  const line = (row: readonly string[]) =>
    `| ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join(" | ")} |`;
  const rule = `| ${widths.map((width, i) => (i === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`)).join(" | ")} |`;
  return [line(head), rule, ...cells.map(line)].join("\n");
}

/** The holes as lines of text. */
export const holesOf = (found: ReturnType<typeof holes>): string =>
  found.map(({ name, share, missed }) => `${name}: ${percent(share)}; not ${missed}`).join("\n");
