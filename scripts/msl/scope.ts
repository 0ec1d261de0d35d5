// Owns what the translator learns while it reads a source: declared types, functions, constants and kernels.

import { metalNames } from "./apple.ts";
import { closingAngle, type Token, TranslateError } from "./tokens.ts";
import {
  addressSpaces,
  otherTemplates,
  otherTypes,
  scalarTypes,
  thirdPartyTypes,
  typeTemplates,
  vectorTypes,
} from "./vocabulary.ts";

/** `"ours"` refuses what the project forbids itself; `"any"` takes what third-party kernels do. */
export type Dialect = "ours" | "any";

/**
 * `"run"` makes C++ for the simulator's runtime; `"lint"` makes C++14 with real address spaces, which is only
 * type-checked; `"cuda"` makes CUDA C++ for zig's clang.
 */
export type Target = "run" | "lint" | "cuda";

/** A kernel's buffer parameter. */
export interface BufferInfo {
  readonly index: number;
  readonly name: string;
  readonly space: "device" | "constant";
  /** Declared `constant`, or `device` and `const`. */
  readonly readOnly: boolean;
  /** Declared as a reference to one value, and not as a pointer. */
  readonly reference: boolean;
}

/** A function constant, `[[function_constant(index)]]`. */
export interface ConstantInfo {
  readonly index: number;
  readonly name: string;
  readonly type: string;
  readonly bytes: number;
}

/** A kernel as the host sees it. */
export interface KernelInfo {
  /** The host name. */
  readonly name: string;
  readonly buffers: readonly BufferInfo[];
  /** Threadgroup arguments, whose length the host sets. */
  readonly threadgroup: readonly { readonly index: number; readonly name: string }[];
  /** Function constants that the kernel (or what it calls) reads; the host must set those that are required. */
  readonly constants: readonly (ConstantInfo & { readonly required: boolean })[];
  /** What max_total_threads_per_threadgroup says, as it stands in the source; undefined where it says nothing. */
  readonly maxThreads: string | undefined;
}

/** A kernel parameter with the way in which it is bound. */
export type Parameter =
  | ({ readonly kind: "buffer" } & BufferInfo)
  | { readonly kind: "threadgroup"; readonly name: string; readonly index: number }
  | { readonly kind: "value"; readonly name: string; readonly value: string };

/** A kernel function or function template. */
export interface KernelFunction {
  readonly name: string;
  readonly hostName: string | undefined;
  readonly templateNames: readonly string[] | undefined;
  readonly parameters: readonly Parameter[];
  readonly maxThreads: string | undefined;
  readonly at: Token;
}

/** A type as it stands in the source: where it ends, and what kind it is. */
export interface TypeInfo {
  readonly end: number;
  readonly kind: "scalar" | "convertible" | "other";
  readonly pointer: boolean;
  readonly spaced: boolean;
  /** The base type, without qualifiers, pointers and references. */
  readonly base: readonly [begin: number, end: number];
}

export class Scope {
  /** Types whose `T(...)` and `(T)x` C++ would not convert as Metal does: vectors, aliases, template parameters. */
  readonly convertible = new Set(vectorTypes.keys());
  readonly types = new Set([...scalarTypes, ...otherTypes, ...vectorTypes.keys()]);
  readonly typeTemplates = new Set(typeTemplates);
  readonly templates = new Set([...otherTemplates, ...typeTemplates]);
  /** The words of each function's body and each derived constant's initialiser. */
  readonly uses = new Map<string, Set<string>>();
  /** Functions that have one plain definition: only their recursion can be told from overloading. */
  readonly plainFunctions = new Map<string, { count: number; at: Token }>();
  readonly functionConstants = new Map<string, ConstantInfo>();
  /** Names that some kernel asks about with is_function_constant_defined. */
  readonly optionalConstants = new Set<string>();
  /** Globals computed from function constants, in order, with their C++ initialisers. */
  readonly derived = new Map<string, string>();
  readonly kernels = new Map<string, KernelFunction>();
  readonly instances: { hostName: string; kernel: string; templateArguments: string; at: Token }[] = [];

  constructor(
    readonly tokens: readonly Token[],
    readonly dialect: Dialect,
    readonly target: Target,
  ) {
    if (dialect === "any") for (const type of thirdPartyTypes) this.declareType(type, true);
  }

  /** Throws a refusal at a token. */
  refuse(i: number, message: string): never {
    const token = this.tokens[i]!;
    throw new TranslateError(message, token.file, token.line);
  }

  text(i: number): string {
    return this.tokens[i]?.text ?? "";
  }

  /** Whether the `<` at `i` opens template arguments. */
  readonly opensTemplate = (i: number): boolean =>
    this.text(i) === "<" && (this.templates.has(this.text(i - 1)) || this.text(i - 1) === "template");

  /** Refuses a global of ours under a name of Metal's, which `using namespace metal` would make ambiguous. */
  checkGlobal(i: number): void {
    const name = this.text(i);
    if (this.dialect === "ours" && metalNames.has(name))
      this.refuse(i, `${name} is a name of Metal's own, among which Apple's compiler could not choose; take another`);
  }

  declareType(name: string, convertible: boolean): void {
    this.types.add(name);
    if (convertible) this.convertible.add(name);
  }

  /** Reads a type at `i`, with its qualifiers and pointers; undefined if none stands there. */
  typeAt(i: number): TypeInfo | undefined {
    let spaced = false;
    const qualifiers = () => {
      while (this.text(i) === "const" || this.text(i) === "typename" || addressSpaces.has(this.text(i))) {
        spaced ||= addressSpaces.has(this.text(i));
        i++;
      }
    };
    qualifiers();
    const begin = i;
    if (this.text(i) === "metal" && this.text(i + 1) === "::") i += 2;
    const word = this.text(i);
    let kind: TypeInfo["kind"] = "other";
    if (this.typeTemplates.has(word) && this.text(i + 1) === "<") {
      if (word === "vec" || word.startsWith("conditional") || word.startsWith("enable_if")) kind = "convertible";
      i = closingAngle(this.tokens, i + 1) + 1;
    } else if (this.types.has(word)) {
      kind = scalarTypes.has(word) ? "scalar" : this.convertible.has(word) ? "convertible" : "other";
      i++;
      while (scalarTypes.has(word) && scalarTypes.has(this.text(i))) i++;
    } else {
      return undefined;
    }
    const base: [number, number] = [begin, i];
    qualifiers();
    let pointer = false;
    while (["*", "&"].includes(this.text(i))) {
      pointer = true;
      i++;
      qualifiers();
    }
    return { end: i, kind, pointer, spaced, base };
  }
}
