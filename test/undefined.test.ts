// The reports of test/undefined.c, which every sanitized build of the tests ends with: what is undefined ends the
// program, and its place is told.
import { expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { inParallel, objectsOf, zigCompiler } from "../scripts/objects.ts";
import { root } from "../scripts/run.ts";
import { findZig } from "../scripts/zig.ts";
import { writeWhole } from "./metal/toolchain.ts";

test.skipIf(process.platform !== "linux")("undefined behaviour ends a program, with its place", async () => {
  const folder = ".cache/undefined";
  mkdirSync(`${root}/${folder}`, { recursive: true });
  writeWhole(
    `${root}/${folder}/planted.c`,
    `#include <stdint.h>
int main(int count, char **arguments) {
    static const int eight[8];
    switch (arguments[1][0]) {
    case 'a': return INT32_MAX - 1 + count > 0;
    case 's': return 1 << (30 + count);
    case 'b': return eight[6 + count];
    case 'f': return (int)(1e10f * count) > 0;
    case 'm': return *(const int *)(arguments[2] - arguments[2]);
    default: return 0;
    }
}
`,
  );
  const flags = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-g1"];
  const objects = await objectsOf([
    { compiler: zigCompiler(), source: `${folder}/planted.c`, flags, includes: [] },
    { compiler: zigCompiler(), source: "test/undefined.c", flags: ["-fPIC", "-fno-sanitize=all"], includes: [] },
  ]);
  const program = `${root}/${folder}/planted`;
  await inParallel([
    [findZig(), "build-exe", "-lc", "-fno-compiler-rt", "-fno-ubsan-rt", `-femit-bin=${program}`, ...objects],
  ]);
  const kinds = {
    a: "add_overflow",
    s: "shift_out_of_bounds",
    b: "out_of_bounds",
    f: "float_cast",
    m: "type_mismatch",
  };
  for (const [index, [kind, word]] of Object.entries(kinds).entries()) {
    const { signalCode, stderr } = Bun.spawnSync([program, kind, "second"]);
    expect(signalCode).toBe("SIGABRT");
    expect(stderr.toString()).toMatch(new RegExp(`planted\\.c:${index + 5}:\\d+: undefined behaviour: ${word}`));
  }
  expect(Bun.spawnSync([program, "none"]).exitCode).toBe(0);
});
