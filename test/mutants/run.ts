// `bun run test:mutants`: changes the source in one place at a time, in a copy, and tells which changes no test
// notices. What it draws follows from the seed, a third each of TypeScript, C and kernels; a slice of it is had by
// --from and --count, and what is known already is read from the file of results.
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { resolve } from "node:path";
import { Command } from "commander";
import { root as scripts } from "../../scripts/run.ts";
import { Library } from "./build.ts";
import { namedMutants } from "./named.ts";
import { type Mutant, mutantsOf } from "./operators.ts";
import { everything, type Stage, testsOf } from "./tests.ts";

/** "stillborn" does not compile; "same" compiles to what was there before, on this machine. */
type Outcome = "killed" | "survived" | "stillborn" | "same";

interface Result {
  readonly name: string;
  readonly outcome: Outcome;
  /** The stage of tests that noticed, or what else did. */
  readonly by?: string;
  /** Seconds of the processor. */
  readonly cpu: number;
}

const options = new Command("test:mutants")
  .description("Changes the source in one place at a time, and names the changes that no test notices.")
  .option("--seed <n>", "which mutants are drawn, and in which order", Number, 1)
  .option("--from <n>", "the first of them", Number, 0)
  .option("--count <n>", "how many", Number, 300)
  .option("--only <prefixes...>", "names that begin so, such as src/optim/ or src/optim/state.ts:111", [""])
  .option("--named", "those that an attack found unnoticed, in place of drawn ones")
  .option("--again", "try those again that are known to have survived")
  .option("--seconds <n>", "the most of the processor that a stage of tests may take beyond its usual", Number, 30)
  .option("--lane <name>", "the copy to change: of several runs at once, each has its own", "copy")
  .option("--minutes <n>", "start no other mutant after so long", Number, Number.POSITIVE_INFINITY)
  .parse()
  .opts<{
    seed: number;
    from: number;
    count: number;
    only: string[];
    named?: boolean;
    again?: boolean;
    seconds: number;
    minutes: number;
    lane: string;
  }>();

const root = resolve(scripts);
const folder = `${root}/.cache/mutants`;
const copy = `${folder}/${options.lane}`;
const results = `${folder}/results.jsonl`;
const usualPath = `${folder}/${options.lane}.json`;

/** A busy machine takes its time: what has not ended by then waits for something. */
const millisecondsMax = 900_000;

const areas: Record<string, string[]> = {
  src: ["src/**/*.ts"],
  csrc: ["csrc/*.c", "csrc/ops/*.c", "csrc/cpu/*-inl.h", "csrc/cpu/{pool,dispatch}.c"],
  metal: ["metal/*.metal"],
};
/** What a run of tests on one machine can't see: what only other platforms load, and tables for the documentation. */
const unseen = /\.d\.ts$|src\/(library|embedded|libc|support)\.ts/;

// ── What is changed ─────────────────────────────────────────────────────────────────────────────────────────────────

const nameOf = ({ file, line, operator, before, after }: Mutant) =>
  `${file}:${line} ${operator}: ${before.trim()} → ${after.trim()}`;

const isAsked = (mutant: Mutant) => options.only.some((prefix) => nameOf(mutant).startsWith(prefix));

/** An area's mutants, in the seed's order. */
function drawFrom(area: string): Mutant[] {
  const files = areas[area]!.flatMap((pattern) => [...new Bun.Glob(pattern).scanSync(root)]).sort();
  return files
    .filter((file) => !unseen.test(file))
    .flatMap((file) => mutantsOf(file, readFileSync(`${root}/${file}`, "utf8")))
    .filter(isAsked)
    .map((mutant) => {
      const { file, line, operator, after } = mutant;
      return [Bun.hash(`${options.seed} ${file} ${line} ${operator} ${after}`), mutant] as const;
    })
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([, mutant]) => mutant);
}

/** All mutants, of each area in turn. */
function draw(): Mutant[] {
  if (options.named) return namedMutants(root).filter(isAsked);
  const drawn = Object.keys(areas).map(drawFrom);
  const longest = Math.max(...drawn.map(({ length }) => length));
  return Array.from({ length: longest }, (_, i) => drawn.flatMap((mutants) => mutants.slice(i, i + 1))).flat();
}

