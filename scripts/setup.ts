// Owns what a fresh clone needs before anything runs: JavaScript packages, zig, and the native library, each made only
// where it is missing or stale. Imports nothing but Bun's own modules, since it runs before packages are installed.
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { relative } from "node:path";
import { buildCommand, builtLibrary, hostPlatform } from "./platforms.ts";
import { root, run, say, stop } from "./run.ts";

const stamps = `${root}/.cache/setup`;

/**
 * Does a step unless its inputs are as they were when it last succeeded and its result is there. Inputs count by their
 * contents and their place in the repository, so that a clone that was moved or copied does nothing again.
 */
function once(name: string, inputs: string[], result: string, step: () => void): void {
  const hash = new Bun.CryptoHasher("sha256");
  for (const path of inputs.flatMap(filesIn))
    hash
      .update(`${relative(root, path)}\0`)
      .update(readFileSync(path))
      .update("\0");
  const state = hash.digest("hex");
  const stamp = `${stamps}/${name}`;
  if (existsSync(result) && existsSync(stamp) && readFileSync(stamp, "utf8") === state) return;
  step();
  mkdirSync(stamps, { recursive: true });
  writeFileSync(stamp, state);
}

function filesIn(path: string): string[] {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath}/${entry.name}`)
    .sort();
}

function installPackages(): void {
  say("Installing JavaScript packages …");
  const status = run([process.execPath, "install", "--frozen-lockfile", "--silent"]);
  if (status !== 0) stop("The JavaScript packages could not be installed: the message above says why.");
}

function buildLibrary(): void {
  say("Building the native library: half a minute the first time …");
  const started = performance.now();
  if (run(buildCommand(hostPlatform())) !== 0)
    stop("The native library could not be built: the compiler's message is above.");
  say(`Built in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
}

once("packages", [`${root}/package.json`, `${root}/bun.lock`], `${root}/node_modules`, installPackages);
once("library", [`${root}/build.zig`, `${root}/csrc`, `${root}/metal`], builtLibrary(hostPlatform()), buildLibrary);
