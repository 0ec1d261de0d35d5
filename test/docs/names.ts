// The list of public names: what src/index.ts exports, with the docstring that stands at each declaration.
import { readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";

const root = resolve(import.meta.dir, "../..");

export interface PublicName {
  /** As a user writes it: `nn.Linear4bit`. */
  readonly name: string;
  /** Whether it is exported as a type only. */
  readonly type: boolean;
  /** Where it is declared, relative to the repository. */
  readonly file: string;
  /** The docstring, without its stars; undefined where there is none. */
  readonly doc: string | undefined;
}

/** Every name that the package exports, those of its namespaces included. */
export function publicNames(index = join(root, "src/index.ts"), prefix = ""): PublicName[] {
  const text = readFileSync(index, "utf8");
  const folder = dirname(index);
  const namespaces = text.matchAll(/^export \* as (\w+) from "(.+)";/gm);
  const lists = text.matchAll(/^export (type )?\{([^}]+)\} from "(.+)";/gm);
  return [
    ...[...namespaces].flatMap(([, name, path]) => publicNames(join(folder, path!), `${prefix}${name}.`)),
    ...[...lists].flatMap(([, type, names, path]) =>
      namesOf(names!).map((name) => declared(join(folder, path!), name, prefix, Boolean(type))),
    ),
    ...declaredIn(text).map((name) => declared(index, name, prefix, false)),
  ];
}

const namesOf = (list: string) => list.split(",").flatMap((name) => name.trim() || []);

/** `class X`, or the names of `const { X, X8bit } = …`. */
const declaration =
  /^export (?:abstract |async )*(class|function|interface|type|const) (?:\{([^}]*)\}|(\w+))(?! from)/gm;

function declaredIn(text: string): string[] {
  return [...text.matchAll(declaration)].flatMap(([, kind, several, one]) => {
    const names = several ? namesOf(several) : [one!];
    return kind === "interface" || kind === "type" ? names.map((name) => `type ${name}`) : names;
  });
}

function declared(path: string, given: string, prefix: string, typesOnly: boolean): PublicName {
  const text = readFileSync(path, "utf8");
  const type = typesOnly || given.startsWith("type ");
  const name = given.replace(/^type /, "");
  const at = [...text.matchAll(declaration)].find(([, , several, one]) =>
    several ? namesOf(several).includes(name) : one === name,
  );
  const file = relative(root, path);
  if (!at) throw new Error(`${file} has no declaration of ${name} that this test could find`);
  return { name: `${prefix}${name}`, type, file, doc: docBefore(text.slice(0, at.index)) };
}

/** The docstring that a text ends in. */
function docBefore(text: string): string | undefined {
  if (!text.endsWith("*/\n")) return undefined;
  const doc = text.slice(text.lastIndexOf("/**"));
  return doc.replaceAll(/^ ?(\/\*\*|\*\/|\*) ?/gm, "").replaceAll(/ ?\*\/$/gm, "");
}
