// Owns the translation of what stands inside declarations: expressions, statements, types, and what they must not hold.

import { sharedVariable } from "./cuda.ts";
import type { Scope, TypeInfo } from "./scope.ts";
import { closing, closingAngle, isAttribute, splitAtCommas, textOf } from "./tokens.ts";
import { addressSpaces, refusedPatterns, refusedWords } from "./vocabulary.ts";

/** Where a range stands, which decides what may be declared in it. */
export interface Place {
  readonly kind: "kernel" | "function" | "declaration";
  /** For a kernel: its name with its template parameters, which identifies an instance. */
  readonly instance?: string;
  /** For a body: the words that it uses are added here. */
  readonly words?: Set<string>;
}

/** White space and line markers of a token that is left out. */
export function linesOf(before: string): string {
  return before.includes("\n") ? before : "";
}

/** What may stand before the operand of a cast. */
const prefixes = new Set(["*", "&", "-", "+", "~", "!", "++", "--"]);
const statementStarts = new Set(["{", "}", ";", ""]);

/** Translates the tokens of a range, in order. One instance translates one declaration. */
export class BodyTranslator {
  private out = "";
  private depth = 0;
  private variables = 0;
  /** The closing `>` of a type's arguments, with where the type begins. */
  private readonly typeClosers = new Map<number, number>();

  constructor(
    private readonly scope: Scope,
    private readonly place: Place,
  ) {}

  /** The C++ of `[begin, end)`. */
  translate(begin: number, end: number): string {
    const start = this.out.length;
    for (let i = begin; i < end; ) i = this.step(i, begin, end);
    const text = this.out.slice(start);
    this.out = this.out.slice(0, start);
    return text;
  }

  private emit(i: number, text = this.scope.text(i)): number {
    this.out += this.scope.tokens[i]!.before + text;
    return i + 1;
  }

  private step(i: number, begin: number, end: number): number {
    const { scope } = this;
    const token = scope.tokens[i]!;
    if (token.kind === "number") return this.emit(i, this.number(i));
    if (token.kind === "string") return this.emit(i);
    if (token.kind === "word") return this.word(i, begin, end);
    if (isAttribute(scope.tokens, i) && scope.dialect === "any") return this.skipAttribute(i);
    if (isAttribute(scope.tokens, i))
      scope.refuse(i, `the attribute ${textOf(scope.tokens, i, closing(scope.tokens, i) + 1)}`);
    if (token.text === "{") this.depth++;
    if (token.text === "}") this.depth--;
    if (token.text === "[") this.refuseLambda(i);
    if (token.text === "*" || token.text === "&" || token.text === "&&") this.checkPointer(i);
    if (token.text === "(") return this.parenthesis(i);
    return this.emit(i);
  }

  /** Attributes that third-party helpers carry say nothing that matters here. */
  private skipAttribute(i: number): number {
    const end = closing(this.scope.tokens, i) + 1;
    for (let k = i; k < end; k++) this.out += linesOf(this.scope.tokens[k]!.before);
    return end;
  }

  private number(i: number): string {
    const text = this.scope.text(i);
    const hexadecimal = /^0[xX]/.test(text);
    const floating = hexadecimal ? /[.pP]/.test(text) : /[.eE]/.test(text) || /[fFhH]$/.test(text);
    if (!floating) return text;
    if (/[hH]$/.test(text)) return `${text.slice(0, -1)}f16`;
    if (/[fF]$/.test(text)) return text;
    if (this.scope.dialect === "any") return `${text}f`;
    return this.scope.refuse(i, `the number ${text} is a double without a suffix; write ${text}f or ${text}h`);
  }

  private refuseLambda(i: number): void {
    const before = this.scope.tokens[i - 1];
    if (this.scope.dialect === "any") return;
    if (before && ["=", "(", ",", "return", "{", ";", "}"].includes(before.text))
      this.scope.refuse(i, "lambdas are not in Metal 3.0");
  }

