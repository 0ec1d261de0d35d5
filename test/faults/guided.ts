// Fuzzing of the C ABI that coverage guides: libFuzzer makes sequences of calls (c/fuzz.c), from those that are kept in
// corpus.tar.gz on. `bun test/faults/guided.ts <seconds>` puts what it found there, brought down to what counts.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative, resolve } from "node:path";
import { addLcov, byFolder, holes, holesOf, type Lines } from "../../scripts/coverage/lcov.ts";
import { findLlvm, lcovOf } from "../../scripts/coverage/native.ts";
import { root as scripts } from "../../scripts/run.ts";
import { build } from "./build.ts";
import { Random } from "./random.ts";
import { simulatedGpu } from "./runs.ts";

const root = resolve(scripts);
const kept = join(import.meta.dir, "corpus.tar.gz");
/** Of an input; a call takes three to twenty. */
const bytesMax = 600;

/** What a run of {@link guided} did. */
export interface GuidedReport {
  readonly runs: number;
  /** Inputs that count. */
  readonly corpus: number;
  /** Share of the lines of csrc/ that ran, without the drivers of GPUs; nothing where it can't be told. */
  readonly lines?: string;
  /** The lines that did not, a file a row. */
  readonly holes?: string;
}

function tar(...options: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(["tar", ...options]);
  if (exitCode !== 0) throw new Error(`tar ${options.join(" ")}: ${stderr}`);
}

/** Sequences of calls that nothing has chosen, to begin with where there is no corpus. */
function writeRandom(folder: string, seed: number): void {
  const random = new Random(seed);
  for (let i = 0; i < 200; i++)
    writeFileSync(
      join(folder, `random-${i}`),
      Uint8Array.from({ length: bytesMax / 2 }, () => random.below(256)),
    );
}

async function fuzz(harness: string, folder: string, options: string[], env: Record<string, string>): Promise<number> {
  const quiet = ["-rss_limit_mb=4000", "-timeout=600", "-verbosity=0", "-print_final_stats=1"];
  const child = Bun.spawn([harness, ...quiet, `-max_len=${bytesMax}`, `-artifact_prefix=${folder}/bad-`, ...options], {
    cwd: folder,
    env: {
      ...process.env,
      ASAN_OPTIONS: "detect_leaks=0:abort_on_error=1",
      UBSAN_OPTIONS: "print_stacktrace=1",
      BNB_NUM_THREADS: "2",
      LLVM_PROFILE_FILE: `${folder}/%p.profraw`,
      ...env,
    },
    stderr: "pipe",
    stdout: "ignore",
  });
  const stderr = await new Response(child.stderr).text();
  if ((await child.exited) === 0) return Number(/number_of_executed_units:\s+(\d+)/.exec(stderr)?.[1] ?? 0);
  const bad = readdirSync(folder).find((name) => name.startsWith("bad-"));
  const input = bad
    ? ` on ${await Bun.file(join(folder, bad))
        .bytes()
        .then((bytes) => bytes.toBase64())}`
    : "";
  throw new Error(`${harness} ended with ${child.signalCode ?? child.exitCode}${input}\n${stderr.slice(-6000)}`);
}

/** What ran of csrc/, without the drivers of GPUs. */
function linesOf(harness: string, folder: string): Pick<GuidedReport, "lines" | "holes"> {
  const llvm = findLlvm();
  if (!llvm) return {};
  const lines: Lines = new Map();
  addLcov(lines, lcovOf(llvm, folder, [harness]), (path, line) => {
    const name = relative(root, path);
    return /^csrc\/(?!gpu\/)/.test(name) ? [name, line] : undefined;
  });
  const all = byFolder(lines).find(({ name }) => name === "all of csrc/");
  if (!all) return {};
  return { lines: `${((100 * all.ran) / all.lines).toFixed(1)} % of ${all.lines}`, holes: holesOf(holes(lines, 1)) };
}

/** Where the calls run, and for which share of the time: each has code of its own. */
const places = (): [share: number, env: Record<string, string>][] => [
  [0.5, {}],
  [0.1, { BNB_ISA: "plain", BNB_NUM_THREADS: "" }], // as many as there are processors
  [0.1, { BNB_QUEUE_FROM: "0", BNB_NUM_THREADS: "3" }],
  [0.25, { ...simulatedGpu(), BNB_SIM: "fast" }],
  [0.05, { ...simulatedGpu(), BNB_SIM: "none" }], // a GPU that can compile no kernel: all falls back
];

/**
 * Fuzzes for so many seconds, on the CPU by its best instructions, by the plain loops, with all work queued, on the
 * simulated GPU, and on one that has no kernels.
 *
 * @param keeps whether what was found goes into corpus.tar.gz
 */
export async function guided(seconds: number, seed: number, keeps = false): Promise<GuidedReport> {
  const { harness } = await build("guided");
  const folder = mkdtempSync(join(tmpdir(), "bnb-guided-"));
  try {
    const [corpus, found, least] = [join(folder, "corpus"), join(folder, "found"), join(folder, "least")];
    for (const path of [corpus, found, least]) mkdirSync(path);
    if (existsSync(kept)) tar("-xzf", kept, "-C", corpus);
    else writeRandom(corpus, seed);
    let runs = 0;
    for (const [share, env] of places()) {
      const last = [`-max_total_time=${Math.ceil(share * seconds)}`, `-seed=${seed}`];
      runs += await fuzz(harness, folder, [...last, found, corpus], env);
    }
    const ran = linesOf(harness, folder);
    console.error(`${ran.lines} ran; what was found is brought down to what counts …`);
    for (const [, env] of places()) await fuzz(harness, folder, ["-merge=1", least, found, corpus], env);
    if (keeps) tar("-czf", kept, "-C", least, ".");
    return { runs, corpus: readdirSync(least).length, ...ran };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const { holes, ...report } = await guided(Number(process.argv[2] ?? 60), Date.now() % 1000, true);
  console.log(JSON.stringify(report));
  if (holes) console.log(holes);
}
