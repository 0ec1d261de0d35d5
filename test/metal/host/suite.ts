// Owns `bun run test:metal [file…]`: the whole suite, with the simulated GPU as its device and, unless BNB_STRICT=0, no
// operation left to the CPU. What knows no device, such as the simulator's own tests, only `bun run test` has; faults
// have the simulated GPU in their long form.
import { resolve } from "node:path";
import { fakeMetal } from "./build.ts";

const root = resolve(import.meta.dir, "../../..");
const withoutDevice =
  /^test\/(metal|cpu|faults)\/|^test\/(isa|arguments|macho|package|executable|doctor|markdown)\.test\.ts$/;
const all = [...new Bun.Glob("test/**/*.test.ts").scanSync(root)].filter((file) => !withoutDevice.test(file));
const given = process.argv.slice(2);

// The checked simulator takes seconds for what a GPU, or the CPU, takes milliseconds.
const { exitCode } = Bun.spawnSync(
  [process.execPath, "test", "--timeout=120000", ...(given.length ? given : all.sort())],
  {
    cwd: root,
    env: {
      ...process.env,
      BNB_DEVICE: "metal",
      BNB_STRICT: process.env.BNB_STRICT ?? "1",
      BNB_METAL_LIBRARY: fakeMetal(),
      BNB_SIM_BUN: process.execPath,
    },
    stdio: ["inherit", "inherit", "inherit"],
  },
);
process.exit(exitCode);
