// Owns the run of forms_test.c on this processor: the CPU's forms by themselves, under the undefined-behaviour
// sanitizer, at the edge of unreadable pages; among them AVX-512's on machines that lack it, by the portable form at
// its width and by emulation. The pool of threads is run by itself.
import { beforeAll, describe, expect, test } from "bun:test";
import { type Architecture, absent, buildForms, forms } from "./forms.ts";

const architecture = process.arch as Architecture;
let program: string;

beforeAll(async () => {
  // Not null, object-size and pointer-overflow, which take two thirds of the time to compile: buffers end at unreadable
  // pages. The run under AddressSanitizer, in test:faults, has them.
  const without = ["-fno-sanitize=null,object-size,pointer-overflow", "-fno-sanitize-recover=all"];
  const checks = ["-fsanitize=undefined", ...without, "-ftrivial-auto-var-init=pattern"];
  program = await buildForms(architecture, ...checks);
}, 900_000);

describe("forms_test", () => {
  test.each([...Object.keys(forms[architecture]), "pool"])(
    "%s",
    (name) => {
      const { exitCode, stderr } = Bun.spawnSync([program, name]);
      if (exitCode === absent) return console.log(`  ${name}: this processor can't run it`);
      expect({ exitCode, stderr: stderr.toString() }).toEqual({ exitCode: 0, stderr: "" });
    },
    120_000,
  );
});
