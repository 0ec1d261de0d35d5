// The CPU's forms by themselves, by forms_test.c, at the edge of unreadable pages: those that ship as they ship, and
// their sources in every width under the undefined-behaviour sanitizer, among them AVX-512's by emulation. The pool of
// threads is run by itself.
import { beforeAll, describe, expect, test } from "bun:test";
import { hostPlatform } from "../../scripts/platforms.ts";
import { type Architecture, absent, buildForms, formsOf } from "./forms.ts";

const architecture = process.arch as Architecture;
let program: string;

beforeAll(async () => {
  // Not null, object-size and pointer-overflow, which take two thirds of the time to compile: buffers end at unreadable
  // pages. The run under AddressSanitizer, in test:faults, has them.
  const without = ["-fno-sanitize=null,object-size,pointer-overflow", "-fno-sanitize-recover=all"];
  const checks = ["-fsanitize=undefined", ...without, "-ftrivial-auto-var-init=pattern"];
  program = await buildForms(architecture, hostPlatform().target, ...checks);
}, 900_000);

describe("forms_test", () => {
  test.each([...formsOf(architecture), "pool"])(
    "%s",
    (name) => {
      const { exitCode, stderr } = Bun.spawnSync([program, name]);
      if (exitCode === absent) return console.log(`  ${name}: this processor can't run it`);
      expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: "" });
    },
    120_000,
  );
});
