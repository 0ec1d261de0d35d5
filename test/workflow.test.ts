// The GitHub workflow, as far as it can be tried without GitHub: its steps name what exists, and the summary says what
// went wrong.
import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const logs = mkdtempSync(join(tmpdir(), "bnb-workflow-"));
afterAll(() => rmSync(logs, { recursive: true }));

interface Step {
  run?: string;
  uses?: string;
  if?: string;
}
interface Workflow {
  jobs: Record<
    string,
    {
      steps: Step[];
      strategy?: { matrix: { runner?: string | string[] } };
      "continue-on-error"?: string;
      "runs-on"?: string;
      "timeout-minutes": number;
    }
  >;
}
const workflow = Bun.YAML.parse(readFileSync(join(root, ".github/workflows/ci.yml"), "utf8")) as Workflow;
const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const commands = Object.values(workflow.jobs).flatMap(({ steps }) => steps.flatMap(({ run }) => run ?? []));

test("runs scripts and files that exist", () => {
  const named = commands.flatMap((command) => [...command.matchAll(/bun run ([\w:]+)/g)].map(([, name]) => name!));
  expect(named.filter((name) => !(name in scripts))).toEqual([]);
  const files = commands.flatMap((command) => [...command.matchAll(/bun ([\w./]+\.ts)/g)].map(([, file]) => file!));
  expect(files.length).toBeGreaterThan(2);
  expect(files.filter((file) => !existsSync(join(root, file)))).toEqual([]);
});

test("has Apple's compiler over the kernels before anything that could keep it from being seen", () => {
  for (const job of ["macos", "metal"]) {
    const ran = workflow.jobs[job]!.steps.flatMap(({ run }) => run ?? []);
    const at = ran.findIndex((command) => command.includes("metallib.ts"));
    expect(at).toBe(1);
    expect(ran[0]).toStartWith("bun run setup");
  }
  expect(workflow.jobs.metal!["timeout-minutes"]).toBeLessThanOrEqual(60);
});

test("has every macOS that the package is for, Intel too, and each uploads the kernels that Apple compiled", () => {
  const { macos, metal } = workflow.jobs;
  expect(macos!.strategy!.matrix.runner).toEqual(["macos-14", "macos-15", "macos-26", "macos-15-intel"]);
  expect(metal!.strategy!.matrix.runner).toContain('["macos-14", "macos-15", "macos-26"]');
  for (const { steps } of [macos!, metal!]) {
    const folder = steps.flatMap(({ run }) => /metallib\.ts "?(\$?\w+)/.exec(run ?? "")?.[1] ?? [])[0];
    const upload = steps.find(({ uses }) => uses?.startsWith("actions/upload-artifact"))!;
    expect(upload).toMatchObject({ if: "always()", with: { path: folder === "$LOGS" ? "logs" : folder } });
  }
});

test("holds the share of src/ that tests run: all of the suite, since named files are held to nothing", () => {
  const steps = workflow.jobs.coverage!.steps.flatMap(({ run }) => run ?? []);
  expect(steps).toEqual(["bun run test:coverage"]);
});

test("times a pull request against what it is based on, on one runner", () => {
  const { steps, "runs-on": runner } = workflow.jobs.speed!;
  const [worktree, , against] = steps.flatMap(({ run }) => run ?? []);
  expect(worktree).toMatch(/^git worktree add \.\.\/base .*base\.sha/);
  expect(against).toMatch(/^bun bench\/against\.ts \.\.\/base /);
  expect(runner).toBe("ubuntu-24.04");
});

const summary = () => {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, join(root, ".github/summary.ts"), logs]);
  expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: "" });
  return stdout.toString();
};

test("sums up a run: what compiled, what failed and why, how fast it was, and where", () => {
  expect(summary().match(/^not run$/gm)).toHaveLength(6);
  const write = (name: string, text: string) => writeFileSync(join(logs, name), text);
  write("compile.txt", "accepted  metal/add.metal\nx.metal:3:1: error: no such type\nREFUSED   metal/cast.metal\n");
  write(
    "suite.txt",
    "\u001b[31merror\u001b[0m: expect(received)\nExpected: 1\nReceived: 2\n(fail) adds [1ms]\n\n 7 pass\n 1 fail\n",
  );
  write("validated.txt", "panic: the GPU hung\n");
  write("ahead.txt", " 9 pass\n 0 fail\n");
  write("bench.txt", "matmul 1 row 80 GB/s\n");
  write("doctor.json", '{ "devices": [] }\n');
  const text = summary();
  for (const expected of [
    "| metal/add.metal | accepted |",
    "| metal/cast.metal | REFUSED |",
    "x.metal:3:1: error: no such type",
    "7 pass, 1 fail",
    "(fail) adds",
    "Expected: 1",
    "it did not come to its end",
    "panic: the GPU hung",
    "9 pass, 0 fail",
    "matmul 1 row 80 GB/s",
    '{ "devices": [] }',
  ])
    expect(text).toContain(expected);
  expect(text).not.toContain("\u001b");
});
