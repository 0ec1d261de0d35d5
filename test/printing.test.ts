// What the command prints: nothing that a terminal would obey, all of it or an error, and no stack where a pipe is
// closed.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { table } from "../src/cli/table.ts";
import { BnbError } from "../src/error.ts";
import { printable, printableLines } from "../src/printable.ts";
import { llamaDirectory } from "./models.ts";

const root = resolve(import.meta.dir, "..");
const main = join(root, "src/cli/main.ts");

const model = mkdtempSync(join(tmpdir(), "bnb-printing-"));
afterAll(() => rmSync(model, { recursive: true }));
await llamaDirectory(model);

describe("the escape", () => {
  test.each([
    ["\u001b[31mred", "\\u001b[31mred"],
    ["a\nb\tc\r", "a\\nb\\tc\\r"],
    ["\u0000\u007f\u0085\u009b", "\\u0000\\u007f\\u0085\\u009b"],
    ["\u202eabc\u2066\u200f", "\\u202eabc\\u2066\\u200f"],
    ["\u2028\u2029\ufeff\u200b", "\\u2028\\u2029\\ufeff\\u200b"],
    ["\u{e0041}", "\\udb40\\udc41"],
    ["\ud800x", "\\ud800x"],
    ["é ü 漢字 🙂 \\n", "é ü 漢字 🙂 \\n"],
  ])("of %j", (text, escaped) => {
    expect(printable(text)).toBe(escaped);
    expect(JSON.parse(printableLines(JSON.stringify(text)))).toBe(text);
  });

  test("is applied to every error of the library, whose lines stay", () => {
    expect(new BnbError("\u001b]0;owned\u0007 is\nno name").message).toBe("\\u001b]0;owned\\u0007 is\nno name");
  });
});

test("a table has as many rows as there are", () => {
  const rows = Array.from({ length: 300_000 }, (_, row) => [`tensor ${row}`, String(row)]);
  expect(table([["name", "number"], ...rows]).split("\n").length).toBe(300_002);
});

test("the command writes by print.ts only", () => {
  const sources = [...new Bun.Glob("src/cli/*.ts").scanSync(root)].filter((path) => !path.endsWith("/print.ts"));
  expect(sources.length).toBeGreaterThan(10);
  const wrong = sources.filter((path) =>
    /console\.|process\.std(out|err)\.write/.test(readFileSync(join(root, path), "utf8")),
  );
  expect(wrong).toEqual([]);
});

const shell = (command: string) => {
  const { exitCode, stdout, stderr } = Bun.spawnSync(["bash", "-c", command], {
    env: { ...process.env, BUN: process.execPath, MAIN: main, MODEL: model },
  });
  return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
};

describe("standard output", () => {
  test.each(["--help", "doctor --help", "doctor --json"])(
    "closed, ends %s as a signal would, without a word",
    (args) => {
      const { out, err } = shell(`"$BUN" "$MAIN" ${args} | true; echo "\${PIPESTATUS[0]}"`);
      expect([out, err]).toEqual(["141\n", ""]);
    },
  );

  test.skipIf(process.platform !== "linux").each(["--help", "doctor --json"])("full, makes %s fail", (args) => {
    const { status, err } = shell(`"$BUN" "$MAIN" ${args} > /dev/full`);
    expect(status).toBe(1);
    expect(err).toMatch(/^bunsandbytes: ENOSPC: no space left on device, write \(standard output\)\n$/);
  });

  test.each(["2> /dev/full", "2> >(true)"])("goes on without standard error: %s", (where) => {
    const { status, out } = shell(
      `sleep 0.1; "$BUN" "$MAIN" inspect "$MODEL" ${where}; "$BUN" "$MAIN" verify none ${where}`,
    );
    expect(out).toContain("all: 12 tensors");
    expect(status).toBe(1);
  });

  test("of a slow reader gets all", () => {
    const whole = shell('"$BUN" "$MAIN" quantize --help').out;
    expect(shell('"$BUN" "$MAIN" quantize --help | (sleep 0.2; cat)').out).toBe(whole);
  });
});
