// `bun run test:drivers [file…]`: the suite on the null driver, where every operation must do without a GPU's
// help, and on the discrete one, which runs the kernels in memory of its own and leaves no operation to the CPU.
import { resolve } from "node:path";
import { driverEnvironment } from "./build.ts";

const root = resolve(import.meta.dir, "../..");
const given = process.argv.slice(2);
/** What has operations in it, and is quick enough in the simulator. */
const usual = ["elementwise", "compare", "embedding", "layer_norm", "kbits", "tensor", "gguf", "int8", "optim", "move"];
const files = given.length ? given : usual.map((stem) => `test/${stem}.test.ts`);

let worst = 0;
for (const kind of ["null", "discrete"] as const) {
  console.error(`\nOn the ${kind} driver:`);
  const { exitCode } = Bun.spawnSync([process.execPath, "test", "--timeout=120000", ...files], {
    cwd: root,
    env: { ...process.env, ...driverEnvironment(kind) },
    stdio: ["inherit", "inherit", "inherit"],
  });
  worst = Math.max(worst, exitCode);
}
process.exit(worst);