  /** Refuses a word that kernels of ours may not use. */
  checkWord(i: number): void {
    const { scope } = this;
    const word = scope.text(i);
    this.place.words?.add(word);
    if (scope.dialect === "any") return;
    const reason = refusedWords.get(word) ?? refusedPatterns.find(([pattern]) => pattern.test(word))?.[1];
    if (reason) scope.refuse(i, `${word}: ${reason}`);
    if (word === "long" && scope.text(i + 1) === "long")
      scope.refuse(i, "long long: Metal has no such type; write long");
    if (
      this.place.kind !== "declaration" &&
      (word === "static" || word === "struct" || word === "class" || word === "enum")
    ) {
      scope.refuse(i, `${word} inside a function`);
    }
  }

  private word(i: number, begin: number, end: number): number {
    const { scope } = this;
    this.checkWord(i);
    const word = scope.text(i);
    if (addressSpaces.has(word)) return this.addressSpace(i, begin);
    if (word === "using" || word === "typedef") this.declareAlias(i, end);
    if (word === "is_function_constant_defined") return this.constantDefined(i);
    if (word === "static_cast" && scope.text(i + 1) === "<") return this.staticCast(i);
    if (word === "sizeof" || word === "alignof" || word === "decltype") return this.unevaluated(i);
    if (scope.typeTemplates.has(word) && scope.text(i + 1) === "<") return this.templateType(i);
    const constructs = scope.text(i + 1) === "(" && scope.text(i - 1) !== "operator" && !this.isDeclarator(i + 1);
    if (scope.convertible.has(word) && constructs) {
      return this.emit(i, `metal::make<${word}>`);
    }
    return this.emit(i);
  }

  /** `sizeof (T)` and its kin: what follows in parentheses is no cast. */
  private unevaluated(i: number): number {
    const next = this.emit(i);
    return this.scope.text(next) === "(" ? this.emit(next) : next;
  }

  private templateType(i: number): number {
    const { scope } = this;
    const close = closingAngle(scope.tokens, i + 1);
    if (
      scope.dialect === "ours" &&
      /^vec<(?:long|ulong|u?int64_t|size_t), ?[34]>$/.test(textOf(scope.tokens, i, close + 1))
    ) {
      scope.refuse(i, `${textOf(scope.tokens, i, close + 1)}: ${refusedWords.get("ulong4")}`);
    }
    this.typeClosers.set(close, i);
    const constructs =
      scope.typeAt(i)?.kind === "convertible" && scope.text(close + 1) === "(" && !this.isDeclarator(close + 1);
    const inner = this.translate(i + 1, close + 1);
    const text = scope.text(i) + inner;
    this.out += scope.tokens[i]!.before + (constructs ? `metal::make<${text}>` : text);
    return close + 1;
  }

  /** Whether `(` after a type opens a declarator, as in `thread T (&rows)[4]`, and not the operand of a conversion. */
  private isDeclarator(open: number): boolean {
    const { scope } = this;
    const mark = scope.text(open + 1);
    const isMark = mark === "&" || (mark === "*" && this.place.kind === "declaration");
    return isMark && scope.text(closing(scope.tokens, open) + 1) === "[";
  }

  private staticCast(i: number): number {
    const { scope } = this;
    const close = closingAngle(scope.tokens, i + 1);
    if (scope.typeAt(i + 2)?.pointer) {
      this.out += `${scope.tokens[i]!.before}static_cast${this.translate(i + 1, close + 1)}`;
    } else {
      this.out += `${scope.tokens[i]!.before}metal::make${this.translate(i + 1, close + 1)}`;
    }
    return close + 1;
  }

  /** `(T)x` becomes `metal::make<T>(x)`, which converts as Metal does; the lint checks the casts of pointers too. */
  private parenthesis(i: number): number {
    const { scope } = this;
    const type = this.castAt(i);
    const isPointer = type?.pointer && scope.target === "lint";
    if (!type || !(isPointer || (type.kind === "convertible" && !type.pointer))) return this.emit(i);
    const end = this.operandEnd(type.end + 1);
    const before = scope.tokens[i]!.before;
    if (isPointer) {
      const target = this.translate(i + 1, type.end).trim();
      this.out += `${before}metal::pointer_cast<${target}>(${this.translate(type.end + 1, end)})`;
    } else {
      for (let k = i + 1; k < type.end; k++) this.place.words?.add(scope.text(k));
      this.out += `${before}metal::make<${this.translate(...type.base).trim()}>(${this.translate(type.end + 1, end)})`;
    }
    return end;
  }

