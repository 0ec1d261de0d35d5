// Tests that what is written for people is there: links, files, commands, options, and environment variables.
import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { commandsOfLibrary } from "../src/cli/commands.ts";
import { doctorCommand } from "../src/cli/doctor.ts";

const root = resolve(import.meta.dir, "..");
const scan = (pattern: string) => [...new Bun.Glob(pattern).scanSync({ cwd: root, dot: true })].sort();
const files = ["*.md", "{docs,test,examples,bench}/**/*.md", ".github/**/*.{md,yml}"].flatMap(scan);
const textOf = (file: string) => readFileSync(join(root, file), "utf8");

/** What stands in code: fences, and spans between backticks. */
function codeOf(text: string): string[] {
  const fences = [...text.matchAll(/^```\w*\n([\s\S]*?)^```/gm)].flatMap(([, code]) => code!.split("\n"));
  const spans = text.replaceAll(/^```[\s\S]*?^```/gm, "").matchAll(/`([^`\n]+)`/g);
  return [...fences, ...[...spans].map(([, code]) => code!)];
}

/** GitHub's name of a heading: lower case, no punctuation, hyphens for spaces. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, "")
    .replaceAll(" ", "-");

const anchorsOf = (file: string) => [...textOf(file).matchAll(/^#+ (.+)$/gm)].map(([, heading]) => anchorOf(heading!));

/** Commands and options of `bunsandbytes` in these pieces of code that there are none of. */
function unknownIn(code: readonly string[]): string[] {
  const commands = new Map([...commandsOfLibrary(), doctorCommand()].map((command) => [command.name(), command]));
  return code.flatMap((piece) => {
    const [, name, rest = ""] = /\bbunsandbytes ([a-z]\w+)(.*)/.exec(piece) ?? [];
    if (name === undefined) return [];
    const known = commands.get(name)?.options.map(({ long }) => long);
    const given = [...rest.matchAll(/(?<!\S)--[\w-]+/g)].map(([flag]) => flag);
    return known ? given.filter((flag) => !known.includes(flag)) : [name];
  });
}

test("there is something to check", () => {
  expect(files).toEqual(expect.arrayContaining(["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/format.md"]));
});

describe.each(files)("%s", (file) => {
  const text = textOf(file);
  const code = codeOf(text);

  test("its links lead somewhere", () => {
    const links = [...text.matchAll(/\]\(([^)\s]+)\)/g)].map(([, link]) => link!);
    const broken = links.filter((link) => {
      if (/^https?:/.test(link)) return false;
      const [path = "", anchor] = link.split("#");
      const target = path ? join(dirname(file), path) : file;
      return !existsSync(join(root, target)) || (anchor !== undefined && !anchorsOf(target).includes(anchor));
    });
    expect(broken).toEqual([]);
  });

  test("its files exist", () => {
    // `csrc/ops/x.c` stands for any operation's.
    const folders = /^(?:src|csrc|metal|test|docs|examples|scripts|bench|\.ci|\.github)\/[\w./*{},-]+$/;
    const paths = code.flatMap((span) => span.split(/[\s,:]+/)).filter((word) => folders.test(word));
    const missing = paths.filter(
      (path) => !/\/x[.-][\w.]+$/.test(path) && !existsSync(join(root, path)) && !scan(path).length,
    );
    expect(missing).toEqual([]);
  });

  test("its scripts are package.json's", () => {
    const scripts = [...text.matchAll(/\bbun run ([a-z][\w:-]*)/g)].map(([, script]) => script!);
    expect(scripts.filter((script) => !Object.hasOwn(packageJson.scripts, script))).toEqual([]);
  });

  test("its commands and their options are bunsandbytes'", () => {
    expect(unknownIn(code)).toEqual([]);
  });
});

test("the README lists every page of docs", () => {
  const listed = [...textOf("README.md").matchAll(/^- \[(docs\/[\w.]+)\]\(\1\)/gm)].map(([, page]) => page!);
  expect(listed.sort()).toEqual(scan("docs/*.md"));
});

test("the examples in the commands' own help have commands and options that are there", () => {
  const lines = scan("src/cli/*.ts").flatMap((file) => textOf(file).split("\n"));
  const examples = lines.filter((line) => /^ +(?:\w+=\S+ )*bunsandbytes [a-z]/.test(line));
  expect(examples.length).toBeGreaterThan(5);
  expect(unknownIn(examples)).toEqual([]);
});

test("every environment variable that the library reads has a row in docs/devices.md, and no other", () => {
  const rows = [...textOf("docs/devices.md").matchAll(/^\| `(BNB_\w+)(?:=[01])?`/gm)].map(([, name]) => name!);
  const sources = scan("{src,csrc}/**/*.{ts,c,h}").map(textOf).join("\n");
  const read = [...sources.matchAll(/(?:getenv\("|startedWith\("|is_set\("|process\.env\.)(BNB_\w+)/g)].map(
    ([, name]) => name!,
  );
  const destructured = [...sources.matchAll(/\{([^{}]*)\} = process\.env;/g)].flatMap(([, names]) =>
    [...names!.matchAll(/BNB_\w+/g)].map(([name]) => name),
  );
  const forTests = ["BNB_METAL_LIBRARY", "BNB_CUDA_LIBRARY", "BNB_DRIVER_LIBRARY"]; // what stands in a GPU's place
  expect(rows.sort()).toEqual(
    [...new Set([...read, ...destructured])].filter((name) => !forTests.includes(name)).sort(),
  );
});
