// The ways in which the suite runs on the simulated Apple GPU: what `bun run test:metal --modes` goes through.

/**
 * What each mode has in its environment. The kernels' own tests run checked as well, with two seeds
 * (`bun test test/metal`).
 */
export const modes: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  /** As Apple's GPUs are: subnormal fp32 numbers count as zeros. It is what runs without a mode, and in .ci/run. */
  flushed: {},
  plain: { BNB_SIM_FLUSH: "0" },
  "fast functions": { BNB_SIM_FUNCTIONS: "fast" },
  "seed 1": { BNB_SIM_SEED: "1" },
  "seed 2": { BNB_SIM_SEED: "2" },
  "exact buffers": { BNB_METAL_EXACT: "1" },
};

/** The variables that a mode is made of: another's must not come in from outside. */
export const variables = ["BNB_SIM_FLUSH", "BNB_SIM_FUNCTIONS", "BNB_SIM_SEED", "BNB_METAL_EXACT"];
