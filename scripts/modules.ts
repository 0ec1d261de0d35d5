// What src/checkpoint/modules.json is made of: transformers' own choice of modules for each of its classes, less
// what
// the structure of a model tells anyway. `bun scripts/modules.ts` compares the two and says how many types differ;
// `--write` makes the data anew; `--facts FILE` takes what scripts/modules/collect.py wrote before.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { installPython, python } from "../bench/peers/install.ts";
import {
  isReplaced,
  judge,
  type Kind,
  type Known,
  largestNumbers,
  type ModuleData,
  matricesOf,
  moduleData,
  rootsOf,
  type Shapes,
  spellings,
  type Verdict,
} from "../src/checkpoint/modules.ts";
import { root, run, say, stop } from "./run.ts";

const target = `${root}/src/checkpoint/modules.json`;

/** One line of collect.py. */
interface Fact {
  readonly class: string;
  readonly type: string;
  readonly parts: readonly string[];
  readonly fp32: readonly string[];
  readonly fp32_strict: readonly string[];
  readonly float32: readonly string[];
  readonly skips: readonly string[];
  readonly spaces: Readonly<Record<string, { shapes: Record<string, number[]>; verdicts: Record<string, Verdict> }>>;
}

/** A model under one set of names. */
interface View {
  readonly fact: Fact;
  readonly kind: Kind;
  readonly shapes: Shapes;
  /** By the module's name. */
  readonly truth: ReadonlyMap<string, Verdict>;
  /** The spellings that a rule for a module may have. */
  readonly spellings: ReadonlyMap<string, readonly string[]>;
}

function viewsOf(fact: Fact): View[] {
  return Object.values(fact.spaces).map(({ shapes: record, verdicts }) => {
    const shapes = new Map(Object.entries(record));
    const modules = matricesOf(shapes);
    const last = largestNumbers(modules);
    return {
      fact,
      kind: { type: fact.type, architecture: fact.class, parts: fact.parts },
      shapes,
      truth: new Map(modules.map((module) => [module, verdicts[`${module}.weight`] ?? "Linear"])),
      spellings: new Map(modules.map((module) => [module, spellings(module, last)])),
    };
  });
}

/** Two verdicts that do the same: which reason a matrix stays for decides nothing. */
const same = (a: Verdict, b: Verdict) => a === b || (!isReplaced(a) && !isReplaced(b));

// ── Making the data ─────────────────────────────────────────────────────────────────────────────────────────────────

type Rules = Map<string, Verdict>;

/** The rules that some models need beside structure; `rest` is what no rule that holds for all of them can say. */
function rulesFor(views: readonly View[], isWrong: (view: View, module: string) => boolean) {
  const rules: Rules = new Map();
  const rest: View[] = [];
  for (const view of views)
    for (const [module, verdict] of view.truth) {
      if (!isWrong(view, module)) continue;
      const names = view.spellings.get(module)!;
      if (names.some((name) => rules.has(name))) continue;
      const holding = names.toReversed().find((name) => holds(name, verdict, views));
      if (holding === undefined) rest.push(view);
      else rules.set(holding, verdict);
    }
  return { rules, rest: [...new Set(rest)] };
}

/** Whether every module that a rule matches has its verdict. Rules with numbers of layers are the last resort. */
function holds(name: string, verdict: Verdict, views: readonly View[]): boolean {
  return views.every((view) =>
    [...view.spellings].every(([module, names]) => !names.includes(name) || same(view.truth.get(module)!, verdict)),
  );
}

function makeData(transformers: string, facts: readonly Fact[]): ModuleData {
  const verdicts: Verdict[] = [];
  const types: Record<string, Known> = {};
  const classes: Record<string, Known> = {};
  const structure = new Map<View, Map<string, Verdict>>();
  const byStructure = (view: View, module: string) => {
    if (!structure.has(view)) structure.set(view, judge(view.shapes, { ...view.kind, parts: [] }, empty));
    const found = structure.get(view)!.get(module)!;
    return byNeighbours.includes(found) || !same(found, view.truth.get(module)!);
  };
  for (const [type, all] of Map.groupBy(facts, (fact) => fact.type)) {
    const views = all.flatMap(viewsOf);
    const { rules, rest } = rulesFor(views, byStructure);
    const shared = sharedFloat32(all);
    types[type] = { ...numbered(rules, verdicts), ...shared };
    for (const name of new Set(rest.map(({ fact }) => fact.class))) {
      const own = views.filter(({ fact }) => fact.class === name);
      classes[name] = { ...numbered(rulesFor(own, byStructure).rules, verdicts), ...foundBy(own[0]!, views) };
    }
    for (const fact of all) {
      const known = { ...classes[fact.class], ...(shared ? {} : float32Of(fact, all)), ...skipsOf(fact) };
      if (Object.keys(known).length > 0) classes[fact.class] = known;
    }
  }
  return { transformers, verdicts, types, classes };
}

/**
 * By what a class is found where its name is not given, if no other class of its type begins its names in the same way.
 */
function foundBy({ fact, shapes }: View, views: readonly View[]): Pick<Known, "type" | "roots"> {
  const roots = rootsOf(shapes);
  const others = views.filter((view) => view.fact !== fact && rootsOf(view.shapes).join() === roots.join());
  return others.length === 0 ? { type: fact.type, roots } : {};
}

