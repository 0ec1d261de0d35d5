// What a release is held to before anything is published: one version everywhere, and a changelog that has it.
import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { obstacles } from "../scripts/release.ts";

const { version } = packageJson;

test("the version is the same in package.json and csrc/bnb.h, and the changelog has it", async () => {
  const found = await obstacles(`v${version}`);
  expect(found.filter((sentence) => !sentence.includes("unreleased"))).toEqual([]);
});

test("a tag of another version is refused, with the right one", async () => {
  expect(await obstacles("v9.9.9")).toContain(
    `The tag is v9.9.9, and package.json says ${version}: the tag must be v${version}.`,
  );
});

interface Job {
  readonly needs?: string;
  readonly if?: string;
  readonly strategy?: { readonly matrix: { readonly runner: readonly string[] } };
  readonly steps: readonly { readonly run?: string; readonly env?: Record<string, string> }[];
}
const path = join(import.meta.dir, "../.github/workflows/release.yml");
const { jobs } = Bun.YAML.parse(readFileSync(path, "utf8")) as { jobs: Record<"build" | "try" | "publish", Job> };

test("the workflow publishes only what was tried on each platform, and only from a tag", () => {
  const { try: trial, publish } = jobs;
  expect(publish).toMatchObject({ needs: "try", if: "github.ref_type == 'tag'" });
  expect(trial.needs).toBe("build");
  expect(trial.strategy!.matrix.runner.length).toBe(4);
});

/** What the steps of a job that call npm have it do, with another in its place; its files stay in a folder. */
function npmOf(job: Job, folder: string): string[] {
  const calls = join(folder, "calls");
  const fake = `#!/bin/sh\necho "$*" >> "${calls}"\n[ "$*" != "config get registry" ] || echo https://packages.example/\n`;
  writeFileSync(join(folder, "npm"), fake, { mode: 0o755 });
  for (const { run, env = {} } of job.steps) {
    if (!run?.includes("npm ")) continue;
    const given = { PATH: `${folder}:${process.env.PATH}`, GITHUB_SERVER_URL: "https://forge.example", ...env };
    const step = Bun.spawnSync(["bash", "-e", "-c", run], { cwd: folder, env: { ...given, GITHUB_REPOSITORY: "a/b" } });
    expect(step.exitCode).toBe(0);
  }
  return readFileSync(calls, "utf8").trim().split("\n");
}

test("npm gets its token for the registry that it publishes to, and a package that says where it comes from", () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-release-"));
  writeFileSync(join(folder, "bunsandbytes-1.2.3.tgz"), "");
  const token = jobs.publish.steps.find(({ env }) => env)!.env!.NODE_AUTH_TOKEN;
  expect(token).toContain("secrets.NPM_TOKEN");
  expect(npmOf(jobs.publish, folder)).toEqual([
    "config get registry",
    `config set //packages.example/:_authToken=${token}`,
    "publish ./bunsandbytes-1.2.3.tgz --provenance --access public",
  ]);
  rmSync(join(folder, "calls"));
  expect(npmOf(jobs.build, folder)).toEqual([
    "pkg set repository.type=git repository.url=git+https://forge.example/a/b.git",
  ]);
  const order = jobs.build.steps.map(({ run }) => run ?? "");
  expect(order.findIndex((run) => run.includes("npm pkg"))).toBeLessThan(order.indexOf("bun run package"));
  rmSync(folder, { recursive: true });
});
