// The tokenizer of a GGUF file: tokenizer.json and its companions, rebuilt from the file's metadata.
import { tokenIds } from "./gguf_config.ts";
import { GgufList, type Metadata } from "./gguf_header.ts";
import { damaged } from "./header.ts";
import { dumps, type PyValue } from "./pyjson.ts";

/** GGUF's kinds of tokens. */
const kinds = { unknown: 2, control: 3, userDefined: 4, unused: 5 };

/** How SentencePiece writes a space. */
const space = "\u2581";

/** What the metadata says of a vocabulary. */
interface Vocabulary {
  readonly path: string;
  readonly metadata: Metadata;
  readonly tokens: readonly string[];
  readonly types: readonly number[];
}

type Json = Record<string, PyValue>;

/** Files by name, and what a person should know. */
export interface TokenizerFiles {
  readonly files: ReadonlyMap<string, string>;
  readonly notes: readonly string[];
}

/** The files of a tokenizer; without tokenizer.json where the file's kind is not known. */
export function tokenizerFiles(path: string, metadata: Metadata): TokenizerFiles {
  const tokens = metadata.get("tokenizer.ggml.tokens");
  if (!(tokens instanceof GgufList)) return { files: new Map(), notes: [`The file has no tokenizer: ${copyIt}`] };
  const types = metadata.get("tokenizer.ggml.token_type");
  const vocabulary: Vocabulary = {
    path,
    metadata,
    tokens: tokens.read().map(String),
    types: types instanceof GgufList ? types.read().map(Number) : [],
  };
  const files = new Map([["generation_config.json", print(generationConfig(path, metadata))]]);
  const model = String(metadata.get("tokenizer.ggml.model"));
  const build = new Map([
    ["gpt2", byteLevel],
    ["llama", sentencePiece],
    ["bert", wordPiece],
  ]).get(model);
  const made = build?.(vocabulary);
  if (typeof made !== "object") {
    const what = made ?? `a tokenizer of the kind ${model}`;
    return { files, notes: [`The file has ${what}, which is not rebuilt: ${copyIt}`] };
  }
  files.set("tokenizer.json", `${dumps(made, { indent: 2 })}\n`);
  files.set("tokenizer_config.json", print(tokenizerConfig(vocabulary)));
  return { files, notes: [] };
}

const copyIt = "copy tokenizer.json and tokenizer_config.json from the original model.";

const print = (value: PyValue) => `${dumps(value, { indent: 2, sortKeys: true })}\n`;

// ── Byte-level BPE ──────────────────────────────────────────────────────────────────────────────────────────────────

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const upper = "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}";
const lower = "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}";
const rest = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const words = (digits: string) =>
  `${contractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${rest}`;
const cased = (digits: string, behind: string) =>
  `[^\\r\\n\\p{L}\\p{N}]?[${upper}]*[${lower}]+${behind}|[^\\r\\n\\p{L}\\p{N}]?[${upper}]+[${lower}]*${behind}|` +
  `${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${rest}`;

const llama3 = words("\\p{N}{1,3}");
const qwen2 = words("\\p{N}");
const gpt4o = cased("\\p{N}{1,3}", `${contractions}?`);
const tekken = cased("\\p{N}", "");

/**
 * How text is split before merging, by llama.cpp's names: a pattern; GPT-2's own; or that after each digit by itself.
 */
const splits: Readonly<Record<string, string | "gpt2" | "digits">> = {
  ...{ "llama-bpe": llama3, llama3, "llama-v3": llama3, dbrx: llama3, "smaug-bpe": llama3, falcon3: llama3 },
  ...{ qwen2, "deepseek-r1-qwen": qwen2, megrez: qwen2 },
  ...{ "gpt-4o": gpt4o, llama4: gpt4o, tekken },
  ...{
    default: "gpt2",
    "gpt-2": "gpt2",
    "phi-2": "gpt2",
    olmo: "gpt2",
    jais: "gpt2",
    mpt: "gpt2",
    "roberta-bpe": "gpt2",
  },
  ...{ smollm: "digits", starcoder: "digits", refact: "digits", "command-r": "digits", codeshell: "digits" },
};

/** Kinds whose vocabulary is looked up whole before anything is merged. */
const wholeFirst = [llama3, tekken];

const byteLevelSplit = (useRegex: boolean): Json => ({
  type: "ByteLevel",
  add_prefix_space: false,
  trim_offsets: true,
  use_regex: useRegex,
});

