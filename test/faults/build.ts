// Owns the builds of the fault harness: the table of entries made from bnb.h, and the library under one sanitizer or
// none.
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { formsFlags, instructionSets, ownInstructionSets } from "../../scripts/compile.ts";
import { hostPlatform } from "../../scripts/platforms.ts";
import { root as scripts } from "../../scripts/run.ts";
import { findZig } from "../../scripts/zig.ts";
import { type Declaration, declarations, enumMembers, type Parameter } from "../header.ts";

const root = resolve(scripts);
const here = `${import.meta.dir}/c`;
const cache = `${root}/.cache/faults`;

// ── The table of entries ────────────────────────────────────────────────────────────────────────────────────────────

const kinds: Record<string, string> = {
  bnb_device: "DEVICE",
  bnb_tensor: "TENSOR",
  bnb_codebook: "CODEBOOK",
  bnb_quantized: "QUANTIZED",
  bnb_recording: "RECORDING",
  bnb_cache: "CACHE",
  bnb_hyperparameters: "HYPERPARAMETERS",
  bnb_attention_options: "ATTENTION_OPTIONS",
  char: "TEXT",
  void: "MEMORY",
  float: "MEMORY",
};
const scalars: Record<string, [kind: string, member: string]> = {
  size_t: ["SIZE", "n"],
  uint32_t: ["U32", "u"],
  int32_t: ["I32", "i"],
  float: ["F32", "f"],
  double: ["F64", "d"],
  bnb_status: ["STATUS", "i"],
};

/** The kind of a declared type, and the member of `union arg` that holds it. */
function kindOf(type: string, name = ""): [kind: string, member: string] {
  const pointed = /^(?:const )?(\w+) \*$/.exec(type)?.[1];
  if (pointed !== undefined && pointed in kinds) return [kinds[pointed]!, "p"];
  if (type === "size_t" && name === "bytes") return ["BYTES", "n"];
  if (type in scalars) return scalars[type]!;
  if (/^bnb_\w+$/.test(type)) return ["ENUM", "i"];
  throw new Error(`bnb.h has a type that the fault harness does not know: ${type}`);
}

function parameterRow({ type, name }: Parameter): string {
  const [kind] = kindOf(type, name);
  const members = kind === "ENUM" ? enumMembers(type).length : 0;
  return `{${kind}, ${members}, ${type.startsWith("const ")}}`;
}

function returnKind({ name, returns }: Declaration): string {
  if (name === "bnb_last_status") return "I32"; // it tells of another call's failure
  if (returns === "void") return "NOTHING";
  if (name === "bnb_deallocator") return "ADDRESS";
  return kindOf(returns)[0];
}

function entryRow(declaration: Declaration): string {
  const { name, parameters } = declaration;
  const rows = parameters.length ? `{${parameters.map(parameterRow).join(", ")}}` : "{}";
  const frees = name.endsWith("_free");
  const views = ["bnb_tensor_reshape", "bnb_tensor_slice", "bnb_quantized_from", "bnb_quantized_part"].includes(name);
  return `    {"${name}", valid_${name}, ${returnKind(declaration)}, ${parameters.length}, ${rows}, ${frees}, ${views}},`;
}

function callCase(declaration: Declaration, index: number): string {
  const { name, returns, parameters } = declaration;
  const given = parameters.map(({ type }, at) => `${type.includes("*") ? "" : `(${type})`}a[${at}].${kindOf(type)[1]}`);
  const call = `${name}(${given.join(", ")})`;
  if (returns === "void") return `    case ${index}: ${call}; break;`;
  if (name === "bnb_record")
    return `    case ${index}: r.i = ${call}; if (!r.i) bnb_recording_free(bnb_record_end()); break; /* what comes next is not recorded */`;
  const member = returns === "void *" ? "p" : kindOf(returns)[1];
  return `    case ${index}: r.${member} = ${member === "p" ? "(void *)" : member === "i" ? "(int32_t)" : ""}${call}; break;`;
}

