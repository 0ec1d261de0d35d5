// What a fresh clone needs before anything runs: JavaScript packages, zig, and the native library, each made only where
// it is missing or stale. Imports nothing but Bun's own modules, since it runs before packages are installed.
//
// The library that it builds has forms for this processor's best instruction set only, which halves the time; with
// `--every-isa`, as tests have it, for all of them. What ships is built by build.zig, for every platform.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, relative } from "node:path";
import { compileLibrary, instructionSets, ownInstructionSets } from "./compile.ts";
import { builtLibrary, hostPlatform } from "./platforms.ts";
import { kernelsFile, packInputs, writeKernels } from "./ptx.ts";
import { output, root, run, say, stop } from "./run.ts";

const stamps = `${root}/.cache/setup`;

/**
 * Does a step unless its inputs are as they were when it last succeeded and its result is there. Inputs count by their
 * contents and their place in the repository, so that a clone that was moved or copied does nothing again. `how` is the
 * way that the step is done; what was done in one of the `better` ways will do as well.
 */
async function once(
  name: string,
  inputs: string[],
  result: string,
  step: () => void | Promise<void>,
  how = "",
  better: string[] = [],
) {
  const state = stateOf(inputs);
  const stamp = `${stamps}/${name}`;
  const stamped = existsSync(result) && existsSync(stamp) ? readFileSync(stamp, "utf8") : "";
  if ([how, ...better].some((way) => stamped === state + way)) return;
  rmSync(stamp, { force: true });
  await step();
  mkdirSync(stamps, { recursive: true });
  writeFileSync(stamp, state + how);
}

function stateOf(inputs: string[]): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const path of inputs.flatMap(filesIn))
    hash
      .update(`${relative(root, path)}\0`)
      .update(readFileSync(path))
      .update("\0");
  return hash.digest("hex");
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

async function makeKernels(): Promise<void> {
  const started = performance.now();
  say("Compiling the kernels for CUDA …");
  await writeKernels(kernelsFile, 9);
  say(`Compiled in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
}

function leaveOutKernels(): void {
  mkdirSync(dirname(kernelsFile), { recursive: true });
  writeFileSync(kernelsFile, "");
}

/** Whether this machine has NVIDIA's driver: csrc/gpu/cuda/libcuda.c looks for it as closely as is of use. */
function hasCuda(): boolean {
  const folders = ["/usr/lib/wsl/lib", "/usr/local/nvidia/lib64", "/run/opengl-driver/lib"];
  if (process.platform !== "linux") return false;
  if (existsSync("/proc/driver/nvidia/version") || folders.some((folder) => existsSync(`${folder}/libcuda.so.1`)))
    return true;
  return output(["sh", "-c", "ldconfig -p | grep -m1 libcuda.so.1"]) !== undefined;
}

const host = hostPlatform();
const everyIsa = process.argv.includes("--every-isa");
const sets = everyIsa ? instructionSets(host) : ownInstructionSets(host).slice(0, 1);

async function buildLibrary(): Promise<void> {
  const started = performance.now();
  say(`Building the native library for ${sets.map(({ name }) => name).join(", ")} …`);
  await compileLibrary(host, sets);
  say(`Built in ${((performance.now() - started) / 1000).toFixed(1)} s.`);
}

await once("packages", [`${root}/package.json`, `${root}/bun.lock`], `${root}/node_modules`, installPackages);

// The kernels for CUDA take half a minute of the compiler's time: they are made where NVIDIA's driver is, or on
// request, and stay for as long as they are those of the sources. Without them their file is empty.
if (process.argv.includes("--cuda") || hasCuda()) await once("kernels", packInputs, kernelsFile, makeKernels, "made");
else await once("kernels", packInputs, kernelsFile, leaveOutKernels, "left out", ["made"]);

const inputs = ["csrc", "metal", "scripts/compile.ts", "scripts/objects.ts", "scripts/zig.ts"].map(
  (path) => `${root}/${path}`,
);
const how = everyIsa ? "every" : sets[0]!.name;
await once("library", inputs, builtLibrary(host), buildLibrary, how, ["every"]);