/** @returns what the file has, where its splitting is not known */
function byteLevel(vocabulary: Vocabulary): Json | string {
  const { metadata } = vocabulary;
  const kind = String(metadata.get("tokenizer.ggml.pre") ?? "default");
  const split = Object.hasOwn(splits, kind) ? splits[kind]! : undefined;
  if (split === undefined) return `a tokenizer that splits text as ${kind}`;
  const merges = textsOf(vocabulary, "tokenizer.ggml.merges").map((merge) => merge.split(" ", 2));
  const first: Json =
    split === "digits"
      ? { type: "Digits", individual_digits: true }
      : { type: "Split", pattern: { Regex: split }, behavior: "Isolated", invert: false };
  const pre = [...(split === "gpt2" ? [] : [first]), byteLevelSplit(split === "gpt2" || split === "digits")];
  return {
    ...head(vocabulary),
    normalizer: split === qwen2 ? { type: "NFC" } : null,
    pre_tokenizer: { type: "Sequence", pretokenizers: pre },
    post_processor: template(vocabulary, split === llama3) ?? { ...byteLevelSplit(true), trim_offsets: false },
    decoder: { ...byteLevelSplit(true), add_prefix_space: true },
    model: bpe(vocabulary, merges, { ignore_merges: wholeFirst.includes(split) }),
  };
}

// ── SentencePiece's BPE ─────────────────────────────────────────────────────────────────────────────────────────────

function sentencePiece(vocabulary: Vocabulary): Json {
  const { metadata, types } = vocabulary;
  const isGemma = /^gemma/.test(String(metadata.get("general.architecture")));
  // Gemma's runs of spaces are stored as such, and are looked up as SentencePiece writes them.
  const tokens = vocabulary.tokens.map((token) => (/^ {2,}$/.test(token) ? space.repeat(token.length) : token));
  const spelled = { ...vocabulary, tokens };
  const prefixed = !isGemma && metadata.get("tokenizer.ggml.add_space_prefix") !== false;
  const scores = metadata.get("tokenizer.ggml.scores");
  // Gemma's scores don't follow the order of its merges; its tokens do, after those that its makers chose.
  const order = (_: string, index: number) => (types[index] === kinds.userDefined ? 0 : -index);
  const ranks = !isGemma && scores instanceof GgufList ? scores.read().map(Number) : tokens.map(order);
  const replace: Json = { type: "Replace", pattern: { String: " " }, content: space };
  const strip: Json[] = prefixed ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [];
  const unknown = tokens[Number(metadata.get("tokenizer.ggml.unknown_token_id") ?? types.indexOf(kinds.unknown))];
  return {
    ...head(spelled),
    normalizer: prefixed ? { type: "Sequence", normalizers: [{ type: "Prepend", prepend: space }, replace] } : replace,
    pre_tokenizer: isGemma
      ? { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false }
      : null,
    post_processor: template(spelled, true) ?? null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: space }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...strip,
      ],
    },
    model: bpe(spelled, mergesOf(tokens, ranks), {
      unk_token: unknown ?? null,
      byte_fallback: true,
      fuse_unk: true,
      ignore_merges: false,
    }),
  };
}

/** The pairs of tokens that make up another, the pair of the best one first, as transformers finds them. */
function mergesOf(tokens: readonly string[], ranks: readonly number[]): string[][] {
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const found: { left: string; right: string; rank: number; sizes: [number, number] }[] = [];
  for (const [id, token] of tokens.entries()) {
    if (ids.get(token) !== id) continue;
    const characters = [...token];
    const pairs: typeof found = [];
    for (let at = 1; at < characters.length; at++) {
      const left = characters.slice(0, at).join("");
      const right = token.slice(left.length);
      if (ids.has(left) && ids.has(right))
        pairs.push({ left, right, rank: ranks[id] ?? 0, sizes: [at, characters.length - at] });
    }
    pairs.sort((a, b) => ids.get(a.left)! - ids.get(b.left)! || ids.get(a.right)! - ids.get(b.right)!);
    found.push(...pairs);
  }
  found.sort((a, b) => b.rank - a.rank || b.sizes[0] - a.sizes[0] || b.sizes[1] - a.sizes[1]);
  return found.map(({ left, right }) => [left, right]);
}

// ── BERT's WordPiece ────────────────────────────────────────────────────────────────────────────────────────────────

function wordPiece(vocabulary: Vocabulary): Json {
  // GGUF marks the pieces that begin a word, BERT those that go on.
  const spelled = (token: string) => {
    if (/^\[.*\]$/.test(token)) return token;
    return token.startsWith(space) ? token.slice(space.length) : `##${token}`;
  };
  const tokens = vocabulary.tokens.map(spelled);
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const [cls, sep] = ["[CLS]", "[SEP]"];
  const special = (id: string, typeId: number): Json => ({ SpecialToken: { id, type_id: typeId } });
  const sequence = (id: string, typeId: number): Json => ({ Sequence: { id, type_id: typeId } });
  const named = (token: string): Json => ({ id: token, ids: [ids.get(token) ?? 0], tokens: [token] });
  const bracketed = tokens.filter((token) => ["[PAD]", "[UNK]", cls, sep, "[MASK]"].includes(token));
  return {
    ...head({ ...vocabulary, tokens, types: [] }),
    added_tokens: bracketed.map((token) => added(ids.get(token)!, token, true)),
    normalizer: {
      type: "BertNormalizer",
      clean_text: true,
      handle_chinese_chars: true,
      strip_accents: null,
      lowercase: true,
    },
    pre_tokenizer: { type: "BertPreTokenizer" },
    post_processor: {
      type: "TemplateProcessing",
      single: [special(cls, 0), sequence("A", 0), special(sep, 0)],
      pair: [special(cls, 0), sequence("A", 0), special(sep, 0), sequence("B", 1), special(sep, 1)],
      special_tokens: { [cls]: named(cls), [sep]: named(sep) },
    },
    decoder: { type: "WordPiece", prefix: "##", cleanup: true },
    model: {
      type: "WordPiece",
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
      vocab: Object.fromEntries(ids),
    },
  };
}