  /** The type in `(T)` at `i`, if that is a cast: a type alone in parentheses, with an operand behind. */
  private castAt(i: number): TypeInfo | undefined {
    const { scope } = this;
    const type = scope.typeAt(i + 1);
    if (!type || scope.text(type.end) !== ")") return undefined;
    const next = scope.tokens[type.end + 1]!;
    return next.kind !== "symbol" || next.text === "(" || prefixes.has(next.text) ? type : undefined;
  }

  /** Where the operand of a cast ends: prefixes and further casts, a name or parentheses, and what is applied to it. */
  private operandEnd(i: number): number {
    const { scope } = this;
    while (prefixes.has(scope.text(i))) i++;
    if (scope.text(i) === "(") {
      const type = this.castAt(i);
      if (type) return this.operandEnd(type.end + 1);
      i = closing(scope.tokens, i) + 1;
    } else {
      i++;
      while (scope.text(i) === "::") i += 2;
      if (scope.opensTemplate(i) || (scope.text(i) === "<" && scope.typeTemplates.has(scope.text(i - 1)))) {
        i = closingAngle(scope.tokens, i) + 1;
      }
    }
    for (;;) {
      const text = scope.text(i);
      if (text === "(" || text === "[") i = closing(scope.tokens, i) + 1;
      else if (text === "." || text === "->") i += 2;
      else if (text === "++" || text === "--") i++;
      else return i;
    }
  }

  private constantDefined(i: number): number {
    const { scope } = this;
    const name = scope.text(i + 2);
    if (scope.text(i + 1) !== "(" || !scope.functionConstants.has(name) || scope.text(i + 3) !== ")") {
      scope.refuse(i, "is_function_constant_defined takes the name of a function constant");
    }
    scope.optionalConstants.add(name);
    this.out += `${scope.tokens[i]!.before}sim_defined_${name}`;
    return i + 4;
  }

  private declareAlias(i: number, end: number): void {
    const { scope } = this;
    if (scope.text(i) === "using" && scope.text(i + 2) === "=") {
      scope.declareType(scope.text(i + 1), true);
    } else if (scope.text(i) === "typedef") {
      let last = i;
      for (let k = i; k < end && scope.text(k) !== ";"; k++) {
        if (scope.text(k) === "{") k = closing(scope.tokens, k);
        else if (scope.tokens[k]!.kind === "word") last = k;
      }
      scope.declareType(scope.text(last), true);
    } else if (scope.text(i + 1) !== "namespace") {
      scope.refuse(i, "this form of using");
    }
  }

  /** An address space: of a pointer or reference, or of a threadgroup variable. */
  private addressSpace(i: number, begin: number): number {
    const { scope } = this;
    const word = scope.text(i);
    if (word === "thread") return this.emit(i);
    let specifiers = i;
    while (
      specifiers > begin &&
      ["const", "device", "threadgroup", "constant", "thread", "constexpr"].includes(scope.text(specifiers - 1))
    ) {
      specifiers--;
    }
    const startsStatement = specifiers === begin || statementStarts.has(scope.text(specifiers - 1));
    const type = this.declaredType(i);
    if (type === "pointer" || this.place.kind === "declaration" || !startsStatement) return this.emit(i);
    if (word !== "threadgroup") {
      scope.refuse(i, `a ${word} variable inside a function; only pointers and references may be ${word} here`);
    }
    return this.threadgroupVariables(i);
  }

  /** Whether the declaration that holds the address space at `i` declares a pointer (or reference) or a value. */
  private declaredType(i: number): "pointer" | "value" {
    const { scope } = this;
    let k = i;
    while (addressSpaces.has(scope.text(k - 1)) || scope.text(k - 1) === "const") k--;
    const after = scope.typeAt(k);
    if (after)
      return after.pointer || (scope.text(after.end) === "(" && this.isDeclarator(after.end)) ? "pointer" : "value";
    return ["*", "&"].includes(scope.text(i + 1)) ? "pointer" : "value"; // the type came before: float device *x
  }