/** What structure sees by tensors beside the matrix, which a part of a model or a quantised one may lack. */
const byNeighbours = ["Conv1D", "router", "NonDynamicallyQuantizableLinear"];

const empty: ModuleData = { transformers: "", verdicts: [], types: {}, classes: {} };

function numbered(rules: Rules, verdicts: Verdict[]): Pick<Known, "rules"> {
  const found: Record<string, string[]> = {};
  for (const [name, verdict] of [...rules].sort()) {
    if (!verdicts.includes(verdict)) verdicts.push(verdict);
    const index = verdicts.indexOf(verdict);
    found[index] = [...(found[index] ?? []), name];
  }
  return rules.size > 0 ? { rules: found } : {};
}

type Float32 = Pick<Known, "float32" | "float32Always">;

/** What all classes of a type keep in float32, or undefined where they differ. */
function sharedFloat32(facts: readonly Fact[]): Float32 | undefined {
  const each = facts.map((fact) => float32Of(fact, facts));
  return each.every((one) => Bun.deepEquals(one, each[0])) ? each[0] : undefined;
}

function float32Of(fact: Fact, facts: readonly Fact[]): Float32 {
  const always = [...fact.fp32_strict, ...fact.float32.flatMap((name) => endingOf(name, fact.fp32_strict, facts))];
  return {
    ...(fact.fp32.length > 0 && { float32: fact.fp32 }),
    ...(always.length > 0 && { float32Always: [...new Set(always)].sort() }),
  };
}

/** The shortest ending of a float32 tensor's name that no other tensor has. */
function endingOf(name: string, known: readonly string[], facts: readonly Fact[]): string[] {
  if (known.some((part) => name.includes(part))) return [];
  const parts = name.split(".").map((part) => (/^\d+$/.test(part) ? "*" : part));
  for (let start = parts.length - 1; start >= 0; start--) {
    const ending = parts.slice(start).join(".");
    const pattern = new RegExp(`(^|\\.)${ending.replaceAll(".", "\\.").replaceAll("*", "\\d+")}$`);
    const only = facts.every(({ float32, spaces }) =>
      Object.keys(spaces.memory!.shapes).every((other) => !pattern.test(other) || float32.includes(other)),
    );
    if (only && !ending.startsWith("*")) return [ending];
  }
  return [];
}

/** The skips of a class, where they can't be found from the names of the file. */
function skipsOf({ skips, spaces }: Fact): Pick<Known, "skips"> {
  const renamed = spaces.saved !== undefined && skips.some((key) => !(`${key}.weight` in spaces.saved!.shapes));
  return renamed && !skips.some((key) => /\d/.test(key)) ? { skips } : {};
}

// ── Comparing ───────────────────────────────────────────────────────────────────────────────────────────────────────

interface Difference {
  readonly type: string;
  readonly class: string;
  readonly modules: readonly string[];
}

function differencesOf(facts: readonly Fact[], from: ModuleData): Difference[] {
  return facts.flatMap((fact) =>
    viewsOf(fact).flatMap(({ shapes, kind, truth }) => {
      const ours = judge(shapes, kind, from);
      const modules = [...truth].filter(([module, verdict]) => !same(ours.get(module)!, verdict));
      if (modules.length === 0) return [];
      const lines = modules.map(([module, verdict]) => `${module}: ${ours.get(module)}, there ${verdict}`);
      return [{ type: fact.type, class: fact.class, modules: lines }];
    }),
  );
}

function report(name: string, facts: readonly Fact[], differences: readonly Difference[]): void {
  const types = new Set(facts.map(({ type }) => type)).size;
  const differing = new Set(differences.map(({ type }) => type)).size;
  const counts = `${differences.length} of ${facts.length} classes, of ${differing} of ${types} types, differ`;
  console.log(`${name}: ${counts}.`);
  for (const { class: found, modules } of differences.slice(0, 20))
    console.log(`  ${found}: ${modules[0]}${modules.length > 1 ? ` … ${modules.length}` : ""}`);
}

function collect(): string {
  const problem = installPython("transformers");
  if (problem) stop(`transformers could not be installed: ${problem}.`);
  const file = `${root}/.cache/modules/facts.jsonl`;
  mkdirSync(`${root}/.cache/modules`, { recursive: true });
  say("Building every model class of transformers on its meta device: ten minutes …");
  if (run([python, `${root}/scripts/modules/collect.py`, file]) !== 0) stop("collect.py failed: see above.");
  return file;
}

const given = process.argv.indexOf("--facts");
const file = given > 0 ? process.argv[given + 1]! : collect();
if (!existsSync(file)) stop(`${file} does not exist.`);
const [head, ...lines] = readFileSync(file, "utf8")
  .trim()
  .split("\n")
  .map((line) => JSON.parse(line));
const failed = lines.filter((line) => "failed" in line);
// Parts of bark have no type; no file holds one alone.
const facts: Fact[] = lines.filter((line) => !("failed" in line) && line.type !== "");
if (process.argv.includes("--write")) {
  const made = makeData(head.transformers, facts);
  writeFileSync(target, `${JSON.stringify(made)}\n`);
  report("made anew", facts, differencesOf(facts, made));
} else {
  report("structure alone", facts, differencesOf(facts, empty));
  const differences = differencesOf(facts, moduleData);
  report(`with the data of transformers ${moduleData.transformers}`, facts, differences);
  if (differences.length > 0) process.exitCode = 1;
}
console.log(`${failed.length} classes could not be built by their default config.`);
