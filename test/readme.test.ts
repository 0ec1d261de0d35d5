// Owns the test that the README tells the truth: its support table is what the library reports, and its example runs.
import { describe, expect, test } from "bun:test";
import { readTable } from "../scripts/support.ts";
import { support } from "../src/support.ts";
import { testDevices } from "./cases.ts";

const readme = await Bun.file(`${import.meta.dir}/../README.md`).text();

describe.each(testDevices)("the support table, %s", (kind, device) => {
  test("is what the library reports", () => {
    const table = readTable(readme);
    const reported = support(device).map(({ operation, format, support }) => [`${operation} | ${format}`, support]);
    expect(reported).toEqual([...table].map(([row, cells]) => [row, cells[kind]!]));
  });
});

test("the first example runs, and prints what it says", () => {
  const example = /```ts\n([\s\S]*?)```/.exec(readme)![1]!;
  const run = Bun.spawnSync([process.execPath, "-e", example], { cwd: `${import.meta.dir}/..` });
  expect(run.stderr.toString()).toBe("");
  expect(run.stdout.toString()).toContain("Float32Array(4096)");
});

describe("examples", async () => {
  for await (const file of new Bun.Glob("*.ts").scan(`${import.meta.dir}/../examples`))
    test(file, async () => {
      // On the CPU: devices have tests of their own, and a simulated one would take minutes to train.
      const env = { ...process.env, BNB_DEVICE: "cpu" };
      const run = Bun.spawnSync([process.execPath, `examples/${file}`], { cwd: `${import.meta.dir}/..`, env });
      expect(run.stderr.toString()).toBe("");
      expect(run.exitCode).toBe(0);
      expect(run.stdout.toString().trim()).not.toBe("");
    }, 60_000);
});
