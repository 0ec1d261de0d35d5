// Owns the translation of declarations: namespaces, templates, structs, globals, functions and kernels, in order.

import { BodyTranslator, linesOf, type Place } from "./body.ts";
import { derivedConstant, patchedConstant } from "./cuda.ts";
import { parseParameters } from "./kernel.ts";
import type { Scope } from "./scope.ts";
import { closing, closingAngle, isAttribute, splitAtCommas, textOf } from "./tokens.ts";
import { constantTypes } from "./vocabulary.ts";

interface Head {
  readonly text: string;
  readonly names: readonly string[] | undefined;
}

const noTemplate: Head = { text: "", names: undefined };
const specifierWords = new Set([
  "static",
  "inline",
  "constexpr",
  "kernel",
  "const",
  "constant",
  "device",
  "threadgroup",
  "thread",
]);

/** Translates a source's declarations, and tells the scope about them. */
export class DeclarationTranslator {
  private out = "";

  constructor(private readonly scope: Scope) {}

  /** The C++ of the whole source. */
  translate(): string {
    this.declarations(0, this.scope.tokens.length - 1);
    return this.out;
  }

  private declarations(begin: number, end: number): void {
    for (let i = begin; i < end; ) i = this.declaration(i, end);
  }

  private emit(i: number, text = this.scope.text(i)): number {
    this.out += this.scope.tokens[i]!.before + text;
    return i + 1;
  }

  private drop(begin: number, end: number): void {
    for (let i = begin; i < end; i++) this.out += linesOf(this.scope.tokens[i]!.before);
  }

  private body(begin: number, end: number, place: Place = { kind: "declaration" }): string {
    return new BodyTranslator(this.scope, place).translate(begin, end);
  }

  private semicolon(i: number): number {
    const { scope } = this;
    while (scope.text(i) !== ";") {
      if (scope.text(i) === "") scope.refuse(i, "the end of the source inside a declaration");
      i = ["(", "[", "{"].includes(scope.text(i)) ? closing(scope.tokens, i) + 1 : i + 1;
    }
    return i;
  }

  private declaration(i: number, end: number, head: Head = noTemplate): number {
    const { scope } = this;
    switch (scope.text(i)) {
      case ";":
        return this.emit(i);
      case "namespace":
        return this.namespace(i);
      case "template":
        return scope.text(i + 1) === "<" ? this.template(i, end) : this.instance(i);
      case "struct":
      case "class":
      case "enum":
        return this.record(i, head);
      case "using":
      case "typedef":
      case "static_assert": {
        const semicolon = this.semicolon(i);
        if (scope.text(i) === "using" && head.names) {
          scope.typeTemplates.add(scope.text(i + 1));
          scope.templates.add(scope.text(i + 1));
        }
        this.out += head.text + this.body(i, semicolon + 1);
        return semicolon + 1;
      }
      default:
        return this.functionOrVariable(i, head);
    }
  }

  private namespace(i: number): number {
    const { scope } = this;
    const named = scope.tokens[i + 1]!.kind === "word";
    const open = named ? i + 2 : i + 1;
    if (scope.text(open) !== "{") scope.refuse(i, "this form of namespace");
    const close = closing(scope.tokens, open);
    for (let k = i; k <= open; k++) this.emit(k);
    this.declarations(open + 1, close);
    return this.emit(close);
  }

  private template(i: number, end: number): number {
    const { scope } = this;
    const close = closingAngle(scope.tokens, i + 1);
    const names: string[] = [];
    for (const [begin, stop] of splitAtCommas(scope.tokens, i + 2, close, scope.opensTemplate)) {
      let nameEnd = begin;
      while (nameEnd < stop && scope.text(nameEnd) !== "=") nameEnd++;
      const isFunction = scope.dialect === "any" && scope.text(begin + 1) === "(" && scope.text(begin + 2) === "*";
      const name = scope.tokens[isFunction ? begin + 3 : nameEnd - 1]!;
      const isType = scope.text(begin) === "typename" || scope.text(begin) === "class";
      if (scope.dialect === "ours") {
        if (textOf(scope.tokens, begin, stop).includes("...")) scope.refuse(begin, "a parameter pack");
        if (scope.text(begin) === "template") scope.refuse(begin, "a template template parameter");
        if (name.kind !== "word" || nameEnd - begin < 2) scope.refuse(begin, "a template parameter without a name");
      }
      if (isType && name.kind === "word") scope.declareType(name.text, true);
      names.push(name.text);
    }
    const text = this.body(i, close + 1);
    return this.declaration(close + 1, end, { text, names });
  }

