// The package's budget, which `bun run check` and `bun run package` hold: its size once it is unpacked, and what it
// depends on.
import { statSync } from "node:fs";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import { say, stop } from "./run.ts";

/** What the package may take at most, in megabytes of 10⁶ bytes. */
export const budget = {
  /** Unpacked, with the libraries of every platform. */
  unpacked: 13,
  /** As npm serves it. */
  tarball: 5,
  /** CUDA's kernels, compressed as they are published: a clone has them only on request, and others than these. */
  kernels: 0.5,
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

const isKernels = ([path]: Sized) => path === "lib/kernels.ptx.zst";

/**
 * The tarball as it is published, in megabytes, with what the kernels' file may take in the place of the one that is
 * there, which does not become smaller in a tarball.
 */
const packedOf = (files: readonly Sized[], tarball: number): number =>
  tarball / 1e6 - megabytesOf(files.filter(isKernels)) + budget.kernels;

/** What goes beyond the budget, a sentence each. `tarball` is that of these files, in bytes. */
export function beyond(files: readonly Sized[], dependencies: readonly string[], tarball: number): string[] {
  const megabytes = megabytesOf(files);
  const most = budget.unpacked;
  const largest = files.slice(0, 5).map(([path, bytes]) => `${path} ${(bytes / 1e6).toFixed(2)}`);
  const packed = packedOf(files, tarball);
  return [
    ...(megabytes > most
      ? [`The package takes ${megabytes.toFixed(2)} MB unpacked, and the most is ${most}: ${largest.join(", ")}, …`]
      : []),
    ...(packed > budget.tarball
      ? [
          `Its tarball takes ${packed.toFixed(2)} MB, with ${budget.kernels} for CUDA's kernels, and the most is ` +
            `${budget.tarball}: ${largest.join(", ")}, …`,
        ]
      : []),
    ...(dependencies.length > budget.dependencies
      ? [
          `It depends on ${dependencies.length} packages, and the most is ${budget.dependencies}: ${dependencies.join(", ")}.`,
        ]
      : []),
  ];
}

/** What CUDA's kernels take beyond theirs, as they are published. */
export const kernelsBeyond = (files: readonly Sized[]): string[] =>
  files
    .filter((file) => isKernels(file) && megabytesOf([file]) > budget.kernels)
    .map(([path, bytes]) => `${path} takes ${(bytes / 1e6).toFixed(2)} MB, and the most is ${budget.kernels}.`);

/** Ends the script where a package, as it lies in a folder and as it was packed, is beyond the budget. */
export function holdBudget(folder: string, tarball: string, published: boolean): void {
  const files = filesOf(folder);
  const { size } = statSync(tarball);
  const over = beyond(files, Object.keys(packageJson.dependencies), size);
  if (published) over.push(...kernelsBeyond(files));
  if (over.length) stop(`${over.join("\n")}\nMake it smaller, or say in scripts/budget.ts what is worth more.`);
  const packed = published ? (size / 1e6).toFixed(2) : `at most ${packedOf(files, size).toFixed(2)}`;
  say(`${megabytesOf(files).toFixed(2)} MB unpacked, of ${budget.unpacked}; ${packed} packed, of ${budget.tarball}.`);
}
