// Owns `bun run test:arm64`, on demand since an emulator is forty times slower: the CPU's forms for arm64, by themselves, on
// processors that have them and on one that lacks some. The real library under Bun for arm64 is test:package's.
import { beforeAll, describe, expect, test } from "bun:test";
import { findQemu } from "../../scripts/qemu.ts";
import { absent, buildForms, forms } from "./forms.ts";

/** The first processor that has what a form needs; `max` has all that the emulator knows. */
const processors: Record<string, string> = { neon: "cortex-a53", wide: "cortex-a53", dotprod: "neoverse-n1" };

const qemu = findQemu();

describe.skipIf(!qemu)("forms_test for arm64, emulated", () => {
  let program: string;
  const run = (cpu: string, isa: string) => Bun.spawn(qemu!.command(cpu, program, isa), { stderr: "pipe" });

  beforeAll(async () => {
    // Without the sanitizer, which the run on real processors has: here it makes four minutes of one.
    program = await buildForms("arm64", "-target", "aarch64-linux-musl", "-static", "-fno-sanitize=all");
  }, 600_000);

  // Not `pool`: the emulator can't fork a process that has threads.
  test.concurrent.each(Object.keys(forms.arm64))(
    "%s",
    async (isa) => {
      const child = run(processors[isa] ?? "max", isa);
      const [exitCode, stderr] = await Promise.all([child.exited, child.stderr.text()]);
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    },
    1_200_000,
  );

  test("a processor without dot products is not given the forms that use them", async () => {
    expect(await run("cortex-a53", "dotprod").exited).toBe(absent);
  });
});
