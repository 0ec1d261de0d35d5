// The package's budget, which `bun run check` and `bun run package` hold: its size once it is unpacked, and what it
// depends on.
import { statSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { say, stop } from "./run.ts";

/** What the package may take at most. CUDA's kernels are text, which is why npm's tarball is a fraction of it. */
export const budget = {
  /** Megabytes of 10⁶ bytes, unpacked, with the libraries of every platform but without CUDA's kernels. */
  unpacked: 12,
  /** The same with CUDA's kernels, which each of Linux's libraries has in it. */
  unpackedWithKernels: 40,
  /** Packages that are installed along with it whether or not they are asked for. */
  dependencies: 6,
} as const;

/** A file of the package and its bytes. */
export type Sized = readonly [path: string, bytes: number];

/** The files of a folder, the largest first. */
export const filesOf = (folder: string): Sized[] =>
  [...new Bun.Glob("**/*").scanSync({ cwd: folder, dot: true })]
    .map((path): Sized => [path, statSync(join(folder, path)).size])
    .sort(([, one], [, other]) => other - one);

export const megabytesOf = (files: readonly Sized[]): number => files.reduce((sum, [, bytes]) => sum + bytes, 0) / 1e6;

/** What goes beyond the budget, a sentence each. */
export function beyond(files: readonly Sized[], dependencies: readonly string[], most: number): string[] {
  const megabytes = megabytesOf(files);
  const largest = files.slice(0, 5).map(([path, bytes]) => `${path} ${(bytes / 1e6).toFixed(2)}`);
  return [
    ...(megabytes > most
      ? [`The package takes ${megabytes.toFixed(2)} MB unpacked, and the most is ${most}: ${largest.join(", ")}, …`]
      : []),
    ...(dependencies.length > budget.dependencies
      ? [
          `It depends on ${dependencies.length} packages, and the most is ${budget.dependencies}: ${dependencies.join(", ")}.`,
        ]
      : []),
  ];
}

/** Ends the script where the package, as it lies in a folder, is beyond the budget. */
export function holdBudget(folder: string, most: number): void {
  const files = filesOf(folder);
  const over = beyond(files, Object.keys(packageJson.dependencies), most);
  if (over.length) stop(`${over.join("\n")}\nMake it smaller, or say in scripts/budget.ts what is worth more.`);
  say(`${megabytesOf(files).toFixed(2)} MB unpacked, of ${most}.`);
}
