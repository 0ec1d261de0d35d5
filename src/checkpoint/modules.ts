// What transformers makes of each matrix of a model: an `nn.Linear`, which bitsandbytes replaces, or something
// else.
// What it says of the models that it knows is data (modules.json, made by `scripts/modules.ts`); others go by
// structure.
import data from "./modules.json" with { type: "json" };

/** The extents of each tensor, by name. */
export type Shapes = ReadonlyMap<string, readonly number[]>;

/** What a module is: one that is replaced, from rows or from columns (`Conv1D`), or the reason for which it stays. */
export type Verdict = "Linear" | "Conv1D" | (string & {});

/** Of a model: a type, a class, and those of its parts, as config.json names them. */
export interface Kind {
  readonly type: string | undefined;
  readonly architecture: string | undefined;
  readonly parts: readonly string[];
}

/** What is known of a type of models, or of one class. */
export interface Known {
  /** Verdicts, as numbers of {@link ModuleData.verdicts}, with the endings of names for which each holds. */
  readonly rules?: Readonly<Record<string, readonly string[]>>;
  /** Parts of names that stay float32 where the model is float16. */
  readonly float32?: readonly string[];
  /** Parts of names that stay float32 always. */
  readonly float32Always?: readonly string[];
  /** What `llm_int8_skip_modules` has to repeat where it is given. */
  readonly skips?: readonly string[];
  /**
   * By what a class is found where config.json names none: its type, and how its tensors' names begin, if only its do.
   */
  readonly type?: string;
  readonly roots?: readonly string[];
}

export interface ModuleData {
  readonly transformers: string;
  readonly verdicts: readonly string[];
  readonly types: Readonly<Record<string, Known>>;
  readonly classes: Readonly<Record<string, Known>>;
}

export const moduleData: ModuleData = data as ModuleData;

/** The release of transformers that the data is of. */
export const transformersVersion = moduleData.transformers;

/** Whether a verdict is one for quantising. */
export const isReplaced = (verdict: Verdict) => verdict === "Linear" || verdict === "Conv1D";

/** Verdicts on modules that stay by default only: where `llm_int8_skip_modules` is given, it has to name them. */
const byDefault = ["output head", "last module", "named as a kept module"];

export const isHead = (verdict: Verdict) => byDefault.includes(verdict);

/** Whether the data has a model's type. */
export const isKnown = ({ type }: Kind) => type !== undefined && Object.hasOwn(moduleData.types, type);

// ── What is known ───────────────────────────────────────────────────────────────────────────────────────────────────

/** What is known of a kind, the most particular first: its class, its type, the types of its parts. */
export function knownOf({ type, architecture, parts }: Kind, from: ModuleData = moduleData): Known[] {
  const own = [known(from.classes, architecture), known(from.types, type)];
  return [...own, ...parts.map((part) => known(from.types, part))].filter((one) => one !== undefined);
}

function known(record: Readonly<Record<string, Known>>, key: string | undefined): Known | undefined {
  return key !== undefined && Object.hasOwn(record, key) ? record[key] : undefined;
}

/**
 * The verdicts by the ending that each holds for, the most particular table first. What is a head or last module in a
 * part that stands alone is none in the whole, nor the other way round.
 */
function tablesOf({ type, architecture, parts }: Kind, from: ModuleData): Map<string, Verdict>[] {
  const own = [known(from.classes, architecture), known(from.types, type)].map((one) => endings(one, from));
  const ofParts = parts.flatMap((part) => [...endings(known(from.types, part), from)]);
  const table = new Map(ofParts.filter(([name, verdict]) => !isHead(verdict) && !heads.includes(name)));
  return [...own, table].filter(({ size }) => size > 0);
}

function endings(one: Known | undefined, { verdicts }: ModuleData): Map<string, Verdict> {
  return new Map(
    Object.entries(one?.rules ?? {}).flatMap(([index, names]) =>
      names.map((name) => [name, verdicts[Number(index)]!] as const),
    ),
  );
}

/**
 * The spellings of a module's name that a rule may have, the most particular first: each ending of it, with its numbers
 * as they are, as `*`, or, where a number is the largest that stands there in the model, as `$`.
 */
export function spellings(module: string, last: ReadonlyMap<string, number>): string[] {
  const parts = module.split(".");
  const starred = parts.map((part) => (isNumber(part) ? "*" : part));
  const ends = starred.map((part, i) => (part === "*" && isLast(parts, starred, i, last) ? "$" : part));
  const found = [`^${starred.join(".")}`];
  for (let start = 0; start < parts.length; start++) {
    if (start > 0 && starred[start] === "*") continue;
    for (const spelled of [parts, ends, starred]) {
      const ending = spelled.slice(start).join(".");
      if (ending !== found.at(-1)) found.push(ending);
    }
  }
  return found;
}

const isNumber = (part: string) => /^\d+$/.test(part);

function isLast(parts: readonly string[], starred: readonly string[], i: number, last: ReadonlyMap<string, number>) {
  return last.get(placeOf(parts, starred, i)) === Number(parts[i]);
}

/** The modules that a number tells apart: those of the same names and the same numbers before it. */
const placeOf = (parts: readonly string[], starred: readonly string[], i: number) =>
  [...parts.slice(0, i), "#", ...starred.slice(i + 1)].join(".");

