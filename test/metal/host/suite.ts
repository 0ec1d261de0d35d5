// Owns `bun run test:metal`: the whole suite, with the simulated GPU as its device and no operation left to the CPU.
import { fakeMetal } from "./build.ts";

const { exitCode } = Bun.spawnSync([process.execPath, "test", ...process.argv.slice(2)], {
  env: {
    ...process.env,
    BNB_DEVICE: "metal",
    BNB_STRICT: "1",
    BNB_METAL_LIBRARY: fakeMetal(),
    BNB_SIM_BUN: process.execPath,
  },
  stdio: ["inherit", "inherit", "inherit"],
});
process.exit(exitCode);
