// The peak of this processor's fp32 arithmetic: bench/peak.c, compiled for it and run.
import { existsSync, mkdirSync, statSync } from "node:fs";
import { output, root, run, stop } from "../scripts/run.ts";
import { findZig } from "../scripts/zig.ts";

const source = `${root}/bench/peak.c`;
const program = `${root}/.cache/bench/peak`;

/** GFLOP/s of fp32 multiply-adds on so many threads, each counted as two operations. */
export function peak(threads: number): number {
  if (!existsSync(program) || statSync(program).mtimeMs < statSync(source).mtimeMs) {
    mkdirSync(`${root}/.cache/bench`, { recursive: true });
    const flags = ["-std=c23", "-O3", "-march=native", "-Wall", "-Wextra", "-Werror", "-pthread"];
    if (run([findZig(), "cc", ...flags, source, "-o", program]) !== 0)
      stop("bench/peak.c could not be compiled: the compiler's message is above.");
  }
  const gigaflops = Number(output([program, String(threads)]));
  if (!(gigaflops > 0)) stop(`${program} ${threads} failed; delete it and try again.`);
  return gigaflops;
}
