// Scripts in processes of their own on simulated NVIDIA GPUs: for several of them, other kinds of them, and profiles.
import { statSync } from "node:fs";
import { resolve } from "node:path";
import { kernelsFile } from "../../scripts/ptx.ts";
import { fakeCuda } from "./host/build.ts";

const root = resolve(import.meta.dir, "../..");

/** The kernels are here only where setup was asked for them, as `bun run test:cuda` does. */
const hasKernels = statSync(kernelsFile).size > 0;
if (!hasKernels)
  console.log("  Scripts on simulated NVIDIA GPUs are not tried: there are no kernels (bun run test:cuda has them).");

/** Whether `run` can. */
export const simulates = process.platform === "linux" && process.arch === "x64" && hasKernels;

/** Runs a script, which has the library as `bnb`, with faults and capabilities as BNB_FAKE_CUDA takes them. */
export function run(script: string, faults: string, more: Record<string, string> = {}): { out: string; err: string } {
  const { stdout, stderr } = Bun.spawnSync(
    [process.execPath, "-e", `import * as bnb from "./src/index.ts";\n${script}`],
    {
      cwd: root,
      env: {
        ...{ ...process.env, BNB_DEVICE: "", BNB_STRICT: "1", BNB_CUDA_LIBRARY: fakeCuda() },
        ...{ BNB_FAKE_CUDA: faults, BNB_SIM_BUN: process.execPath, ...more },
      },
    },
  );
  return { out: stdout.toString(), err: stderr.toString() };
}
