// The CPU's forms by themselves, by forms_test.c, at the edge of unreadable pages: those that ship as they ship, and
// their sources in every width under the undefined-behaviour sanitizer, among them AVX-512's by emulation. The pool of
// threads is run by itself.
import { beforeAll, describe, expect, test } from "bun:test";
import { ownInstructionSets } from "../../scripts/compile.ts";
import { hostPlatform } from "../../scripts/platforms.ts";
import { type Architecture, buildForms, formsOf } from "./forms.ts";

const architecture = process.arch as Architecture;
let program: string;

beforeAll(async () => {
  const checks = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-ftrivial-auto-var-init=pattern"];
  program = await buildForms(architecture, hostPlatform().target, ...checks);
}, 900_000);

describe("forms_test", () => {
  const run = (...names: string[]) => {
    const { exitCode, stdout, stderr } = Bun.spawnSync([program, ...names]);
    return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
  };

  // In one process, which makes inputs and right answers once for all.
  test("every form that this processor can run", () => {
    const { stdout: absent, ...ran } = run(...formsOf(architecture));
    if (absent) console.log(`  this processor can't run ${absent.trim().split("\n").join(", ")}`);
    expect(ran).toEqual({ exitCode: 0, stderr: "" });
    for (const { name } of ownInstructionSets(hostPlatform())) expect(absent.split("\n")).not.toContain(name);
  }, 300_000);

  test("the pool", () => {
    expect(run("pool")).toEqual({ exitCode: 0, stdout: "", stderr: "" });
  }, 120_000);
});
