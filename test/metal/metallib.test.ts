// What scripts/metallib.ts makes of Apple's compiler, which a shell script stands in for: found, absent, or refusing a
// family.
import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { families, fingerprint, kernelTexts } from "../../scripts/msl/families.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-metallib-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const script = join(import.meta.dir, "../../scripts/metallib.ts");

/** Runs the script with an xcrun that notes how it was called, and then does this. */
function withXcrun(body: string) {
  const folder = mkdtempSync(join(scratch, "run-"));
  const log = join(folder, "calls");
  writeFileSync(join(folder, "xcrun"), `#!/bin/sh\necho "$*" >> ${log}\n${body}\n`);
  chmodSync(join(folder, "xcrun"), 0o755);
  const out = mkdtempSync(join(folder, "out-"));
  const ran = Bun.spawnSync([process.execPath, script, out], {
    env: { ...process.env, PATH: `${folder}:${dirname(process.execPath)}:/usr/bin:/bin` },
  });
  const calls = readFileSync(log, "utf8").trim().split("\n");
  return {
    status: ran.exitCode,
    out: ran.stdout.toString(),
    err: ran.stderr.toString(),
    calls,
    written: readdirSync(out),
  };
}

/** Writes to what -o names. */
const writes = 'while [ $# -gt 1 ]; do shift; [ "$1" = -o ] && : > "$2"; done; exit 0';

describe.skipIf(process.platform !== "linux")("the kernels compiled ahead", () => {
  test("are made of every family, with safe arithmetic and precise functions", () => {
    const { status, out, calls, written } = withXcrun(writes);
    expect(status).toBe(0);
    expect(written).toEqual([`bunsandbytes-${fingerprint(kernelTexts())}.metallib`]);
    const compiles = calls.filter((call) => call.includes(" -c "));
    expect(compiles).toHaveLength(families.length);
    for (const call of compiles)
      expect(call).toContain("metal -std=metal3.0 -mmacosx-version-min=13.1 -fno-fast-math -c");
    for (const stem of families) expect(out).toContain(`accepted  metal/${stem}.metal`);
  });

  test("need the compiler itself: Xcode 26 finds one that is not there", () => {
    const { status, err, calls } = withXcrun('case "$*" in *--version*) exit 1;; *) echo /usr/bin/metal;; esac');
    expect(status).toBe(1);
    expect(err).toContain("xcodebuild -downloadComponent MetalToolchain");
    expect(calls).toHaveLength(1);
  });

  test("a family that is refused is named, and the others are tried", () => {
    const { status, out, err, written } = withXcrun(`case "$*" in *quantize.metal*) exit 1;; esac; ${writes}`);
    expect({ status, written }).toEqual({ status: 1, written: [] });
    expect(out).toContain("REFUSED   metal/quantize.metal");
    expect(out).toContain("accepted  metal/scales.metal");
    expect(err).toContain("refuses metal/");
  });
});
