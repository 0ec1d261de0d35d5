// `bun run test:cuda [file…]`: the suite with the simulated NVIDIA GPU as its device and, unless BNB_STRICT=0, no
// operation left to the CPU. `--short` runs what .ci/run has time for.
import { resolve } from "node:path";
import { fakeCuda } from "./build.ts";

const root = resolve(import.meta.dir, "../../..");
const withoutDevice =
  /^test\/(metal|cuda|cpu|faults|drivers)\/|^test\/(isa|arguments|macho|package|executable|doctor|markdown)\.test\.ts$/;
/** Of test/cuda, those that need the kernels, which are compiled before this runs. */
const withKernels = /^test\/cuda\/(backward|dequantize|devices)\.test\.ts$/;
/** A file or two of each kind of kernel. */
const short = [
  "cuda/backward",
  "cuda/dequantize",
  "cuda/devices",
  "elementwise",
  "compare",
  "embedding",
  "format",
  "kbits",
  "matmul",
  "optim",
  "quantize",
  "scales",
  "tensor",
];

const arguments_ = process.argv.slice(2);
const given = arguments_.filter((argument) => argument !== "--short");
const all = arguments_.includes("--short")
  ? short.map((stem) => `test/${stem}.test.ts`)
  : [...new Bun.Glob("test/**/*.test.ts").scanSync(root)].filter(
      (file) => !withoutDevice.test(file) || withKernels.test(file),
    );

const { exitCode } = Bun.spawnSync(
  [process.execPath, "test", "--timeout=120000", ...(given.length ? given : all.sort())],
  {
    cwd: root,
    env: {
      ...process.env,
      BNB_DEVICE: "cuda",
      BNB_STRICT: process.env.BNB_STRICT ?? "1",
      BNB_CUDA_LIBRARY: process.env.BNB_CUDA_LIBRARY ?? fakeCuda(),
      BNB_SIM_BUN: process.execPath,
    },
    stdio: ["inherit", "inherit", "inherit"],
  },
);
process.exit(exitCode);