// ── Trying one ──────────────────────────────────────────────────────────────────────────────────────────────────────

function prepare(): void {
  mkdirSync(copy, { recursive: true });
  for (const entry of ["src", "csrc", "metal", "cuda", "scripts", "test", "bench", "docs", "examples", ".github"])
    cpSync(`${root}/${entry}`, `${copy}/${entry}`, { recursive: true });
  for (const entry of readdirSync(root, { withFileTypes: true }))
    if (entry.isFile() && entry.name !== ".git") cpSync(`${root}/${entry.name}`, `${copy}/${entry.name}`);
  cpSync(`${root}/zig-out`, `${copy}/zig-out`, { recursive: true });
  for (const link of ["node_modules", ".tools"])
    if (!existsSync(`${copy}/${link}`)) symlinkSync(`${root}/${link}`, `${copy}/${link}`);
}

let cpu = 0;

/** Runs a command in the copy; false where it fails, waits for ever, or takes more than so many seconds of its own. */
async function succeeds(command: string[], seconds = 600): Promise<boolean> {
  const child = Bun.spawn(["sh", "-c", `ulimit -t ${Math.ceil(seconds)}; exec "$@"`, "sh", ...command], {
    cwd: copy,
    stdout: "ignore",
    stderr: "ignore",
    timeout: millisecondsMax,
    killSignal: "SIGKILL",
  });
  const status = await child.exited;
  cpu += Number(child.resourceUsage()?.cpuTime.total ?? 0) / 1e6;
  return status === 0;
}

/** What stages take as the source stands, by their commands and what is in their tests: kept for the next run. */
const usual = new Map<string, number>(existsSync(usualPath) ? JSON.parse(readFileSync(usualPath, "utf8")) : []);

function commandOf({ tests, on }: Stage): string[] {
  const here = [process.execPath, "test", "--bail", "--timeout", "240000", ...tests];
  if (on === "this machine") return here;
  if (on === "plain loops") return ["env", "BNB_ISA=plain", ...here];
  // Buffers end where their pages do, so that what is read or written beyond is seen.
  const guarded = ["BNB_FAKE_METAL=no_kernels=1", "BNB_METAL_EXACT=1", "BNB_STRICT=0"];
  const modes = {
    gpu: ["BNB_METAL_EXACT=1"],
    "checked gpu": ["BNB_METAL_EXACT=1", "BNB_SIM=check"],
    "guarded memory": guarded,
    "plain loops, guarded memory": [...guarded, "BNB_ISA=plain"],
  };
  return ["env", ...modes[on], process.execPath, "test/metal/host/suite.ts", "--bail", ...tests];
}

/** What a stage is, and what its tests say. */
function keyOf(stage: Stage): string {
  const texts = stage.tests.filter((name) => name.endsWith(".ts")).map((file) => readFileSync(`${root}/${file}`));
  return [...commandOf(stage), Bun.hash(Buffer.concat(texts))].join(" ");
}

/** Measures a stage on what is sound. What fails anyway would notice everything. */
async function measure(stage: Stage): Promise<void> {
  const before = cpu;
  const command = commandOf(stage);
  if (!(await succeeds(command))) throw new Error(`${command.join(" ")} fails without any change: nothing can be told`);
  usual.set(keyOf(stage), cpu - before);
  writeFileSync(usualPath, JSON.stringify([...usual]));
  cpu = before;
}

const library = new Library(copy, succeeds);
let isChanged = false;

/** Those of TypeScript that the compiler refuses: one run over all that are on lines of their own, then the rest. */
async function refusedBy(mutants: readonly Mutant[]): Promise<Set<Mutant>> {
  const lines = new Map<string, Mutant>();
  const rest: Mutant[] = [];
  for (const mutant of mutants) {
    const place = `${mutant.file}(${mutant.line}`;
    if (lines.has(place)) rest.push(mutant);
    else lines.set(place, mutant);
  }
  const files = new Map<string, string>();
  // From the end, so that lines keep their numbers.
  for (const mutant of [...lines.values()].sort((a, b) => b.line - a.line)) {
    const text = files.get(mutant.file) ?? readFileSync(`${root}/${mutant.file}`, "utf8");
    files.set(mutant.file, changed(text, mutant));
  }
  for (const [file, text] of files) writeFileSync(`${copy}/${file}`, text);
  const { stdout } = Bun.spawnSync([`${root}/node_modules/.bin/tsc`, "--noEmit", "--pretty", "false"], { cwd: copy });
  for (const file of files.keys()) cpSync(`${root}/${file}`, `${copy}/${file}`);
  const refused = new Set(
    stdout
      .toString()
      .split("\n")
      .flatMap((row) => lines.get(row.split(",")[0]!) ?? []),
  );
  return rest.length > 0 ? refused.union(await refusedBy(rest)) : refused;
}

