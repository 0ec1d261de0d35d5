// `bun run test:arm64`, on demand since an emulator is forty times slower: the CPU's forms for arm64, by
// themselves, on processors that have them and on one that lacks some; and the whole library, with suites of operations
// under Bun for arm64.
import { beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { buildCommand, platformNamed } from "../../scripts/platforms.ts";
import { findQemu } from "../../scripts/qemu.ts";
import { root, run } from "../../scripts/run.ts";
import { absent, buildForms, formsOf } from "./forms.ts";

/** The first processor that has what a form needs; `max` has all that the emulator knows. */
const processors: Record<string, string> = {
  neon: "cortex-a53",
  wide: "cortex-a53",
  checked: "cortex-a53",
  dotprod: "neoverse-n1",
};

const qemu = findQemu();

describe.skipIf(!qemu)("forms_test for arm64, emulated", () => {
  let program: string;
  const emulate = (cpu: string, isa: string) => Bun.spawn(qemu!.command(cpu, program, isa), { stderr: "pipe" });

  beforeAll(async () => {
    // Without the sanitizer, which the run on real processors has: here it makes four minutes of one.
    program = await buildForms("arm64", "aarch64-linux-musl", "-fno-sanitize=all");
  }, 600_000);

  // Not `pool`: the emulator can't fork a process that has threads.
  test.concurrent.each(formsOf("arm64"))(
    "%s",
    async (isa) => {
      const child = emulate(processors[isa] ?? "max", isa);
      const [exitCode, stderr] = await Promise.all([child.exited, child.stderr.text()]);
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    },
    1_200_000,
  );

  test.each([
    ["cortex-a53", "dotprod"],
    ["neoverse-n1", "i8mm"],
  ])("%s lacks what the forms of %s use, and is not given them", async (cpu, isa) => {
    expect(await emulate(cpu, isa).exited).toBe(absent);
  });
});

describe.skipIf(!qemu)("Bun for arm64, emulated", () => {
  const folder = `${root}/.cache/arm64`;
  const bun = `${folder}/bun`;

  beforeAll(() => {
    mkdirSync(folder, { recursive: true });
    writeFileSync(`${folder}/empty.ts`, "");
    // A single-file executable is its platform's Bun as well, for one that asks it to be.
    const compile = ["build", "--compile", "--target=bun-linux-arm64", `${folder}/empty.ts`, "--outfile", bun];
    expect(run([process.execPath, ...compile])).toBe(0);
    expect(run(buildCommand(platformNamed("linux-arm64")))).toBe(0);
  }, 600_000);

  test.each(["quantize", "embedding"])(
    "passes test/%s.test.ts",
    async (suite) => {
      const command = qemu!.command("neoverse-n1", bun, "test", "--timeout=600000", `test/${suite}.test.ts`);
      const child = Bun.spawn(command, { cwd: root, env: { ...process.env, BUN_BE_BUN: "1" }, stderr: "pipe" });
      const [exitCode, stderr] = await Promise.all([child.exited, child.stderr.text()]);
      expect({ exitCode, failed: stderr.match(/^\(fail\).*/gm) }).toEqual({ exitCode: 0, failed: null });
      expect(stderr).toMatch(/^ *[1-9]\d+ pass$/m);
    },
    1_200_000,
  );
});
