// What the module of examples is made of: it runs one after the other, each in a folder and on a device as at
// first.
import { mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setDevice } from "../../src/index.ts";

/** What went wrong: the example's name and a sentence. */
export const failures: [name: string, message: string][] = [];

const models = process.argv[2]!;

// What examples print is for their readers.
console.log = () => {};

/** Runs an example in a folder of its own, where the models lie that examples read. */
export async function run(name: string, example: () => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "bnb-example-"));
  for (const model of readdirSync(models)) symlinkSync(join(models, model), join(folder, model));
  process.chdir(folder);
  setDevice("auto");
  try {
    await example();
  } catch (error) {
    failures.push([name, String(error)]);
  } finally {
    process.chdir("/");
    rmSync(folder, { recursive: true });
  }
}

/** Throws unless a value prints as a comment says: numbers with as many decimals as the comment has at most. */
export function expected(value: unknown, comment: string): void {
  const decimals = Math.max(0, ...[...comment.matchAll(/\.(\d+)/g)].map(([, digits]) => digits!.length));
  const shown = show(value, decimals);
  if (shown !== comment) throw new Error(`the comment says ${comment}, but the value is ${shown}`);
}

function show(value: unknown, decimals: number): string {
  if (typeof value === "number") return String(Number(value.toFixed(decimals)) + 0); // -0 becomes 0
  if (typeof value === "string") return JSON.stringify(value);
  const each = (values: Iterable<unknown>) => Array.from(values, (one) => show(one, decimals)).join(", ");
  if (Array.isArray(value) || ArrayBuffer.isView(value)) return `[${each(value as unknown as Iterable<unknown>)}]`;
  if (typeof value !== "object" || value === null) return String(value);
  const members = Object.entries(value).map(([name, member]) => `${name}: ${show(member, decimals)}`);
  return `{ ${members.join(", ")} }`;
}