  /** `template [[host_name("x")]] [[kernel]] decltype(f<T>) f<T>;`: which instance of a kernel has which host name. */
  private instance(i: number): number {
    const { scope } = this;
    const semicolon = this.semicolon(i);
    const attributes: [number, number][] = [];
    let name = -1;
    let close = -1;
    for (let k = i + 1; k < semicolon; ) {
      if (isAttribute(scope.tokens, k)) {
        const stop = closing(scope.tokens, k) + 1;
        attributes.push([k, stop]);
        k = stop;
      } else if (scope.text(k) === "(") k = closing(scope.tokens, k) + 1;
      else if (scope.tokens[k]!.kind === "word" && scope.text(k + 1) === "<") {
        name = k;
        close = closingAngle(scope.tokens, k + 1);
        k = close + 1;
      } else k++;
    }
    const { hostName, isKernel } = this.attributes(attributes);
    const isMarked = isKernel || textOf(scope.tokens, i, semicolon).split(/\W+/).includes("kernel");
    if (name < 0 || !isMarked || !hostName) {
      return scope.refuse(
        i,
        `an explicit instantiation must be template [[host_name("…")]] [[kernel]] decltype(f<…>) f<…>;`,
      );
    }
    const templateArguments = this.body(name + 1, close + 1)
      .replace(/\s+/g, " ")
      .trim();
    scope.instances.push({ hostName, kernel: scope.text(name), templateArguments, at: scope.tokens[i]! });
    this.drop(i, semicolon + 1);
    return semicolon + 1;
  }

  private attributes(ranges: readonly (readonly [number, number])[]): {
    hostName: string | undefined;
    isKernel: boolean;
    maxThreads: string | undefined;
  } {
    const { scope } = this;
    let hostName: string | undefined;
    let isKernel = false;
    let maxThreads: string | undefined;
    // A list may stand between one pair of brackets.
    const lists = ranges.flatMap(([begin, end]) =>
      splitAtCommas(scope.tokens, begin + 2, end - 2, scope.opensTemplate),
    );
    for (const [begin, end] of lists) {
      const word = scope.text(begin);
      if (word === "kernel" && end === begin + 1) isKernel = true;
      else if (word === "host_name") {
        hostName = "";
        for (let k = begin + 2; k < end - 1; k++) hostName += JSON.parse(scope.text(k));
      } else if (word === "max_total_threads_per_threadgroup") {
        maxThreads = this.body(begin + 2, end - 1).trim();
      } else scope.refuse(begin, `the attribute [[${textOf(scope.tokens, begin, end)}]]`);
    }
    return { hostName, isKernel, maxThreads };
  }

  private record(i: number, head: Head): number {
    const { scope } = this;
    const isEnum = scope.text(i) === "enum";
    const at = isEnum && ["class", "struct"].includes(scope.text(i + 1)) ? i + 2 : i + 1;
    if (scope.tokens[at]!.kind === "word") {
      scope.checkGlobal(at);
      const name = scope.text(at);
      if (head.names) scope.typeTemplates.add(name) && scope.templates.add(name);
      else scope.declareType(name, false);
    }
    const semicolon = this.semicolon(i);
    let open = at;
    while (open < semicolon && scope.text(open) !== "{") open++;
    if (scope.dialect === "ours" && !isEnum && open < semicolon)
      this.checkMembers(open + 1, closing(scope.tokens, open));
    if (scope.target === "lint" && !isEnum && open < semicolon) {
      const close = closing(scope.tokens, open);
      const copies = ` LINT_COPIES(${scope.text(at)}) `;
      this.out += head.text + this.body(i, close) + copies + this.body(close, semicolon + 1);
    } else this.out += head.text + this.body(i, semicolon + 1);
    return semicolon + 1;
  }

  /** Structs of ours hold data, and static functions that need no `this`. */
  private checkMembers(begin: number, end: number): void {
    const { scope } = this;
    for (let i = begin; i < end; ) {
      const start = i;
      let call = -1;
      while (i < end && scope.text(i) !== ";" && scope.text(i) !== "{" && scope.text(i) !== "=") {
        if (scope.text(i) === "(" && call < 0) call = i;
        i = ["(", "["].includes(scope.text(i)) ? closing(scope.tokens, i) + 1 : i + 1;
      }
      const isStatic = textOf(scope.tokens, start, i).split(/\W+/).includes("static");
      if (call >= 0 && !isStatic && !["static_assert", "decltype"].includes(scope.text(start))) {
        scope.refuse(
          start,
          "a member function with an implicit this, whose address space differs among Metal versions; make it static",
        );
      }
      const type = scope.typeAt(start);
      if (type && /^\w+3$/.test(scope.text(type.base[0])) && scope.convertible.has(scope.text(type.base[0]))) {
        scope.refuse(
          start,
          `${scope.text(type.base[0])} in a struct: a vector of three takes the room of four; use scalars`,
        );
      }
      if (scope.text(i) === "{") i = closing(scope.tokens, i) + 1;
      else if (scope.text(i) === "=") i = this.semicolon(i) + 1;
      else i++;
      if (scope.text(i) === ";") i++;
    }
  }

