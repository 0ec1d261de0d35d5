// The waist on two drivers that are not Metal's: one that launches nothing, one with memory of its own.
import { expect, test } from "bun:test";
import { driverEnvironment } from "./build.ts";

const root = `${import.meta.dir}/../..`;

/** Runs test files in a process that has the driver as its device. */
function passes(kind: "null" | "discrete", files: string[], env: Record<string, string> = {}): void {
  const { exitCode, stderr } = Bun.spawnSync([process.execPath, "test", "--timeout=120000", ...files], {
    cwd: root,
    env: { ...process.env, ...driverEnvironment(kind), ...env },
    stdout: "ignore",
    stderr: "pipe",
  });
  expect(exitCode === 0 ? "" : stderr.toString()).toBe("");
}

const simulates = process.platform === "linux" && process.arch === "x64";
test.skipIf(!simulates).each(["null", "discrete"] as const)("the rules of the %s driver", (kind) =>
  passes(kind, [`./test/drivers/${kind}.ts`, "./test/recording.test.ts", "./test/move.test.ts"]),
);