/** C text: the recipes' prototypes, the table, and the call by an entry's number. */
function entriesText(): { recipes: string; table: string } {
  const prototypes = declarations.map(({ name }) => `void valid_${name}(union arg *args);`);
  const recipes = ['#include "harness.h"', ...prototypes, ""].join("\n");
  const table = [
    '#include "recipes.h"',
    "const struct entry entries[] = {",
    ...declarations.map(entryRow),
    "};",
    "const size_t entry_count = sizeof entries / sizeof *entries;",
    "union arg call_entry(size_t entry, const union arg *a) {",
    "    union arg r = {};",
    "    switch (entry) {",
    ...declarations.map(callCase),
    "    }",
    "    return r;",
    "}",
    "",
  ].join("\n");
  return { recipes, table };
}

// ── Building ────────────────────────────────────────────────────────────────────────────────────────────────────────

export type Build = "undefined" | "thread" | "address" | "plain" | "guided";

const undefinedFlags = ["-fsanitize=undefined", "-fno-sanitize-recover=all"];
const flavours: Record<Build, readonly string[]> = {
  undefined: ["-O1", "-fPIC", "-fvisibility=hidden", ...undefinedFlags, "-ftrivial-auto-var-init=pattern"],
  thread: ["-O1", "-fsanitize=thread"],
  address: ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
  plain: ["-O1", "-fno-sanitize=all"],
  guided: [
    ...["-O1", "-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    ...["-fprofile-instr-generate", "-fcoverage-mapping"],
  ],
};

/**
 * What ships, under the names that clang has for processors. What this one can't run is not built, for it takes
 * long.
 */
const isas = instructionSets(hostPlatform()).map(({ name, cpu }) => ({
  name,
  cpu: cpu.replace("x86_64", "x86-64").replaceAll("_avx", "-avx"),
}));
const own = ownInstructionSets(hostPlatform()).map(({ name }) => name);

const files = (...patterns: string[]) =>
  patterns.flatMap((pattern) => [...new Bun.Glob(pattern).scanSync(root)].sort()).map((file) => join(root, file));

/** Clang of the system, with AddressSanitizer's runtime, which zig does not bring; undefined where there is none. */
export function findClang(): string | undefined {
  const names = ["clang", ...Array.from({ length: 8 }, (_, i) => `clang-${22 - i}`)];
  return names.map((name) => Bun.which(name)).find((path) => path !== null) ?? undefined;
}

async function compile(command: string[]): Promise<void> {
  const child = Bun.spawn(command, { cwd: root, stdout: "ignore", stderr: "pipe" });
  const [status, stderr] = await Promise.all([child.exited, new Response(child.stderr).text()]);
  if (status !== 0) throw new Error(`${command.join(" ")}\n${stderr}`);
}

/**
 * One instruction set's forms. They take longest, and change less often than the rest: compiled again only with
 * them.
 */
async function formsObject(command: string[]): Promise<string> {
  const inputs = files("csrc/cpu/*", "csrc/*.h", "metal/*.h", "test/faults/c/hook.h");
  const hash = Bun.hash(command.join(" ") + inputs.map((file) => readFileSync(file, "utf8")).join("\0")).toString(36);
  const path = `${cache}/forms-${hash}.o`;
  if (existsSync(path)) return path;
  const temporary = `${path}.${process.pid}`;
  await compile([...command, "-c", `${root}/csrc/cpu/isa.c`, "-o", temporary]);
  renameSync(temporary, path);
  return path;
}

/**
 * Builds the harness, and the library that it tests: for `"undefined"` a shared library that Bun can load too. All is
 * compiled again where a source has changed.
 *
 * @returns the harness's path, and the shared library's
 */
export async function build(flavour: Build): Promise<{ harness: string; library: string }> {
  const { recipes, table } = entriesText();
  const inputs = files("csrc/**/*", "metal/*", "test/faults/c/*").concat(import.meta.path);
  const hash = Bun.hash(table + inputs.map((file) => readFileSync(file, "utf8")).join("\0")).toString(36);
  const folder = `${cache}/${flavour}-${hash}`;
  const paths = { harness: `${folder}/faults`, library: `${folder}/libfaults.so` };
  if (existsSync(paths.harness)) return paths;
  mkdirSync(`${folder}/generated`, { recursive: true });
  writeFileSync(`${folder}/generated/recipes.h`, recipes);
  writeFileSync(`${folder}/generated/entries.c`, table);

  const isGuided = flavour === "guided";
  const clang = flavour === "address" || isGuided ? findClang() : undefined;
  const compiler = clang ? [clang, "-std=gnu23"] : [findZig(), "cc", "-std=gnu23"];
  const common = [...compiler, "-g", "-fno-math-errno", "-w", "-pthread", ...flavours[flavour]];
  const object = async (source: string, more: string[], name = basename(source)) => {
    await compile([...common, ...more, "-c", source, "-o", `${folder}/${name}.o`]);
    return `${folder}/${name}.o`;
  };
  const hooked = ["-include", `${here}/hook.h`, `--embed-dir=${root}/metal`];
  const baseline = isas.at(-1)!.cpu;
  const cpu = (name: string) => (clang ? `-march=${name}` : `-mcpu=${name.replaceAll("-", "_")}`);
  // Sanitized they take minutes to compile; test/cpu/forms.test.ts has them so, and the other builds.
  const formFlags = { undefined: ["-fno-sanitize=undefined"], guided: ["-fno-sanitize=address,undefined"] };
  const sets = isas.filter(({ name }) => (isGuided ? own[0] === name : own.includes(name)));
  const tables = formsFlags(sets);
  const tested = [
    ...files("csrc/*.c", "csrc/ops/*.c", "csrc/gpu/**/*.c", "csrc/cpu/{dispatch,pool,queue}.c").map((source) =>
      object(
        source,
        [...hooked, cpu(baseline), ...tables, ...(source.endsWith("/handle.c") ? ["-DHANDLES"] : [])],
        source.slice(`${root}/csrc/`.length).replaceAll("/", "-"),
      ),
    ),
    ...sets.map(({ name, cpu: processor }) => {
      const more = flavour in formFlags ? formFlags[flavour as keyof typeof formFlags] : [];
      return formsObject([...common, ...hooked, cpu(processor), `-DISA=${name}`, ...more]);
    }),
    object(`${here}/hook.c`, [cpu(baseline)]), // as valgrind can run it
  ];
  const harness = [...files("test/faults/c/*.c"), `${folder}/generated/entries.c`]
    .filter((source) => !source.endsWith("hook.c"))
    .map((source) =>
      object(source, [cpu(baseline), `-I${here}`, `-I${folder}/generated`, ...(isGuided ? ["-DGUIDED"] : [])]),
    );
  let linked = await Promise.all(tested);
  if (flavour === "undefined") {
    await compile([...common, "-shared", ...linked, "-lm", "-ldl", "-o", paths.library]);
    linked = [paths.library, `-Wl,-rpath,${folder}`];
  }
  const temporary = `${paths.harness}.${process.pid}`;
  const driver = isGuided ? ["-fsanitize=fuzzer"] : [];
  await compile([...common, ...driver, ...(await Promise.all(harness)), ...linked, "-lm", "-ldl", "-o", temporary]);
  renameSync(temporary, paths.harness);
  return paths;
}

/** Builds forms_test.c, which test/cpu/forms.test.ts runs too, under AddressSanitizer. */
export async function buildForms(clang: string): Promise<string> {
  const inputs = files("csrc/**/*", "test/cpu/*").concat(import.meta.path);
  const hash = Bun.hash(inputs.map((file) => readFileSync(file, "utf8")).join("\0")).toString(36);
  const folder = `${cache}/forms-${hash}`;
  const path = `${folder}/forms_test`;
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  const common = [clang, "-std=gnu23", "-g", "-w", "-pthread", "-fno-math-errno", ...flavours.address];
  const forms = [
    ...isas.map(({ name, cpu }) => [name, `-march=${cpu}`]),
    ["wide", `-march=${isas.at(-2)!.cpu}`, "-DPORTABLE_WIDTH=16"],
    ["narrow", "-march=haswell", "-DPORTABLE_WIDTH=4"],
    ["emulated", "-march=haswell", "-include", `${root}/test/cpu/emulate_avx512.h`],
  ] as [string, ...string[]][];
  const objects = await Promise.all(
    forms.map(async ([isa, ...flags]) => {
      const to = `${folder}/${isa}.o`;
      await compile([...common, ...flags, `-DISA=${isa}`, "-c", `${root}/csrc/cpu/isa.c`, "-o", to]);
      return to;
    }),
  );
  const units = files("csrc/cpu/{dispatch,pool}.c", "test/cpu/forms_test.c");
  await compile([...common, ...formsFlags(isas), ...objects, ...units, "-lm", "-o", path]);
  return path;
}
