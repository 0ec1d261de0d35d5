// The native library with a counter in each region of its code, and what the counters say: by a clang of the system's,
// for zig brings neither the counters' runtime nor the tools that read them.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync } from "node:fs";
import { basename } from "node:path";
import { formsFlags, instructionSets, ownInstructionSets, sources } from "../compile.ts";
import { hostPlatform } from "../platforms.ts";
import { root, stop } from "../run.ts";

const cache = `${root}/.cache/coverage`;

/** Programs of one version of LLVM. */
export interface Llvm {
  readonly clang: string;
  readonly profdata: string;
  readonly cov: string;
}

/** The newest that is whole, from the 19th on, which knows C23's `#embed`; undefined where there is none. */
export function findLlvm(): Llvm | undefined {
  for (let version = 30; version >= 19; version--) {
    const [clang, profdata, cov] = ["clang", "llvm-profdata", "llvm-cov"].map((name) =>
      Bun.which(`${name}-${version}`),
    );
    if (clang && profdata && cov) return { clang, profdata, cov };
  }
  return undefined;
}

/** What has code counted. */
export const coverageFlags = ["-fprofile-instr-generate", "-fcoverage-mapping"];

async function compile(command: string[]): Promise<void> {
  const child = Bun.spawn(command, { cwd: root, stdout: "ignore", stderr: "pipe" });
  const [status, message] = await Promise.all([child.exited, new Response(child.stderr).text()]);
  if (status !== 0) stop(`The library with counters could not be built:\n${command.join(" ")}\n${message}`);
}

/** Builds it for this machine, unless it is there: compiled again where a source has changed. */
export async function buildCounted({ clang }: Llvm): Promise<string> {
  const platform = hostPlatform();
  const own = ownInstructionSets(platform).slice(0, 1); // the others are the same lines, and take long
  const inputs = ["csrc/**/*", "metal/*", "scripts/coverage/{native.ts,at_exit.c}"].flatMap((files) =>
    [...new Bun.Glob(files).scanSync(root)].sort(),
  );
  const text = inputs.map((file) => readFileSync(`${root}/${file}`, "utf8")).join("\0");
  const folder = `${cache}/${Bun.hash(text).toString(36)}`;
  const library = `${folder}/${basename(platform.file)}`;
  if (existsSync(library)) return library;
  mkdirSync(folder, { recursive: true });
  const flags = [...sources.flags.filter((flag) => flag !== "-Werror"), "-w", "-O1", "-fPIC", ...coverageFlags];
  const objects: string[] = [];
  const made: (() => Promise<void>)[] = [];
  const object = (source: string, cpu: string, more: readonly string[], name = source) => {
    const march = `-march=${cpu.replace("x86_64", "x86-64").replaceAll("_", "-").replace("generic", "armv8-a")}`;
    const to = `${folder}/${name.replaceAll("/", "-")}.o`;
    objects.push(to);
    made.push(() => compile([clang, ...flags, march, "--embed-dir=metal", ...more, "-c", source, "-o", to]));
  };
  const baseline = instructionSets(platform).at(-1)!.cpu;
  for (const { name, cpu } of own) object(`csrc/${sources.forms}`, cpu, [`-DISA=${name}`], `forms-${name}`);
  for (const source of sources.sources) object(`csrc/${source}`, baseline, formsFlags(own));
  object("scripts/coverage/at_exit.c", baseline, []);
  const waiting = made.values();
  const worker = async () => {
    for (const make of waiting) await make();
  };
  await Promise.all(Array.from({ length: navigator.hardwareConcurrency }, worker));
  const temporary = `${library}.${process.pid}`;
  await compile([clang, "-shared", ...coverageFlags, ...objects, "-lm", "-ldl", "-pthread", "-o", temporary]);
  renameSync(temporary, library);
  return library;
}

/** The environment in which a process uses it and leaves its counters in a folder. */
export const counting = (library: string, folder: string): Record<string, string> => ({
  BNB_LIBRARY: library,
  LLVM_PROFILE_FILE: `${folder}/%4m.profraw`, // four files, which processes add to in turns
});

/** All counters of a folder as lcov's text; objects are what was counted. */
export function lcovOf({ profdata, cov }: Llvm, folder: string, objects: readonly string[]): string {
  const raw = readdirSync(folder).filter((name) => name.endsWith(".profraw"));
  if (raw.length === 0) return "";
  const merged = `${folder}/all.profdata`;
  const merge = Bun.spawnSync([profdata, "merge", "-sparse", ...raw.map((name) => `${folder}/${name}`), "-o", merged]);
  if (merge.exitCode !== 0) stop(`The counters could not be read: ${merge.stderr}`);
  const [first, ...more] = objects;
  const shown = ["export", "-format=lcov", `-instr-profile=${merged}`, first!, ...more.flatMap((o) => ["-object", o])];
  const { exitCode, stdout, stderr } = Bun.spawnSync([cov, ...shown], { cwd: root, maxBuffer: 2 ** 30 });
  if (exitCode !== 0) stop(`The counters could not be read: ${stderr}`);
  return String(stdout);
}
