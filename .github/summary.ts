// Owns the summary of a run on an Apple GPU: `bun .github/summary.ts <folder of logs>` prints, as Markdown, what those
// who have no Mac need to know of it: what compiled, what failed, how fast it was, and on what machine.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

const folder = process.argv[2] ?? "logs";
// Colours would show as their codes.
const read = (name: string) => {
  const path = join(folder, name);
  return existsSync(path) ? Bun.stripANSI(readFileSync(path, "utf8")) : undefined;
};

const code = (text: string) => `\n\`\`\`\n${text.trim()}\n\`\`\`\n`;

function compiled(): string {
  const log = read("compile.txt");
  if (log === undefined) return "not run\n";
  const rows = [...log.matchAll(/^(accepted|REFUSED) +(\S+)/gm)].map(([, result, file]) => `| ${file} | ${result} |`);
  const messages = log.split("\n").filter((line) => /(error|warning): /.test(line));
  const table = rows.length > 0 ? `\n| family | Apple's compiler |\n| --- | --- |\n${rows.join("\n")}\n` : code(log);
  return table + (messages.length > 0 ? code(messages.slice(0, 100).join("\n")) : "");
}

/** A suite's failures, each with what was expected and received; and its last counts. */
function suite(name: string): string {
  const log = read(name);
  if (log === undefined) return "not run\n";
  const counts = log.match(/^ *\d+ (pass|fail|skip)$/gm)?.map((line) => line.trim()) ?? ["it did not come to its end"];
  const failed = [...new Set(log.match(/^\(fail\).*$/gm) ?? [])];
  const said = log.split("\n").filter((line) => /^(error|BnbError|KernelError|Expected|Received)\b/.test(line.trim()));
  const end = counts.length > 1 ? "" : code(log.split("\n").slice(-40).join("\n"));
  const details = failed.length > 0 ? code([...failed.slice(0, 200), "", ...said.slice(0, 100)].join("\n")) : "";
  return `${counts.join(", ")}\n${details}${end}`;
}

const whole = (name: string) => (read(name) === undefined ? "not run\n" : code(read(name)!.slice(-60_000)));

console.log(`# On an Apple GPU

## Kernels
${compiled()}
## The suite
${suite("suite.txt")}
## Under Metal's validation
${suite("validated.txt")}
## Compiled ahead
${suite("ahead.txt")}
## Speed
${whole("bench.txt")}
## Machine
${whole("doctor.json")}`);