/** A file's text with one of its places changed. */
function changed(text: string, { line, before, after }: Mutant): string {
  const from = text.split("\n", line - 1).join("\n").length;
  return text.slice(0, from) + text.slice(from).replace(before, () => after);
}

/** Whether what is changed is a type, of which nothing is left when it runs. */
function isSame(text: string, mutant: Mutant): boolean {
  const transpiler = new Bun.Transpiler({ loader: "ts" });
  return transpiler.transformSync(text) === transpiler.transformSync(changed(text, mutant));
}

const isNative = ({ file }: Mutant) => !file.startsWith("src/");

async function tryOne(mutant: Mutant): Promise<Omit<Result, "name" | "cpu">> {
  const { file } = mutant;
  const text = readFileSync(`${root}/${file}`, "utf8");
  const write = (contents: string) => writeFileSync(`${copy}/${file}`, contents);
  if (isChanged) await library.restore();
  isChanged = false;
  try {
    write(changed(text, mutant));
    const built = isNative(mutant) ? await library.change(file) : isSame(text, mutant) ? "same" : "built";
    isChanged = isNative(mutant);
    if (built !== "built") return { outcome: built === "same" ? "same" : "stillborn" };
    const stages = testsOf(file);
    for (const stage of stages) {
      if (!usual.has(keyOf(stage))) {
        write(text);
        if (isNative(mutant)) await library.restore();
        await measure(stage);
        write(changed(text, mutant));
        if (isNative(mutant)) await library.change(file);
      }
      const fails = async () => !(await succeeds(commandOf(stage), options.seconds + 3 * usual.get(keyOf(stage))!));
      const isFar = stage.tests.every((test) => everything.includes(test)) && stage === stages.at(-1);
      if ((await fails()) && (!isFar || (await fails())))
        return { outcome: "killed", by: `${stage.tests.join(" ")} on ${stage.on}` };
    }
    return { outcome: "survived" };
  } finally {
    write(text);
  }
}

// ── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const known = new Map<string, Outcome>();
if (existsSync(results))
  for (const row of readFileSync(results, "utf8").trim().split("\n").filter(Boolean)) {
    const { name, outcome } = JSON.parse(row) as Result;
    known.set(name, outcome);
  }

prepare();
const drawn = draw().slice(options.from, options.from + options.count);
if (drawn.some(isNative)) {
  await library.make();
  await library.restore();
}
const until = performance.now() + 60_000 * options.minutes;
const tally: Record<Outcome, number> = { killed: 0, survived: 0, stillborn: 0, same: 0 };
const isUnknown = (mutant: Mutant) => {
  const outcome = known.get(nameOf(mutant));
  return !outcome || (options.again && outcome === "survived");
};
const refused = await refusedBy(drawn.filter((mutant) => !isNative(mutant) && isUnknown(mutant)));
for (const mutant of drawn) {
  const name = nameOf(mutant);
  let outcome = known.get(name)!;
  if (isUnknown(mutant)) {
    if (performance.now() > until) break;
    cpu = 0;
    const result = refused.has(mutant) ? { outcome: "stillborn" as const } : await tryOne(mutant);
    appendFileSync(results, `${JSON.stringify({ name, ...result, cpu: Number(cpu.toFixed(1)) } satisfies Result)}\n`);
    outcome = result.outcome;
  }
  tally[outcome]++;
  if (outcome === "survived") console.log(`survived: ${name}`);
}
const counted = tally.killed + tally.survived;
console.log(
  `${tally.killed} of ${counted} killed; ${tally.stillborn} did not compile and ${tally.same} change nothing here: ` +
    `seed ${options.seed}, from ${options.from}.`,
);
process.exit(counted > 0 && tally.killed / counted >= 0.95 ? 0 : 1);
