// What a user can call: every exported function, constructor, static and method that takes arguments, with their names.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as api from "../../src/index.ts";
import { publicNames } from "../docs/names.ts";

const root = join(import.meta.dir, "../..");

/** Something that takes arguments. */
export interface Callable {
  /** As errors name it: `matmul4bit`, `Linear4bit`, `Linear4bit.init`, `Linear4bit.forward`. */
  readonly name: string;
  /** What is exported: `nn.Linear4bit`. */
  readonly exported: string;
  readonly kind: "function" | "constructor" | "static" | "method";
  /** The names of its arguments, in order. */
  readonly parameters: readonly string[];
}

type Class = { readonly prototype: object; readonly name: string };

/** What a public name stands for at run time. */
export function resolved(name: string): unknown {
  return name.split(".").reduce((scope: unknown, part) => (scope as Record<string, unknown>)[part], api);
}

const isClass = (value: unknown): value is Class =>
  typeof value === "function" && /^class\b/.test(Function.prototype.toString.call(value));

/** The names between the brackets that open at a place of a text; what a parameter is by default is left out. */
function parametersAt(text: string, open: number): string[] {
  let depth = 0;
  let end = open;
  do {
    if ("([{".includes(text[end]!)) depth++;
    if (")]}".includes(text[end]!)) depth--;
    end++;
  } while (depth > 0);
  const list = text.slice(open + 1, end - 1);
  const names: string[] = [];
  let from = 0;
  for (let i = 0; i <= list.length; i++) {
    if ("([{".includes(list[i] ?? " ")) depth++;
    else if (")]}".includes(list[i] ?? " ")) depth--;
    else if (i === list.length || (list[i] === "," && depth === 0)) {
      const name = /^\s*(\w+)/.exec(list.slice(from, i))?.[1];
      if (name) names.push(name);
      from = i + 1;
    }
  }
  return names;
}

/** The members of a class that its source marks as internal or private, which users have no business with. */
function hidden(file: string, className: string): Set<string> {
  const text = readFileSync(join(root, file), "utf8");
  const start = text.search(new RegExp(`^export (abstract )?class ${className}\\b`, "m"));
  const body = text.slice(start, text.indexOf("\n}\n", start));
  const marked = body.matchAll(
    /^ {2}\/\*\*(?:(?!\*\/)[\s\S])*?@internal(?:(?!\*\/)[\s\S])*?\*\/\n {2}(?:(?:static|get|async|override) )*(\w+)/gm,
  );
  const unseen = body.matchAll(/^ {2}(?:private|protected)(?: static| override)* (\w+)/gm);
  return new Set([...[...marked].map(([, name]) => name!), ...[...unseen].map(([, name]) => name!)]);
}

function ofFunction(exported: string, value: object): Callable {
  const text = Function.prototype.toString.call(value);
  return {
    name: exported.split(".").at(-1)!,
    exported,
    kind: "function",
    parameters: parametersAt(text, text.indexOf("(")),
  };
}

function ofClass(exported: string, file: string, value: Class): Callable[] {
  const { name } = value;
  const unseen = hidden(file, name);
  const members = (kind: "static" | "method", owner: object): Callable[] =>
    Object.entries(Object.getOwnPropertyDescriptors(owner)).flatMap(([member, { value: made }]) => {
      if (typeof made !== "function" || member === "constructor" || unseen.has(member)) return [];
      const text = Function.prototype.toString.call(made);
      return [{ name: `${name}.${member}`, exported, kind, parameters: parametersAt(text, text.indexOf("(")) }];
    });
  const text = Function.prototype.toString.call(value);
  const at = /^\s*constructor\(/m.exec(text);
  const make: Callable[] =
    at && !unseen.has("constructor")
      ? [{ name, exported, kind: "constructor", parameters: parametersAt(text, at.index + at[0].length - 1) }]
      : [];
  return [...make, ...members("static", value), ...members("method", value.prototype)];
}

/** Everything that is exported and takes an argument. */
export const callables: readonly Callable[] = publicNames()
  .filter(({ type }) => !type)
  .flatMap(({ name, file }) => {
    const value = resolved(name);
    if (isClass(value)) return ofClass(name, file, value);
    return typeof value === "function" ? [ofFunction(name, value)] : [];
  })
  .filter(({ parameters }) => parameters.length > 0);