  private functionOrVariable(i: number, head: Head): number {
    const { scope } = this;
    const attributes: [number, number][] = [];
    let k = i;
    while (!["(", "=", ";", "{", "["].includes(scope.text(k)) || isAttribute(scope.tokens, k)) {
      if (scope.text(k) === "") scope.refuse(i, `the declaration at ${scope.text(i)}`);
      if (scope.tokens[k]!.kind === "word") new BodyTranslator(scope, { kind: "declaration" }).checkWord(k);
      if (isAttribute(scope.tokens, k)) {
        const stop = closing(scope.tokens, k) + 1;
        if (scope.text(stop) === ";" || scope.text(k + 2) === "function_constant")
          return this.functionConstant(i, k, stop);
        attributes.push([k, stop]);
        k = stop;
      } else if (scope.text(k) === "operator") {
        while (scope.text(k) !== "(") k++;
      } else if (scope.opensTemplate(k)) k = closingAngle(scope.tokens, k) + 1;
      else if (scope.text(k) === "decltype") k = closing(scope.tokens, k + 1) + 1;
      else k++;
    }
    if (scope.text(k) !== "{") scope.checkGlobal(k - 1);
    if (scope.text(k) === "(") return this.function(i, k, attributes, head);
    return this.variable(i, k, head);
  }

  // Globals ------------------------------------------------------------------------------------------------------

  private functionConstant(i: number, attribute: number, stop: number): number {
    const { scope } = this;
    const name = scope.text(attribute - 1);
    const type = textOf(scope.tokens, i + 1, attribute - 1);
    const bytes = constantTypes.get(type);
    const index = /^\[\[\s*function_constant\s*\(\s*([\d\s+*()]+)\)\s*\]\]$/.exec(
      textOf(scope.tokens, attribute, stop),
    )?.[1];
    if (scope.text(i) !== "constant" || bytes === undefined || index === undefined || scope.text(stop) !== ";") {
      return scope.refuse(
        i,
        `a function constant must be: constant T name [[function_constant(number)]]; with T one of ` +
          [...constantTypes.keys()].join(", "),
      );
    }
    const value = index
      .split("+")
      .reduce((sum, part) => sum + part.split("*").reduce((p, f) => p * Number(f.replace(/[()\s]/g, "")), 1), 0);
    for (const other of scope.functionConstants.values()) {
      if (other.index === value) scope.refuse(i, `the function constants ${other.name} and ${name} have one index`);
    }
    scope.functionConstants.set(name, { index: value, name, type, bytes });
    const declared =
      scope.target === "cuda"
        ? patchedConstant(value, name)
        : `static ${type} ${name}; static bool sim_defined_${name};`;
    this.out += scope.tokens[i]!.before + declared;
    this.drop(i + 1, stop + 1);
    return stop + 1;
  }

  private variable(i: number, stop: number, head: Head): number {
    const { scope } = this;
    const semicolon = this.semicolon(i);
    const specifiers: string[] = [];
    let k = i;
    while (specifierWords.has(scope.text(k))) specifiers.push(scope.text(k++));
    const inPlainConstant = specifiers.includes("constant");
    const constexprGlobal =
      scope.dialect === "any" && (specifiers.includes("constexpr") || specifiers.includes("const"));
    if (!inPlainConstant && !constexprGlobal) {
      scope.refuse(i, `the global ${scope.text(stop - 1)} is not in the constant address space`);
    }
    const words = new Set<string>();
    const initialiser = scope.text(stop) === "=" ? this.body(stop + 1, semicolon, { kind: "declaration", words }) : "";
    const name = scope.text(stop - 1);
    const isDerived = [...words].some((word) => scope.functionConstants.has(word) || scope.derived.has(word));
    if (isDerived && scope.target !== "lint") {
      const type = this.body(k, stop - 1).trim();
      if (specifiers.includes("constexpr"))
        scope.refuse(i, `${name} depends on a function constant and cannot be constexpr`);
      scope.derived.set(name, initialiser.replace(/\s+/g, " ").trim());
      scope.uses.set(name, words);
      const declared = scope.target === "cuda" ? derivedConstant(name, type, initialiser) : `static ${type} ${name};`;
      this.out += head.text + scope.tokens[i]!.before + declared;
      this.drop(i + 1, semicolon + 1);
      return semicolon + 1;
    }
    const kept = scope.target === "lint" ? "constant" : scope.target === "cuda" ? "constexpr" : "const";
    const declared = specifiers.includes("constexpr") && kept !== "constexpr" ? `${kept} constexpr` : kept;
    this.out += `${head.text}${scope.tokens[i]!.before}static ${declared}`;
    this.drop(i + 1, k);
    this.out += this.body(k, semicolon + 1);
    return semicolon + 1;
  }

