// Owns `bun run test:coverage [file…]`: which lines of src/ and csrc/ the tests run, as a table by folder and a list of
// holes.
//
// `--passes cpu,plain,metal,cuda` are the ways in which the tests run, cpu alone by default: on the processor's best
// kernels, on the reference loops, on the simulated GPUs. `--least 95` is the share below which a file is listed.
// `--keep` adds to what was counted before, so that a suite can be counted in pieces. A command that a test starts as a
// process of its own counts for csrc/ only: Bun counts in the test's process.
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import { fakeCuda } from "../test/cuda/host/build.ts";
import { fakeMetal } from "../test/metal/host/build.ts";
import { addLcov, byFolder, holes, holesOf, type Lines, tableOf } from "./coverage/lcov.ts";
import { buildCounted, counting, findLlvm, lcovOf } from "./coverage/native.ts";
import { root, run, say, stop } from "./run.ts";

const { values, positionals } = parseArgs({
  options: {
    passes: { type: "string", default: "cpu" },
    least: { type: "string", default: "95" },
    keep: { type: "boolean", default: false },
  },
  allowPositionals: true,
});

/** The environment of each pass. Of simulated GPUs it is that of their suites, which say what they can't run. */
const ways: Record<string, () => Record<string, string>> = {
  cpu: () => ({}),
  plain: () => ({ BNB_ISA: "plain" }),
  metal: () => ({ BNB_DEVICE: "metal", BNB_METAL_LIBRARY: fakeMetal(), BNB_SIM_BUN: process.execPath }),
  cuda: () => ({ BNB_DEVICE: "cuda", BNB_CUDA_LIBRARY: fakeCuda(), BNB_SIM_BUN: process.execPath }),
};

const passes = values.passes.split(",");
const unknown = passes.find((pass) => !Object.hasOwn(ways, pass));
if (unknown !== undefined) stop(`--passes has ${JSON.stringify(unknown)}, expected some of ${Object.keys(ways)}.`);

const folder = resolve(root, ".cache/coverage/counters");
if (!values.keep) rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

const llvm = findLlvm();
if (!llvm)
  say("csrc/ is left out: no clang, llvm-profdata and llvm-cov of one version from 19 on (clang-19, llvm-19).");
const library = llvm && (await buildCounted(llvm));

let failed = 0;
for (const pass of passes) {
  const counted = ["--coverage", "--coverage-reporter=lcov", `--coverage-dir=${folder}/${pass}-${process.pid}`];
  const status = run([process.execPath, "test", "--timeout=600000", ...counted, ...positionals], {
    ...(library ? counting(library, folder) : {}),
    ...ways[pass]!(),
  });
  if (status !== 0) failed = status;
}

const lines: Lines = new Map();
const nameOf = (path: string) => {
  const name = relative(root, resolve(root, path));
  return /^(src|csrc)\//.test(name) ? name : undefined;
};
for (const path of new Bun.Glob("*/lcov.info").scanSync(folder))
  addLcov(lines, readFileSync(`${folder}/${path}`, "utf8"), nameOf);
if (llvm && library) addLcov(lines, lcovOf(llvm, folder, [library]), nameOf);
console.log(`\n${tableOf(byFolder(lines))}\n\n${holesOf(holes(lines, Number(values.least) / 100))}`);
if (failed) stop("Tests failed: what ran is counted all the same.");