// ── What they share ─────────────────────────────────────────────────────────────────────────────────────────────────

function textsOf({ path, metadata }: Vocabulary, key: string): string[] {
  const list = metadata.get(key);
  if (list instanceof GgufList) return list.read().map(String);
  throw damaged(path, `its metadata ${key} is ${String(list)}, expected a list`);
}

function bpe({ tokens, types }: Vocabulary, merges: string[][], options: Json): Json {
  // What fills a vocabulary up to the embedding's rows is no token of the tokenizer.
  const isFilling = (token: string, id: number) => types[id] === kinds.unused && /^\[PAD\d+\]$/.test(token);
  const vocab = new Map<string, number>();
  for (const [id, token] of tokens.entries()) if (!isFilling(token, id) && !vocab.has(token)) vocab.set(token, id);
  return {
    type: "BPE",
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ...options,
    vocab: Object.fromEntries(vocab),
    merges,
  };
}

const added = (id: number, content: string, special: boolean): Json => ({
  ...{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special },
});

/** The frame of every tokenizer.json, and the tokens that are found in a text before all else. */
function head({ path, tokens, types, metadata }: Vocabulary): Json {
  const named = Object.values(tokenIds(path, metadata));
  const isSpecial = (id: number) =>
    types.length > 0 ? types[id] === kinds.control || types[id] === kinds.unknown : named.includes(id);
  const found = tokens.flatMap((token, id) =>
    isSpecial(id) || types[id] === kinds.userDefined ? [added(id, token, isSpecial(id))] : [],
  );
  return { version: "1.0", truncation: null, padding: null, added_tokens: found };
}

/** What is put around a text, or undefined where nothing is. */
function template({ path, tokens, metadata }: Vocabulary, addsFirst: boolean): Json | undefined {
  const { bos_token_id: bos, eos_token_id: eos } = tokenIds(path, metadata);
  const says = (key: string) => metadata.get(`tokenizer.ggml.${key}`);
  const first = (says("add_bos_token") ?? addsFirst) === true && bos !== undefined ? tokens[bos] : undefined;
  const last = says("add_eos_token") === true && eos !== undefined ? tokens[eos] : undefined;
  if (first === undefined && last === undefined) return undefined;
  const around = (id: "A" | "B", type: number): Json[] => {
    const special = (token: string): Json => ({ SpecialToken: { id: token, type_id: type } });
    return [
      ...(first === undefined ? [] : [special(first)]),
      { Sequence: { id, type_id: type } },
      ...(last === undefined ? [] : [special(last)]),
    ];
  };
  const used = [first, last].filter((token) => token !== undefined);
  return {
    type: "TemplateProcessing",
    single: around("A", 0),
    pair: [...around("A", 0), ...around("B", 1)],
    special_tokens: Object.fromEntries(
      used.map((token) => [token, { id: token, ids: [tokens.indexOf(token)], tokens: [token] }]),
    ),
  };
}

function tokenizerConfig({ path, tokens, metadata }: Vocabulary): Json {
  const ids = tokenIds(path, metadata);
  const names = {
    bos_token: "bos_token_id",
    eos_token: "eos_token_id",
    unk_token: "unk_token_id",
    pad_token: "pad_token_id",
  };
  const special = Object.entries(names).flatMap(([name, key]) => {
    const token = ids[key] === undefined ? undefined : tokens[ids[key]];
    return token === undefined ? [] : [[name, token] as const];
  });
  const length = metadata.get(`${String(metadata.get("general.architecture"))}.context_length`);
  const chat = metadata.get("tokenizer.chat_template");
  return {
    ...Object.fromEntries(special),
    ...(typeof chat === "string" && { chat_template: chat }),
    clean_up_tokenization_spaces: false,
    ...(typeof length === "number" && Number.isSafeInteger(length) && { model_max_length: length }),
    tokenizer_class: "PreTrainedTokenizerFast",
  };
}

/** Where generation begins and ends: the end of a text, and that of a turn where it is another token. */
function generationConfig(path: string, metadata: Metadata): Json {
  const { unk_token_id: _, ...ids } = tokenIds(path, metadata);
  const ends = ["eot", "eom"].flatMap((name) => {
    const id = metadata.get(`tokenizer.ggml.${name}_token_id`);
    return typeof id === "number" && Number.isSafeInteger(id) ? [id] : [];
  });
  const all = [...new Set([...(ids.eos_token_id === undefined ? [] : [ids.eos_token_id]), ...ends])];
  return { ...ids, ...(all.length > 1 && { eos_token_id: all }) };
}
