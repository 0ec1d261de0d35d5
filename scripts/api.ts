// docs/api.md, the reference: every public name with its docstring. Prints it, or writes it with --write.
import { type PublicName, publicNames } from "../test/docs/names.ts";
import { root } from "./run.ts";

export const path = `${root}/docs/api.md`;

/** The page, from the docstrings as they stand. */
export function apiPage(): string {
  const spaces = Map.groupBy(publicNames(), ({ name }) => (name.includes(".") ? name.slice(0, name.indexOf(".")) : ""));
  const sections = [...spaces].sort(([a], [b]) => a.localeCompare(b));
  const titles = sections.map(([space]) => (space ? `\`${space}\`` : "The package"));
  const contents = sections.map(([, names], i) => {
    const links = sorted(names).map(({ name }) => `[\`${name}\`](#${anchorOf(name)})`);
    return `**${titles[i]}**: ${links.join(", ")}`;
  });
  const bodies = sections.map(([, names], i) => `## ${titles[i]}\n\n${sorted(names).map(entry).join("\n\n")}`);
  return `# Reference

Every public name of \`bunsandbytes\`. This page is made from the docstrings in the source by \`bun scripts/api.ts --write\`;
a test holds the two together, and runs each example.

${contents.join("\n\n")}

${bodies.join("\n\n")}
`;
}

const sorted = (names: readonly PublicName[]) => names.toSorted((a, b) => a.name.localeCompare(b.name));

/** As GitHub makes a heading's anchor. */
const anchorOf = (name: string) => name.toLowerCase().replaceAll(/[^\w-]/g, "");

/** A name's heading, where it is declared, and its docstring as Markdown. */
function entry({ name, type, file, doc = "" }: PublicName): string {
  const heading = `### ${name}\n\n<sub>${type ? "type, " : ""}[${file}](../${file})</sub>`;
  const [prose, ...tags] = doc.split(/^(?=@(?:param|throws|returns|example|see|internal)\b)/m);
  const lists = tags.filter((tag) => !tag.startsWith("@example")).map((tag) => tagLine(tag.trim()));
  const examples = tags.filter((tag) => tag.startsWith("@example")).map((tag) => tag.replace("@example", "").trim());
  return [heading, linked(prose!.trim()), lists.join("\n"), ...examples].filter(Boolean).join("\n\n");
}

function tagLine(tag: string): string {
  const text = linked(tag.replaceAll(/\n\s*/g, " "));
  const parameter = /^@param (\S+) (.*)$/.exec(text);
  if (parameter) return `- \`${parameter[1]}\`: ${parameter[2]}`;
  return `- ${text.replace(/^@(\w+)/, (_, word: string) => `*${word}*:`)}`;
}

/** `{@link name}` as a link to where the page has that name, or as code. */
function linked(text: string): string {
  return text.replaceAll(
    /\{@link ([\w.]+)(?: \| ([^}]*))?\}/g,
    (_, name: string, shown?: string) => `\`${shown ?? name}\``,
  );
}

if (import.meta.main) {
  const page = apiPage();
  if (process.argv.includes("--write")) await Bun.write(path, page);
  else process.stdout.write(page);
}