  private threadgroupVariables(i: number): number {
    const { scope, place } = this;
    if (place.kind !== "kernel")
      scope.refuse(i, "a threadgroup variable outside a kernel; pass a pointer to one instead");
    if (this.depth > 1 && scope.dialect === "ours")
      scope.refuse(i, "a threadgroup variable in an inner block; declare it at the kernel's own level");
    const type = scope.typeAt(i + 1);
    if (!type) return scope.refuse(i, `a threadgroup variable of the unknown type ${scope.text(i + 1)}`);
    let semicolon = type.end;
    while (scope.text(semicolon) !== ";") {
      const text = scope.text(semicolon);
      if (text === "=" || text === "{")
        scope.refuse(semicolon, "an initialiser of a threadgroup variable, which Metal ignores or rejects");
      semicolon = text === "[" || text === "(" ? closing(scope.tokens, semicolon) + 1 : semicolon + 1;
    }
    const typeText = this.translate(type.base[0], type.base[1]).trim();
    let text = "";
    for (const [begin, end] of splitAtCommas(scope.tokens, type.end, semicolon, scope.opensTemplate)) {
      const name = scope.text(begin);
      if (scope.tokens[begin]!.kind !== "word" || (end > begin + 1 && scope.text(begin + 1) !== "[")) {
        scope.refuse(begin, `the threadgroup variable ${textOf(scope.tokens, begin, end)}`);
      }
      text += this.threadgroupVariable(name, typeText, this.translate(begin + 1, end).trim());
    }
    let lines = "";
    for (let k = i; k <= semicolon; k++) lines += linesOf(scope.tokens[k]!.before);
    this.out += `${lines || " "}${text}`;
    return semicolon + 1;
  }

  private threadgroupVariable(name: string, type: string, dimensions: string): string {
    if (this.scope.target === "lint") {
      // A reference, for clang constructs no variable of class type in an address space, even with nothing to be done.
      const named = `sim_type_of_${name}`;
      return `typedef ${type} ${named}${dimensions}; threadgroup ${named} &${name} = *(threadgroup ${named} *)0;`;
    }
    const id = this.variables++;
    if (this.scope.target === "cuda") return sharedVariable(id, name, type, dimensions);
    return (
      `struct sim_name_${id} { static constexpr const char *text() { return "${name}"; } }; ` +
      `typedef ${type} sim_type_${id}${dimensions}; ` +
      `auto &${name} = sim::threadgroup_variable<&${this.place.instance}, sim_name_${id}, sim_type_${id}>::get();`
    );
  }

  /** Every pointer and reference names the address space that it points to. */
  private checkPointer(i: number): void {
    const { scope } = this;
    if (!this.endsType(i - 1)) return;
    if (scope.text(i) === "&&") {
      if (scope.dialect === "ours") scope.refuse(i, "an rvalue reference");
      return;
    }
    if (scope.dialect === "any") return;
    let k = i - 1;
    while (addressSpaces.has(scope.text(k)) || scope.text(k) === "const") k--;
    if (scope.text(i + 1) === "*" || scope.text(k) === "*") {
      scope.refuse(i, "a pointer to a pointer; the simulator follows one level");
    }
    k = i - 1;
    while (k >= 0) {
      if (addressSpaces.has(scope.text(k))) return;
      if (this.typeClosers.has(k)) k = this.typeClosers.get(k)! - 1;
      else if (
        scope.types.has(scope.text(k)) ||
        ["const", "constexpr", "typename", "::", "metal", "static", "inline"].includes(scope.text(k))
      )
        k--;
      else break;
    }
    const kind = scope.text(i) === "*" ? "pointer" : "reference";
    scope.refuse(
      i,
      `a ${kind} without an address space: ${textOf(scope.tokens, k + 1, i + 1)}; ` +
        "add device, constant, threadgroup or thread",
    );
  }

  private endsType(i: number): boolean {
    const text = this.scope.text(i);
    return this.scope.types.has(text) || this.typeClosers.has(i) || text === "const" || addressSpaces.has(text);
  }
}