  // Functions ----------------------------------------------------------------------------------------------------

  private function(i: number, open: number, attributes: [number, number][], head: Head): number {
    const { scope } = this;
    const name = this.functionName(open);
    const close = closing(scope.tokens, open);
    let after = close + 1;
    while (isAttribute(scope.tokens, after)) {
      const stop = closing(scope.tokens, after) + 1;
      attributes.push([after, stop]);
      after = stop;
    }
    const { hostName, isKernel: marked, maxThreads } = this.attributes(attributes);
    const specifiers: string[] = [];
    for (let k = i; k < open; k++) specifiers.push(scope.text(k));
    const isKernel = marked || specifiers.includes("kernel");
    if (name === "") scope.refuse(i, `the declaration ${textOf(scope.tokens, i, open)}`);
    const declares = scope.text(after) === ";";
    if (!declares && scope.text(after) !== "{")
      scope.refuse(after, `the function ${name} has ${scope.text(after)} where its body should be`);
    if (head.names && name !== "operator") scope.templates.add(name);
    if (isKernel) return this.kernel(i, open, close, after, { name, hostName, maxThreads, attributes, head });
    if (attributes.length > 0) scope.refuse(attributes[0]![0], "an attribute on a function that is no kernel");
    this.checkParameters(open, close);
    this.out += head.text + this.body(i, close + 1);
    if (declares) return this.emit(after);
    const stop = closing(scope.tokens, after);
    const words = scope.uses.get(name) ?? new Set<string>();
    scope.uses.set(name, words);
    const plain = scope.plainFunctions.get(name);
    scope.plainFunctions.set(name, { count: (plain?.count ?? 0) + (head.names ? 2 : 1), at: scope.tokens[i]! });
    this.out += this.body(after, stop + 1, { kind: "function", words });
    return stop + 1;
  }

  /** The name before the parenthesis, or before the template arguments of a specialisation; "" if there is none. */
  private functionName(open: number): string {
    const { scope } = this;
    let at = open - 1;
    if (scope.dialect === "any") {
      if ([scope.text(at - 1), scope.text(at - 2)].includes("operator")) return "operator";
      if (scope.text(at) === ">") while (at > 0 && scope.text(at) !== "<") at--;
      if (scope.text(at) === "<") at--;
    }
    return scope.tokens[at]!.kind === "word" ? scope.text(at) : "";
  }

  /** An array as a parameter is a pointer without an address space. */
  private checkParameters(open: number, close: number): void {
    const { scope } = this;
    if (scope.dialect === "any") return;
    for (const [begin, end] of splitAtCommas(scope.tokens, open + 1, close, scope.opensTemplate)) {
      const type = scope.typeAt(begin);
      if (type && !type.pointer && scope.text(type.end) !== "(" && scope.text(end - 1) === "]") {
        scope.refuse(
          begin,
          `the array parameter ${textOf(scope.tokens, begin, end)}; write a reference, thread T (&name)[n]`,
        );
      }
    }
  }

  private kernel(
    i: number,
    open: number,
    close: number,
    after: number,
    k: {
      name: string;
      hostName: string | undefined;
      maxThreads: string | undefined;
      attributes: [number, number][];
      head: Head;
    },
  ): number {
    const { scope } = this;
    if (scope.kernels.has(k.name)) scope.refuse(i, `two kernels are named ${k.name}`);
    if (scope.text(after) === ";") {
      if (scope.dialect === "ours") scope.refuse(i, `the kernel ${k.name} has no body`);
      this.drop(i, after + 1);
      return after + 1;
    }
    if (scope.text(open - 2) !== "void") scope.refuse(i, `the kernel ${k.name} must return void`);
    const { parameters, ranges } = parseParameters(scope, open, close);
    const templateNames = k.head.names;
    scope.kernels.set(k.name, {
      name: k.name,
      hostName: k.hostName,
      templateNames,
      parameters,
      maxThreads: k.maxThreads,
      at: scope.tokens[i]!,
    });
    // cuda.h's inline always is: an entry calls nothing.
    const kept = scope.target === "cuda" ? "static inline" : "static";
    this.out += `${k.head.text}${scope.tokens[i]!.before}${kept} void ${k.name}(`;
    this.drop(i + 1, open + 1);
    ranges.forEach(([begin, end], n) => {
      this.out += (n > 0 ? "," : "") + this.body(begin, end);
      this.drop(end, n + 1 < ranges.length ? ranges[n + 1]![0] : after);
    });
    this.out += ")";
    const stop = closing(scope.tokens, after);
    const words = new Set<string>();
    scope.uses.set(k.name, words);
    const instance = templateNames ? `${k.name}<${templateNames.join(", ")}>` : k.name;
    this.out += this.body(after, stop + 1, { kind: "kernel", instance, words });
    return stop + 1;
  }
}