/** The largest number at each place of each module's name. */
export function largestNumbers(modules: Iterable<string>): Map<string, number> {
  const last = new Map<string, number>();
  for (const module of modules) {
    const parts = module.split(".");
    const starred = parts.map((part) => (isNumber(part) ? "*" : part));
    for (const [i, part] of parts.entries()) {
      if (!isNumber(part)) continue;
      const place = placeOf(parts, starred, i);
      last.set(place, Math.max(last.get(place) ?? 0, Number(part)));
    }
  }
  return last;
}

/** The verdict on every matrix called `….weight`, by the module's name. */
export function judge(shapes: Shapes, kind: Kind, from: ModuleData = moduleData): Map<string, Verdict> {
  const modules = matricesOf(shapes);
  const tables = tablesOf({ ...kind, architecture: kind.architecture ?? classOf(shapes, kind.type, from) }, from);
  const last = largestNumbers(modules);
  const isTransposed = transposedIn(shapes);
  return new Map(
    modules.map((module) => {
      const names = tables.length > 0 ? spellings(module, last) : [];
      for (const table of tables) {
        const name = names.find((one) => table.has(one));
        if (name !== undefined) return [module, table.get(name)!];
      }
      return [module, judgeByStructure(module, shapes, isTransposed)];
    }),
  );
}

/** The class of a type that alone has tensors whose names begin as a file's do. */
function classOf(shapes: Shapes, type: string | undefined, { classes }: ModuleData): string | undefined {
  const roots = rootsOf(shapes);
  return Object.keys(classes).find(
    (name) => classes[name]!.type === type && classes[name]!.roots?.join() === roots.join(),
  );
}

/** How the names of tensors begin: the parts before their first dots, in order. */
export function rootsOf(shapes: Shapes): string[] {
  return [...new Set([...shapes.keys()].map((name) => name.split(".")[0]!))].sort();
}

/** The modules that have a matrix as their weight. */
export function matricesOf(shapes: Shapes): string[] {
  return [...shapes]
    .filter(([name, shape]) => shape.length === 2 && !shape.includes(0) && name.endsWith(".weight"))
    .map(([name]) => name.slice(0, -".weight".length));
}

// ── By structure ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Output heads, which transformers leaves alone. `score` counts as one where it has no bias. */
const heads = ["lm_head", "lm_head.decoder", "embed_out", "cls.predictions.decoder", "vocab_projector"];

/** The last part of the names that embeddings have in transformers' models. Their weights are matrices too. */
const embedding =
  /^(wte|wpe|shared|embed|embed_in|word_embed|pos_embed|relative_attention_bias|.*embeddings?|embed_.*)$/;

/** Whether a matrix is an `nn.Linear`, as far as names and shapes tell. */
export function judgeByStructure(
  module: string,
  shapes: Shapes,
  isTransposed: (module: string) => boolean = transposedIn(shapes),
): Verdict {
  const last = module.slice(module.lastIndexOf(".") + 1);
  const parent = module.slice(0, -last.length);
  const isHead = heads.some((head) => module === head || module.endsWith(`.${head}`));
  if (isHead || (last === "score" && !shapes.has(`${module}.bias`))) return "output head";
  if (embedding.test(last)) return "Embedding";
  if (/\.experts\.\d+\./.test(module)) return "fused in memory";
  if (/^(gate|router)$/.test(last) && hasExperts(parent, shapes)) return "router";
  if (last === "out_proj" && shapes.has(`${parent}in_proj_weight`)) return "NonDynamicallyQuantizableLinear";
  return isTransposed(module) ? "Conv1D" : "Linear";
}

function hasExperts(parent: string, shapes: Shapes): boolean {
  const names = ["0.w1.weight", "0.up_proj.weight", "0.down_proj.weight", "gate_up_proj", "up_proj", "down_proj"];
  return names.some((name) => shapes.has(`${parent}experts.${name}`));
}

/** The modules that GPT-2's kin store by columns: a bias tells it, and square ones are as their neighbours. */
function transposedIn(shapes: Shapes): (module: string) => boolean {
  const kin = /(^|\.)(c_attn|c_proj|c_fc|q_attn)$/;
  const isClear = (module: string) => {
    const [rows, columns] = shapes.get(`${module}.weight`) ?? [];
    const bias = shapes.get(`${module}.bias`)?.[0];
    return rows !== columns && bias !== undefined && bias === columns;
  };
  const any = [...shapes.keys()].some((name) => {
    const module = name.slice(0, -".weight".length);
    return name.endsWith(".weight") && kin.test(module) && isClear(module);
  });
  return (module) => any && kin.test(module);
}

// ── In words ────────────────────────────────────────────────────────────────────────────────────────────────────────

const sentences: Readonly<Record<string, string>> = {
  Embedding: "an embedding, which bitsandbytes does not replace",
  router: "a router of experts, which is no nn.Linear in transformers",
  "output head": "the output head, which transformers keeps",
  "last module": "the model's last module, which transformers keeps",
  "named as a kept module": "called as a module is that transformers keeps: its output head, its last, or a tied one",
  "kept in float32": "transformers keeps it in float32",
  "fused in memory": "transformers joins it with others into a tensor that bitsandbytes does not quantise",
  "of another shape in memory": "transformers reshapes it when it loads the model",
  NonDynamicallyQuantizableLinear: "part of an nn.MultiheadAttention, which bitsandbytes does not replace",
};

/** Why a matrix stays, as a clause. */
export function sentenceOf(verdict: Verdict): string {
  return sentences[verdict] ?? `a ${verdict} in transformers, which is not exactly an nn.Linear`;
}
