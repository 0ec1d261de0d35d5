// Answers of a form that is given: a JSON schema or a grammar says which tokens may come next. The work is done by
// `@mlc-ai/web-xgrammar` (XGrammar, Dong et al. 2024), which is loaded when a form is first asked for.
import type { CompiledGrammar, GrammarCompiler, GrammarMatcher, TokenizerInfo } from "@mlc-ai/web-xgrammar";
import { BnbError } from "../error.ts";
import type { Tokenizer } from "./tokenizer.ts";

/**
 * The form that a text must have: any JSON, JSON of a schema, or what a grammar allows (EBNF in GBNF's notation, from
 * `root` on).
 */
export type TextFormat =
  | { readonly type: "json" }
  | { readonly type: "schema"; readonly schema: object }
  | { readonly type: "grammar"; readonly grammar: string }
  /** @internal XGrammar's structural tags, which tool calls are made of. */
  | { readonly type: "tags"; readonly tags: object };

/** Spaces and line breaks in a row, between the parts of JSON: a model that is lost would write nothing else. */
const whitespaceMost = 16;

/** Forms for one model's vocabulary. Making one takes a while; {@link constraintsOf} keeps it. */
export class Constraints {
  readonly #compiler: GrammarCompiler;
  readonly #stop: number[];
  readonly #library: typeof import("@mlc-ai/web-xgrammar");

  private constructor(library: typeof import("@mlc-ai/web-xgrammar"), compiler: GrammarCompiler, stop: number[]) {
    this.#library = library;
    this.#compiler = compiler;
    this.#stop = stop;
  }

  static async load(tokenizer: Tokenizer, vocabulary: number, stop: readonly number[]): Promise<Constraints> {
    const library = await loadLibrary();
    // Ids that the tokenizer has no spelling for pad the logits, and are never written.
    const spelled = Array.from({ length: vocabulary }, (_, id) => tokenizer.tokenOf(id) ?? "");
    const info: TokenizerInfo = await library.TokenizerInfo.createTokenizerInfo(
      ...[spelled, spellingOf(tokenizer), false, vocabulary, [...stop]],
    );
    return new Constraints(library, await library.GrammarCompiler.createGrammarCompiler(info), [...stop]);
  }

  /**
   * A text of this form, from its beginning.
   *
   * @throws BnbError if the schema or the grammar can't be understood
   */
  async start(format: TextFormat): Promise<Constraint> {
    let grammar: CompiledGrammar;
    try {
      grammar = await this.#compile(format);
    } catch (cause) {
      if (cause instanceof BnbError) throw cause;
      const reason = lastWords.replace(/^.*?\.cc:\d+: (Check failed: \(.*?\) is false: )?/, "").trim();
      throw new BnbError(`generate: format can't be understood as a ${format.type}: ${reason}.`, "invalid", { cause });
    }
    return new Constraint(await this.#library.GrammarMatcher.createGrammarMatcher(grammar, this.#stop));
  }

  #compile(format: TextFormat): Promise<CompiledGrammar> {
    switch (format.type) {
      case "json":
        return this.#compiler.compileBuiltinJSONGrammar();
      case "schema":
        return this.#compiler.compileJSONSchema(
          JSON.stringify(format.schema),
          true,
          undefined,
          undefined,
          true,
          whitespaceMost,
        );
      case "grammar":
        return this.#compiler.compileGrammar(format.grammar);
      case "tags":
        return this.#compiler.compileStructuralTag(format.tags as never);
      default:
        throw new BnbError(
          `generate: format.type is ${JSON.stringify((format as { type: unknown }).type)}, expected "json", "schema" or "grammar".`,
        );
    }
  }
}

let lastWords = "";
let loading: Promise<typeof import("@mlc-ai/web-xgrammar")> | undefined;

/**
 * The library prints why it refuses something, and throws nothing but that it did. It takes `console.error` for that
 * once, when its first function is called: what it is given here keeps the reason for the error, and off a server's
 * log.
 */
function loadLibrary(): Promise<typeof import("@mlc-ai/web-xgrammar")> {
  loading ??= (async () => {
    const library = await import("@mlc-ai/web-xgrammar");
    const { error } = console;
    console.error = (line: unknown) => {
      if (!String(line).startsWith("Aborted")) lastWords = String(line);
    };
    try {
      (await library.Grammar.builtinJSONGrammar()).dispose();
    } finally {
      console.error = error;
    }
    return library;
  })();
  return loading;
}

/** How the vocabulary spells bytes: as GPT-2 does, as SentencePiece does, or as they are. */
function spellingOf(tokenizer: Tokenizer): "byte_level" | "byte_fallback" | "raw" {
  if (tokenizer.idOf("<0x0A>") !== undefined) return "byte_fallback";
  return tokenizer.idOf("Ġ") !== undefined || tokenizer.idOf("Ċ") !== undefined ? "byte_level" : "raw";
}

const kept = new WeakMap<Tokenizer, Promise<Constraints>>();

/** The {@link Constraints} of a model's vocabulary. */
export function constraintsOf(tokenizer: Tokenizer, vocabulary: number, stop: readonly number[]): Promise<Constraints> {
  const made = kept.get(tokenizer) ?? Constraints.load(tokenizer, vocabulary, stop);
  kept.set(tokenizer, made);
  return made;
}

/** One text on its way through a form. */
export class Constraint implements Disposable {
  readonly #matcher: GrammarMatcher;
  #accepted = 0;
  #allowed: Int32Array = new Int32Array(0);

  constructor(matcher: GrammarMatcher) {
    this.#matcher = matcher;
  }

  /** Finds out what may follow the written ids. Called before {@link mask}. */
  async follow(written: readonly number[]): Promise<void> {
    for (; this.#accepted < written.length; this.#accepted++) this.#matcher.acceptToken(written[this.#accepted]!);
    if (!this.#matcher.isTerminated()) this.#allowed = await this.#matcher.getNextTokenBitmask();
  }

  /** Takes their chance from the logits of what may not come next. */
  mask(logits: Float32Array): void {
    for (let id = 0; id < logits.length; id++)
      if (!(this.#allowed[id >> 5]! & (1 << (id & 31)))) logits[id] = Number.NEGATIVE_INFINITY;
  }

  [Symbol.dispose](): void {
    this.#matcher.dispose();
  }
}
