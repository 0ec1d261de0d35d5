// Owns running one kernel of metal/ by itself on the simulator, as csrc/gpu/driver.h says.
import { familySource } from "../../scripts/msl/families.ts";
import { compile, type MetalLibrary, type Mode, type View } from "./simulator.ts";

/** How the simulator runs kernels. */
export interface Run {
  mode: Mode;
  seed: number;
}

/** Fast runs in order; the checked mode shuffles threads and threadgroups by two seeds. */
export const runs: readonly Run[] = [
  { mode: "fast", seed: 0 },
  { mode: "check", seed: 1 },
  { mode: "check", seed: 2 },
];

const libraries = new Map<string, MetalLibrary>();

interface Launch extends Run {
  family: string;
  kernel: string;
  constants: readonly number[];
  args: readonly number[];
  buffers: readonly View[];
  /** Buffers behind these that the kernel only reads. */
  behind?: readonly View[];
  grid: readonly [number, number, number];
  group: number;
  /** Bytes of [[threadgroup(0)]]. */
  shared?: number;
  /** Whether it is one of cuda/'s, which may take more threadgroup memory than Apple's GPUs have. */
  large?: boolean;
}

/**
 * Runs a kernel as csrc/gpu/driver.h says: args at 0, buffers from 1 on. The last buffers, `results` of them, are
 * fresh.
 */
export function launch(
  { family, kernel, constants, args, buffers, behind = [], grid, group, shared, large, mode, seed }: Launch,
  results = 1,
): void {
  const key = `${family} ${mode}`;
  const library = libraries.get(key) ?? compile(familySource(family), { mode });
  libraries.set(key, library);
  library.run(kernel, {
    constants: Object.fromEntries(constants.entries()),
    args: { 0: Uint32Array.from(args) },
    buffers: Object.fromEntries([...buffers, ...behind].map((buffer, i) => [i + 1, buffer])),
    fresh: Array.from({ length: results }, (_, i) => buffers.length - i),
    grid,
    group,
    seed,
    ...(shared ? { threadgroup: { 0: shared } } : {}),
    ...(large ? { large } : {}),
  });
}
