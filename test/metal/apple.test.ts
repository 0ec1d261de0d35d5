// What Apple's compiler demands of every kernel alike, and the list in README.md of what holds the rest.
import { expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { families, familySource } from "../../scripts/msl/families.ts";
import { translate } from "../../scripts/msl/translate.ts";
import { fakeMetal } from "./host/build.ts";

test.each(families)("every kernel declares its threads: metal/%s.metal", (family) => {
  const { kernels } = translate(familySource(family), family);
  expect(kernels.length).toBeGreaterThan(0);
  expect(kernels.filter(({ maxThreads }) => maxThreads === undefined).map(({ name }) => name)).toEqual([]);
});

test.each(families)("contraction is off in every family: metal/%s.metal", (family) => {
  const source = familySource(family);
  const pragma = source.indexOf("#pragma METAL fp contract(off)");
  expect(pragma).toBeGreaterThan(0);
  expect(pragma).toBeLessThan(source.search(/\[\[kernel/));
});

test("Metal is given the text that is looked at here, which the simulator then compiles once for both", () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-text-"));
  try {
    // In the place of what the fake Metal calls to compile: it keeps each text, and refuses it.
    const compiler = join(folder, "compiler");
    writeFileSync(compiler, `#!/bin/sh\ncp "$2" ${folder}/$$.metal\nexit 1\n`, { mode: 0o755 });
    const index = join(import.meta.dir, "../../src/index.ts");
    const script = `const { quantize4bit, Tensor } = await import("${index}"); quantize4bit(Tensor.from([1, 2]));`;
    const env = { BNB_DEVICE: "metal", BNB_METAL_LIBRARY: fakeMetal(), BNB_SIM_BUN: compiler, BNB_STRICT: "0" };
    const ran = Bun.spawnSync([process.execPath, "-e", script], { env: { ...process.env, ...env }, stderr: "pipe" });
    expect({ status: ran.exitCode, stderr: ran.stderr.toString() }).toEqual({ status: 0, stderr: "" });
    const given = [...new Bun.Glob("*.metal").scanSync(folder)].map((file) => readFileSync(join(folder, file), "utf8"));
    expect(given).toContain(familySource("quantize"));
    expect(families.map(familySource)).toEqual(expect.arrayContaining(given));
  } finally {
    rmSync(folder, { recursive: true });
  }
});

const readme = readFileSync(join(import.meta.dir, "README.md"), "utf8");
const rows = [
  ...readme
    .split("## What Apple demands")[1]!
    .split("\n## ")[0]!
    .matchAll(/^\| (?!what|-)(.+?) +\| (.+?) +\|$/gm),
];

test("each of the review's rows is there", () => {
  const numbers = rows.flatMap(([, what]) => /^(\d+)\. /.exec(what!)?.[1] ?? []);
  expect(numbers).toEqual(Array.from({ length: 15 }, (_, i) => String(i + 1)));
  expect(rows.length).toBe(15 + 9);
});

// `file`: "a test's name, or a part of it"; a further name is of the same file.
test.each(rows.map(([, what, held]) => [what!, held!] as const))("%s: is held by what exists", (_, held) => {
  if (/^(no test|left out)/.test(held)) return expect(held.length).toBeGreaterThan(40);
  const files = [...held.matchAll(/`([\w./]+\.ts)`/g)].map(([, file]) => file!);
  expect(files.length).toBeGreaterThan(0);
  expect(files.filter((file) => !existsSync(join(import.meta.dir, file)))).toEqual([]);
  const texts = files.map((file) => readFileSync(join(import.meta.dir, file), "utf8"));
  const names = [...held.matchAll(/"([^"]+)"/g)].map(([, name]) => name!);
  expect(names.filter((name) => !texts.some((text) => text.includes(name)))).toEqual([]);
});
