// The habits of this repository that a program can hold: `bun run check` runs it. Prints what breaks one, a line each.
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { output, root, stop } from "./run.ts";

const tracked = output(["git", "ls-files"])!.split("\n");
const read = (file: string) => readFileSync(`${root}/${file}`, "utf8");

/** What people wrote, as text: not what a program made, nor what others made. */
const sources = tracked.filter(
  (file) => /\.(c|h|metal|cu|ts|zig)$/.test(file) && !/^test\/(golden|fixtures)\//.test(file),
);

const columnsMost = 120;

/**
 * Lines that are too long. Of TypeScript, whose code its formatter breaks wherever it can, only comments: what is left
 * are texts.
 */
function* longLines(): Iterable<string> {
  for (const file of sources)
    for (const [i, line] of read(file).split("\n").entries())
      if ([...line].length > columnsMost && (!file.endsWith(".ts") || /^\s*(\/\/|\/?\*)|; \/\/ [^"`]+$/.test(line)))
        yield `${file}:${i + 1} has ${[...line].length} columns, and the most is ${columnsMost}`;
}

const linesMost = 400;

/** Files that may be longer, and why. */
const longFiles: Record<string, string> = {
  "csrc/bnb.h": "the ABI is one table",
  "scripts/msl/declarations.ts": "one grammar",
  "test/faults/c/fuzz.c": "one loop, and what it expects of each kind of call",
  "test/metal/host/commands.c": "one fake of one class",
  "test/metal/runtime/checker.c": "one checker, compiled into every kernel",
  "test/metal/translate.test.ts": "a row of examples",
};

/** Files that are too long, and exceptions that are none any more. */
function* longSources(): Iterable<string> {
  for (const file of sources) {
    const lines = read(file).split("\n").length - 1;
    if (lines > linesMost && !(file in longFiles))
      yield `${file} has ${lines} lines, and the most is ${linesMost}: it lacks a concept`;
    if (lines <= linesMost && file in longFiles)
      yield `${file} is no longer too long: scripts/tidy.ts need not name it`;
  }
  for (const file of Object.keys(longFiles))
    if (!sources.includes(file)) yield `scripts/tidy.ts names ${file}, which is not there`;
}

/** Files that do not open with a sentence on what they own. */
function* silentFiles(): Iterable<string> {
  for (const file of sources)
    if (!/^(#!.*\n)?(\/\/[/!]?|\/\*\*?) ?\S/.test(read(file)))
      yield `${file} does not open with a sentence that says what it owns`;
}

/** Kernel families that are on the disk, and those that csrc/gpu/kernels.c embeds. */
function* strayFamilies(): Iterable<string> {
  const embedded = new Set(
    [...read("csrc/gpu/kernels.c").matchAll(/^#embed <(\w+)\.metal>/gm)].map(([, family]) => family!),
  );
  const present = tracked.filter((file) => /^metal\/\w+\.metal$/.test(file)).map((file) => basename(file, ".metal"));
  for (const family of present) if (!embedded.has(family)) yield `metal/${family}.metal is not in csrc/gpu/kernels.c`;
  for (const family of embedded)
    if (!present.includes(family!)) yield `csrc/gpu/kernels.c embeds ${family}, which metal/ lacks`;
}

/** Functions of the ABI that the fault harness has no recipe for. */
function* untriedFunctions(): Iterable<string> {
  const recipes = tracked
    .filter((file) => /^test\/faults\/c\/.*\.c$/.test(file))
    .map(read)
    .join("\n");
  for (const [, name] of read("csrc/bnb.h").matchAll(/^BNB_API [^(]*?\b(bnb_\w+)\(/gm))
    if (!new RegExp(`^[A-Z]+\\(${name}\\b|\\bvalid_${name}\\b`, "m").test(recipes))
      yield `${name} has no recipe in test/faults/c`;
}

/** Dtypes in names: what works on every dtype does not name one. Upstream's own names are left alone. */
function* dtypesInNames(): Iterable<string> {
  for (const [, name] of read("csrc/bnb.h").matchAll(/^BNB_API [^(]*?\b(bnb_\w+)\(/gm))
    if (/_(f32|f16|bf16|nf4|fp4|u8)(_|$)/.test(name!)) yield `${name} names a dtype or a format, which is data`;
}

/** Operations of the ABI without a source, or a test, of the same stem. */
function* missingStems(): Iterable<string> {
  for (const file of tracked.filter((file) => /^csrc\/ops\/[a-z0-9_]+\.c$/.test(file))) {
    const stem = basename(file, ".c");
    if (!read("csrc/sources.json").includes(`"ops/${stem}.c"`)) yield `${file} is not in csrc/sources.json`;
  }
}

const found = [
  longLines,
  longSources,
  silentFiles,
  strayFamilies,
  untriedFunctions,
  dtypesInNames,
  missingStems,
].flatMap((rule) => [...rule()]);
for (const sentence of found) console.error(sentence);
if (found.length) stop(`${found.length} ${found.length === 1 ? "habit is" : "habits are"} broken.`);
