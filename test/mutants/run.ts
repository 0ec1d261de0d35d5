// Owns `bun run test:mutants`: changes the source in one place at a time, in a copy, and tells which changes no test
// notices. What it draws follows from the seed; a slice of it is had by --from and --count, and what is known already
// is read from the file of results.
import { appendFileSync, cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { Command } from "commander";
import { root as scripts } from "../../scripts/run.ts";
import { type Mutant, mutantsOf } from "./operators.ts";
import { testsOf } from "./tests.ts";

type Outcome = "killed" | "survived" | "stillborn";

const options = new Command("test:mutants")
  .description("Changes the source in one place at a time, and names the changes that no test notices.")
  .option("--seed <n>", "which mutants are drawn, and in which order", Number, 1)
  .option("--from <n>", "the first of them", Number, 0)
  .option("--count <n>", "how many", Number, 300)
  .option("--only <prefix>", "paths that begin so", "")
  .option("--seconds <n>", "the most that a mutant's tests may take; longer counts as noticed", Number, 60)
  .parse()
  .opts<{ seed: number; from: number; count: number; only: string; seconds: number }>();

const root = scripts.replace(/\/scripts\/\.\.$/, "");
const folder = `${root}/.cache/mutants`;
const copy = `${folder}/copy`;
const results = `${folder}/results.jsonl`;

const patterns = [
  "src/**/*.ts",
  "csrc/*.c",
  "csrc/ops/*.c",
  "csrc/cpu/*-inl.h",
  "csrc/cpu/{pool,dispatch}.c",
  "metal/*.metal",
];
/** What a run of tests on one machine can't see: other devices' drivers, and what only other platforms compile. */
const unseen = /\.d\.ts$|src\/(library|embedded|libc|support)\.ts|src\/(serve|ai|model|bench)\//;

function draw(): Mutant[] {
  const files = patterns.flatMap((pattern) => [...new Bun.Glob(pattern).scanSync(root)]).sort();
  const all = files
    .filter((file) => file.startsWith(options.only) && !unseen.test(file))
    .flatMap((file) => mutantsOf(file, readFileSync(`${root}/${file}`, "utf8")));
  const key = (mutant: Mutant) =>
    Bun.hash(`${options.seed} ${mutant.file} ${mutant.line} ${mutant.operator} ${mutant.after}`);
  return all
    .map((mutant) => [key(mutant), mutant] as const)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([, mutant]) => mutant);
}

function prepare(): void {
  mkdirSync(copy, { recursive: true });
  for (const entry of ["src", "csrc", "metal", "scripts", "test", "bench", "docs", "examples"])
    cpSync(`${root}/${entry}`, `${copy}/${entry}`, { recursive: true });
  for (const file of [
    "package.json",
    "bun.lock",
    "bunfig.toml",
    "tsconfig.json",
    "build.zig",
    "README.md",
    "CHANGELOG.md",
  ])
    cpSync(`${root}/${file}`, `${copy}/${file}`);
  for (const built of [".cache/setup", "zig-out"])
    if (!existsSync(`${copy}/${built}`)) cpSync(`${root}/${built}`, `${copy}/${built}`, { recursive: true });
  for (const link of ["node_modules", ".tools"])
    if (!existsSync(`${copy}/${link}`)) symlinkSync(`${root}/${link}`, `${copy}/${link}`);
}

/** Runs a command in the copy; false where it fails or takes too long. */
async function succeeds(command: string[], seconds: number): Promise<boolean> {
  const child = Bun.spawn(command, {
    cwd: copy,
    stdout: "ignore",
    stderr: "ignore",
    timeout: 1000 * seconds,
    killSignal: "SIGKILL",
  });
  return (await child.exited) === 0;
}

const sound = new Map<string, boolean>();

/** Whether tests pass as the source stands: what fails anyway would notice everything. */
async function expectSound(tests: readonly string[], command: readonly string[]): Promise<void> {
  const key = tests.join(" ");
  if (!sound.has(key)) sound.set(key, await succeeds([...command, ...tests], 10 * options.seconds));
  if (!sound.get(key)) throw new Error(`${key} fail without any change: nothing can be told`);
}

async function outcomeOf({ file, line, after }: Mutant): Promise<Outcome> {
  const text = readFileSync(`${root}/${file}`, "utf8");
  const lines = text.split("\n");
  const bun = process.execPath;
  const suite = [
    bun,
    ...(file.startsWith("metal/") ? ["test/metal/host/suite.ts"] : ["test", "--bail", "--timeout", "30000"]),
  ];
  const tests = testsOf(file);
  const isNative = !file.startsWith("src/");
  if (!(isNative && sound.has(tests.join(" "))) && !(await succeeds([bun, "scripts/setup.ts"], 300)))
    throw new Error("the copy does not build");
  await expectSound(tests, suite);
  lines[line - 1] = after;
  writeFileSync(`${copy}/${file}`, lines.join("\n"));
  try {
    const compile = isNative ? [bun, "scripts/setup.ts"] : [`${root}/node_modules/.bin/tsc`, "--noEmit"];
    if (!(await succeeds(compile, 300))) return "stillborn";
    return (await succeeds([...suite, ...tests], options.seconds)) ? "survived" : "killed";
  } finally {
    writeFileSync(`${copy}/${file}`, text);
  }
}

prepare();
const known = new Map<string, Outcome>();
const nameOf = ({ file, line, operator, before, after }: Mutant) =>
  `${file}:${line} ${operator}: ${before.trim()} → ${after.trim()}`;
if (existsSync(results))
  for (const row of readFileSync(results, "utf8").trim().split("\n").filter(Boolean)) {
    const { name, outcome } = JSON.parse(row) as { name: string; outcome: Outcome };
    known.set(name, outcome);
  }
const tally: Record<Outcome, number> = { killed: 0, survived: 0, stillborn: 0 };
for (const mutant of draw().slice(options.from, options.from + options.count)) {
  const name = nameOf(mutant);
  const outcome = known.get(name) ?? (await outcomeOf(mutant));
  if (!known.has(name)) appendFileSync(results, `${JSON.stringify({ name, outcome })}\n`);
  tally[outcome]++;
  if (outcome === "survived") console.log(`survived: ${name}`);
}
const counted = tally.killed + tally.survived;
console.log(
  `${tally.killed} of ${counted} killed, ${tally.stillborn} did not compile: seed ${options.seed}, from ${options.from}.`,
);
process.exit(counted > 0 && tally.killed / counted >= 0.95 ? 0 : 1);
