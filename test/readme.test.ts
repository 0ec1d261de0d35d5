// Tests that the README tells the truth: its support table is what the library reports, and its examples run.
import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { readTable, path as tablePath } from "../scripts/support.ts";
import { support } from "../src/support.ts";
import { testDevices } from "./cases.ts";

const root = resolve(import.meta.dir, "..");
const readme = readFileSync(join(root, "README.md"), "utf8");

describe.each(testDevices)("the support table, %s", (kind, device) => {
  test("is what the library reports", () => {
    const table = readTable(readFileSync(tablePath, "utf8"));
    const reported = support(device).map(({ operation, format, support }) => [`${operation} | ${format}`, support]);
    expect(reported).toEqual([...table].map(([row, cells]) => [row, cells[kind]!]));
  });
});

test("the first example runs, and prints what it says", () => {
  const example = /```ts\n([\s\S]*?)```/.exec(readme)![1]!;
  const run = Bun.spawnSync([process.execPath, "-e", example], { cwd: root });
  expect(run.stderr.toString()).toBe("");
  expect(run.stdout.toString()).toContain("Tensor(float32 [1, 4096]");
});

describe("examples", () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-examples-"));
  const options: Record<string, string[]> = { "train.ts": ["20", join(folder, "curves.svg")] };

  // Those that need a model, or run until they are stopped, have tests of their own: test/serve/process.test.ts,
  // test/model/cli.test.ts.
  const apart = ["server.ts", "chat.ts"];

  test("each is named in the README", () => {
    for (const file of new Bun.Glob("*.ts").scanSync(join(root, "examples")))
      expect(readme).toContain(`examples/${file}`);
  });

  test.each([...new Bun.Glob("*.ts").scanSync(join(root, "examples"))].filter((file) => !apart.includes(file)).sort())(
    "%s",
    (file) => {
      const path = join(root, "examples", file);
      expect(readFileSync(path, "utf8").split("\n").length).toBeLessThanOrEqual(40); // with the end of the last line
      // On the CPU: devices have tests of their own, and a simulated one would take minutes to train.
      const env = { ...process.env, BNB_DEVICE: "cpu" };
      const run = Bun.spawnSync([process.execPath, path, ...(options[file] ?? [])], { cwd: folder, env });
      expect(run.stderr.toString()).toBe("");
      expect(run.exitCode).toBe(0);
      expect(run.stdout.toString().trim()).not.toBe("");
    },
  );

  test("train.ts learns, and 8-bit states follow 32-bit ones", () => {
    const curves = [...readFileSync(join(folder, "curves.svg"), "utf8").matchAll(/points="([^"]+)"/g)];
    const heights = curves.map(([, points]) => points!.split(" ").map((point) => Number(point.split(",")[1])));
    expect(heights.map(({ length }) => length)).toEqual([20, 20]);
    // A loss that falls goes down the page.
    for (const curve of heights) expect(curve.at(-1)!).toBeGreaterThan(curve[0]! + 2);
    for (const [i, height] of heights[0]!.entries()) expect(Math.abs(height - heights[1]![i]!)).toBeLessThan(2);
  });
});
