// `bun run test:metal [file…]`: the suite, with the simulated GPU as its device and, unless BNB_STRICT=0, no
// operation left to the CPU. What knows no device, such as the server's HTTP, or has one of its own, only
// `bun run test` has; faults have the simulated GPU in their long form. With `--modes` it runs once in each mode of
// modes.ts, and says at the end in which it failed; `--mode="seed 1"` runs that one alone, `--bail` stops at the
// first failure.
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { fakeMetal } from "./build.ts";
import { modes, variables } from "./modes.ts";

const root = resolve(import.meta.dir, "../../..");
const withoutDevice =
  /^test\/(metal|cuda|cpu|drivers|faults|serve)\/|^test\/(isa|arguments|macho|package|executable|doctor|markdown)\.test\.ts$/;
const all = [...new Bun.Glob("test/**/*.test.ts").scanSync(root)].filter((file) => !withoutDevice.test(file));
const { values, positionals: given } = parseArgs({
  options: { modes: { type: "boolean" }, mode: { type: "string" }, bail: { type: "boolean", default: false } },
  allowPositionals: true,
});
if (values.mode !== undefined && !(values.mode in modes)) {
  console.error(`There is no mode "${values.mode}", only ${Object.keys(modes).join(", ")}.`);
  process.exit(2);
}

/** The checked simulator takes seconds for what a GPU, or the CPU, takes milliseconds. */
function suite(environment: Readonly<Record<string, string | undefined>>): boolean {
  const { exitCode } = Bun.spawnSync(
    [
      process.execPath,
      "test",
      "--timeout=120000",
      ...(values.bail ? ["--bail"] : []),
      ...(given.length ? given : all.sort()),
    ],
    {
      cwd: root,
      env: {
        ...environment,
        BNB_DEVICE: "metal",
        BNB_STRICT: process.env.BNB_STRICT ?? "1",
        BNB_METAL_LIBRARY: fakeMetal(),
        BNB_SIM_BUN: process.execPath,
      },
      stdio: ["inherit", "inherit", "inherit"],
    },
  );
  return exitCode === 0;
}

function passesIn(mode: string): boolean {
  console.error(`\nMode: ${mode}`);
  const without = Object.fromEntries(Object.entries(process.env).filter(([name]) => !variables.includes(name)));
  return suite({ ...without, ...modes[mode] });
}

if (values.modes || values.mode !== undefined) {
  const failed = Object.keys(modes).filter((mode) => (values.mode ?? mode) === mode && !passesIn(mode));
  if (failed.length) console.error(`\nIt failed in: ${failed.join(", ")}.`);
  process.exit(failed.length ? 1 : 0);
}
process.exit(suite(process.env) ? 0 : 1);
