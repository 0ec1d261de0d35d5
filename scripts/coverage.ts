// `bun run test:coverage [file…]`: which lines of src/, csrc/, metal/ and cuda/ the tests run, as a table by
// folder and a list of holes.
//
// `--passes cpu,plain,metal,cuda` are the ways in which the tests run, cpu alone by default: on the processor's best
// kernels, on the reference loops, on the simulated GPUs. `--least 95` is the share below which a file is listed. Where
// no files are named, src/ in total is held to it, and each of its files to bunfig.toml's threshold. `--keep` adds to
// what was counted before, so that a suite can be counted in pieces; `--keep --passes none` runs nothing, and says what
// they come to. Kernels count by what ran of them in the simulator; commands and Workers that a test starts count too.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { relative, resolve } from "node:path";
import { parseArgs } from "node:util";
import bunfig from "../bunfig.toml";
import { countedObjects } from "./coverage/counters.ts";
import { placeOfKernel } from "./coverage/kernels.ts";
import {
  addKnown,
  addLcov,
  below,
  byFolder,
  holes,
  holesOf,
  type Lines,
  type PlaceOf,
  tableOf,
} from "./coverage/lcov.ts";
import { buildCounted, counting, findLlvm, lcovOf } from "./coverage/native.ts";
import { linesOfProcesses, prepare } from "./coverage/statements.ts";
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

const passes = values.passes === "none" ? [] : values.passes.split(",");
const unknown = passes.find((pass) => !Object.hasOwn(ways, pass));
if (unknown !== undefined)
  stop(`--passes has ${JSON.stringify(unknown)}, expected some of ${Object.keys(ways)}, or none.`);

const folder = resolve(root, ".cache/coverage/counters");
if (!values.keep) rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
process.env.COUNTED_STATEMENTS = prepare(folder);

const llvm = findLlvm();
if (llvm) process.env.COUNTERS_FOLDER = folder;
else
  say(
    "csrc/ and kernels are left out: no clang, llvm-profdata and llvm-cov of one version from 19 on (clang-19, llvm-19).",
  );
const { fakeCuda } = await import("../test/cuda/host/build.ts");
const { fakeMetal } = await import("../test/metal/host/build.ts");
const library = llvm && (await buildCounted(llvm));

// Without bunfig.toml's threshold: Bun would hold it against each file that the tests' own process loads.
const config = `${folder}/bunfig.toml`;
writeFileSync(config, `[test]\nroot = ${JSON.stringify(bunfig.test.root)}\n`);

let failed = 0;
for (const pass of passes) {
  const counted = [
    `--config=${config}`,
    "--preload",
    "./scripts/coverage/children.ts",
    "--coverage",
    "--coverage-reporter=lcov",
    `--coverage-dir=${folder}/${pass}-${process.pid}`,
  ];
  const status = run([process.execPath, "test", "--timeout=600000", ...counted, ...positionals], {
    ...(library ? counting(library, folder) : {}),
    ...ways[pass]!(),
  });
  if (status !== 0) failed = status;
}

const lines: Lines = new Map();
const placeOf: PlaceOf = (path, line) => {
  const name = relative(root, resolve(root, path));
  return /^(src|csrc)\//.test(name) ? [name, line] : placeOfKernel(path, line);
};
for (const path of new Bun.Glob("*/lcov.info").scanSync(folder))
  addLcov(lines, readFileSync(`${folder}/${path}`, "utf8"), placeOf);
for (const inProcesses of linesOfProcesses(folder)) addKnown(lines, inProcesses);
if (llvm && library) addLcov(lines, lcovOf(llvm, folder, [library, ...countedObjects(folder)]), placeOf);
const least = Number(values.least) / 100;
console.log(`\n${tableOf(byFolder(lines))}\n\n${holesOf(holes(lines, least))}`);
if (failed) stop("Tests failed: what ran is counted all the same.");
const missed =
  positionals.length > 0 ? [] : below(lines, "src", { total: least, file: bunfig.test.coverageThreshold.lines });
if (missed.length > 0) stop(missed.join("\n"));
