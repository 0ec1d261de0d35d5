// What is compiled while `bun run test:coverage` counts, such as translated kernels and programs that drive a fake GPU,
// has counters too: by the clang that brings them, and told to whoever reads them.
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { coverageFlags, findLlvm } from "./native.ts";

/**
 * The folder of this run's counters, which processes that it starts inherit; undefined where nothing of C is counted,
 * be it for want of a clang.
 */
export const countersFolder = (): string | undefined => process.env.COUNTERS_FOLDER || undefined;

/** What has code counted, by a clang that may warn of more; what is an error by its own name stays one. */
export const countingFlags = [...coverageFlags, "-Wno-error"];

/** Writes the counters of a process that ends by quick_exit, as Bun does: to be linked in. */
export const atExit = `${import.meta.dir}/at_exit.c`;

/** Links with counters, or compiles C so; as `zig` in scripts/msl/clang.ts, which lacks the counters' runtime. */
export function countingClang(args: readonly string[]): { ok: boolean; stderr: string } {
  const { exitCode, stderr } = Bun.spawnSync([findLlvm()!.clang, ...args], { stdout: "ignore", stderr: "pipe" });
  return { ok: exitCode === 0, stderr: stderr.toString() };
}

/** Says that a library or program has counters, once it is used in this run. */
export function tellCounted(path: string): void {
  const folder = countersFolder();
  if (!folder) return;
  mkdirSync(`${folder}/objects`, { recursive: true });
  writeFileSync(`${folder}/objects/${Bun.hash(path).toString(36)}`, path);
}

/** What was told so. */
export function countedObjects(folder: string): string[] {
  mkdirSync(`${folder}/objects`, { recursive: true });
  const paths = readdirSync(`${folder}/objects`).map((name) => readFileSync(`${folder}/objects/${name}`, "utf8"));
  return paths.filter((path) => existsSync(path)); // a text that does not compile has none
}
