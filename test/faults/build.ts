// The builds of the fault harness: the table of entries made from bnb.h, and the library under one sanitizer or none.
import { existsSync, mkdirSync, renameSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { formsFlags, formsUnit, instructionSets, ownInstructionSets } from "../../scripts/compile.ts";
import {
  type Compiler,
  filesOf,
  inParallel,
  objectsOf,
  systemCompiler,
  type Unit,
  zigCompiler,
} from "../../scripts/objects.ts";
import { hostPlatform } from "../../scripts/platforms.ts";
import { root as scripts } from "../../scripts/run.ts";
import { findZig, zigVersion } from "../../scripts/zig.ts";
import { type Declaration, declarations, enumMembers, type Parameter } from "../header.ts";
import { writeWhole } from "../metal/toolchain.ts";

const root = resolve(scripts);
const here = "test/faults/c";
const generated = ".cache/faults/generated";

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

/** What ships, under the names that clang has for processors. */
const isas = instructionSets(hostPlatform()).map(({ name, cpu }) => ({
  name,
  cpu: cpu.replace("x86_64", "x86-64").replaceAll("_avx", "-avx"),
}));
const own = ownInstructionSets(hostPlatform());

/** Clang of the system, with AddressSanitizer's runtime, which zig does not bring; undefined where there is none. */
export function findClang(): string | undefined {
  const names = ["clang", ...Array.from({ length: 8 }, (_, i) => `clang-${22 - i}`)];
  return names.map((name) => Bun.which(name)).find((path) => path !== null) ?? undefined;
}

/** What the tested sources may include or embed, and what the harness' own may. */
const included = filesOf("{csrc,metal}/**/*.{h,metal,json}", `${here}/*.h`).sort();
const formsIncluded = filesOf("csrc/*.h", "csrc/{cpu,gpu}/*.h", "metal/*.h", `${here}/hook.h`, "test/cpu/*.{c,h}");

/** The library's units but the forms. */
function testedUnits(compiler: Compiler, common: readonly string[]): Unit[] {
  const sources = filesOf("csrc/*.c", "csrc/ops/*.c", "csrc/gpu/**/*.c", "csrc/cpu/{dispatch,pool,queue}.c");
  const hooked = [...common, "-include", `${here}/hook.h`, "--embed-dir=metal"];
  return sources.map((source) => ({
    compiler,
    source,
    flags: [...hooked, ...(source === "csrc/handle.c" ? ["-DHANDLES"] : [])],
    includes: included,
  }));
}

/**
 * The best set's forms as setup has compiled them, with their allocations turned to the hooks: test/cpu/forms.test.ts
 * has them sanitized.
 */
async function shippedForms(): Promise<string> {
  const [object] = await objectsOf([formsUnit(hostPlatform(), own[0]!)]);
  const to = kept("forms", [object!], "forms.o");
  const wraps = ["malloc", "aligned_alloc", "free"].map((name) => `--wrap=${name}`);
  await link(to, (temporary) => [findZig(), "ld.lld", "-r", object!, ...wraps, "-o", temporary]);
  return to;
}

/** Where something that is linked from objects is kept. */
const kept = (name: string, from: readonly string[], file: string) =>
  `${root}/.cache/faults/${name}-${Bun.hash([zigVersion, ...from].join("\0")).toString(36)}/${file}`;

/** Links to a file, by a command that takes where to write, so that it is whole or not there. */
async function link(to: string, command: (temporary: string) => readonly string[]): Promise<void> {
  if (existsSync(to)) return;
  mkdirSync(dirname(to), { recursive: true });
  const temporary = `${to}.${process.pid}`;
  await inParallel([command(temporary)]);
  renameSync(temporary, to);
}

/**
 * Builds the harness, and the library that it tests: for `"undefined"` a shared library that Bun can load too. What was
 * compiled before, in this clone or another, is not compiled again.
 *
 * @returns the harness's path, and the shared library's
 */
export async function build(flavour: Build): Promise<{ harness: string; library: string }> {
  const { recipes, table } = entriesText();
  writeWhole(`${root}/${generated}/recipes.h`, recipes);
  writeWhole(`${root}/${generated}/entries.c`, table);

  const isGuided = flavour === "guided";
  const clang = flavour === "address" || isGuided ? findClang() : undefined;
  const compiler = clang ? systemCompiler(clang) : zigCompiler();
  const common = ["-std=gnu23", "-g", "-fno-math-errno", "-w", "-pthread", ...flavours[flavour]];
  const cpu = (name: string) => (clang ? `-march=${name}` : `-mcpu=${name.replaceAll("-", "_")}`);
  const baseline = cpu(isas.at(-1)!.cpu); // for all but the forms, as valgrind can run it
  // Runs use the best set, or none; only valgrind, which knows no AVX-512, wants the others.
  const sets = flavour === "plain" ? own : own.slice(0, 1);
  const names = sets.map(({ name }) => name);
  const formFlags = isGuided ? ["-fno-sanitize=address,undefined"] : [];
  const tested: Unit[] = [
    ...isas
      .filter(({ name }) => flavour !== "undefined" && names.includes(name))
      .map(({ name, cpu: processor }) => ({
        compiler,
        source: "csrc/cpu/isa.c",
        flags: [...common, "-include", `${here}/hook.h`, cpu(processor), `-DISA=${name}`, "-DONE_COPY", ...formFlags],
        includes: formsIncluded,
      })),
    ...testedUnits(compiler, [...common, baseline, ...formsFlags(sets)]),
    { compiler, source: `${here}/hook.c`, flags: [...common, baseline], includes: [] },
    ...(flavour === "undefined"
      ? [{ compiler, source: "test/undefined.c", flags: ["-fPIC", "-fno-sanitize=all"], includes: [] }]
      : []),
  ];
  const harnessFlags = [...common, baseline, `-I${here}`, `-I${generated}`, ...(isGuided ? ["-DGUIDED"] : [])];
  const harness = [...filesOf(`${here}/*.c`).filter((file) => !file.endsWith("/hook.c")), `${generated}/entries.c`].map(
    (source): Unit => ({
      compiler,
      source,
      flags: harnessFlags,
      includes: [...included, `${generated}/recipes.h`],
    }),
  );
  const objects = await objectsOf([...tested, ...harness]);
  const [library, program] = [objects.slice(0, tested.length), objects.slice(tested.length)];
  const paths = { harness: kept(flavour, objects, "faults"), library: kept(flavour, objects, "libfaults.so") };
  if (flavour !== "undefined") {
    const command = [...compiler.command, ...common, ...(isGuided ? ["-fsanitize=fuzzer"] : []), ...objects];
    await link(paths.harness, (temporary) => [...command, "-lm", "-ldl", "-o", temporary]);
    return paths;
  }
  // Not by `zig cc`, which would first make a runtime for the sanitizer in the place of test/undefined.c.
  const bare = ["-lc", "-fno-compiler-rt", "-fno-ubsan-rt"];
  const forms = await shippedForms();
  await link(paths.library, (temporary) => [
    ...[findZig(), "build-lib", "-dynamic", "-fsoname=libfaults.so", ...bare, `-femit-bin=${temporary}`],
    ...[...library, forms],
  ]);
  const found = ["-rpath", dirname(paths.library)];
  await link(paths.harness, (temporary) => [
    ...[findZig(), "build-exe", ...bare, `-femit-bin=${temporary}`],
    ...[...program, library.at(-1)!, paths.library, ...found],
  ]);
  return paths;
}

/** Builds forms_test.c, which test/cpu/forms.test.ts runs too, under AddressSanitizer. */
export async function buildForms(clang: string): Promise<string> {
  const compiler = systemCompiler(clang);
  const common = ["-std=gnu23", "-g", "-w", "-pthread", "-fno-math-errno", ...flavours.address];
  const forms = [
    ...isas.map(({ name, cpu }) => [name, `-march=${cpu}`]),
    ["wide", `-march=${isas.at(-2)!.cpu}`, "-DPORTABLE_WIDTH=16"],
    ["checked", `-march=${isas.at(-2)!.cpu}`],
    ["narrow", "-march=haswell", "-DPORTABLE_WIDTH=4"],
    ["emulated", "-march=haswell", "-include", "test/cpu/emulate_avx512.h"],
  ] as [string, ...string[]][];
  const unit = (source: string, ...flags: string[]): Unit => ({
    compiler,
    source,
    flags: [...common, ...flags],
    includes: formsIncluded,
  });
  const objects = await objectsOf([
    ...forms.map(([isa, ...flags]) => unit("csrc/cpu/isa.c", ...flags, `-DISA=${isa}`, "-DONE_COPY")),
    ...["csrc/cpu/dispatch.c", "csrc/cpu/pool.c", "test/cpu/forms_test.c"].map((source) =>
      unit(source, ...formsFlags(isas)),
    ),
  ]);
  const path = kept("forms", objects, "forms_test");
  await link(path, (temporary) => [clang, ...common, ...objects, "-lm", "-o", temporary]);
  return path;
}
