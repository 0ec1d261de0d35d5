// What a release is held to before anything is published: one version everywhere, and a changelog that has it.
import { expect, test } from "bun:test";
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

test("the workflow publishes only what was tried on each platform, and only from a tag", async () => {
  const workflow = Bun.YAML.parse(await Bun.file(`${import.meta.dir}/../.github/workflows/release.yml`).text()) as {
    jobs: Record<string, { needs?: string; if?: string; strategy?: { matrix: { runner: string[] } } }>;
  };
  const { try: trial, publish } = workflow.jobs;
  expect(publish).toMatchObject({ needs: "try", if: "github.ref_type == 'tag'" });
  expect(trial!.needs).toBe("build");
  expect(trial!.strategy!.matrix.runner.length).toBe(4);
});
