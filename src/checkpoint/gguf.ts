// GGUF models: one file or the parts of a split one, as tensors under the names that Hugging Face's models have.

import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import type { Tensor } from "../tensor.ts";
import { checkPath, signatures } from "./arguments.ts";
import { type Architecture, architectures } from "./gguf_architectures.ts";
import { architectureOf, configOf, factsOf } from "./gguf_config.ts";
import { type GgufInfo, type Metadata, readGgufHeader } from "./gguf_header.ts";
import { ggufTypeName, ggufTypes } from "./gguf_types.ts";
import { damaged } from "./header.ts";
import type { Config } from "./huggingface.ts";
import { MappedFile, type Placement, unmap } from "./mapped.ts";

/** A tensor of a GGUF file, under its Hugging Face name. */
export interface GgufTensor {
  readonly name: string;
  /** Row-major, as everywhere else; GGUF itself lists the extents from the last to the first. */
  readonly shape: readonly number[];
  /** GGML's number of the type. */
  readonly type: number;
  /** GGML's name of the type, such as `Q4_K`. */
  readonly format: string;
  readonly byteLength: number;
  /**
   * The quantised bytes, rows in Hugging Face's order. A mapped view where the order is the file's; give it to
   * `release`.
   */
  read(): Uint8Array;
  release(bytes: Uint8Array): void;
  /** @internal The dtype of which the file has just these elements, in this order; then `load` gives them. */
  readonly plain?: FloatDType | undefined;
  /** @internal */
  load(to: Placement): Tensor<FloatDType>;
}

/** An open GGUF model. Its tensors are read when they are asked for; `using model = await openGguf(…)` closes it. */
export interface GgufModel extends Disposable {
  readonly path: string;
  readonly config: Config;
  /** What the file says beside config.json: its tokenizer, for one. */
  readonly metadata: Metadata;
  readonly tensors: readonly GgufTensor[];
  /** What a person should know: what the file has that the model will not. */
  readonly notes: readonly string[];
}

/** A tensor that stands in one of the files. */
interface Placed extends GgufInfo {
  readonly file: MappedFile;
}

/** Tables that config.json says in its own way. */
const tables = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/**
 * Opens a GGUF file of a supported architecture; for a split file all parts, whichever was named.
 *
 * @example
 * ```ts
 * using model = await checkpoint.openGguf("./model.gguf");
 * model.config.model_type; // → "llama"
 * model.tensors[0]?.name; // → "model.embed_tokens.weight"
 * ```
 *
 * @throws BnbError naming the architecture, the type or the tensor that cannot be converted, or what is missing or
 * damaged
 */
export async function openGguf(path: string): Promise<GgufModel> {
  checkPath(signatures.openGguf, path, "path");
  const files: MappedFile[] = [];
  const close = () => {
    for (const file of files) file.close();
  };
  try {
    const { metadata, placed } = openParts(path, files);
    const architecture = checkKind(path, metadata);
    const byName = new Map(placed.map((info) => [info.name, info]));
    checkComplete(path, metadata, architecture, byName);
    const heads = architecture.interleaved && headCounts(path, metadata);
    const tensors = placed
      .filter(({ name }) => !tables.includes(name))
      .flatMap((info) => toTensors(info, architecture, heads));
    const vocabulary = byName.get("token_embd.weight")!.shape.at(-1)!;
    const factors = (name: string) => {
      const info = byName.get(name);
      return info && readTable(info);
    };
    const contents = { path, metadata, names: new Set(byName.keys()), vocabulary, factors };
    return { path, ...configOf(architecture, contents), metadata, tensors, [Symbol.dispose]: close };
  } catch (error) {
    close();
    throw error;
  }
}

// ── Which files ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** Opens every part of a model; all that is opened is in `files`. The first part has the metadata. */
function openParts(path: string, files: MappedFile[]): { metadata: Metadata; placed: Placed[] } {
  const open = (part: string) => {
    const file = new MappedFile(part);
    files.push(file);
    const { metadata, tensors } = readGgufHeader(file);
    return { metadata, placed: tensors.map((info) => ({ ...info, file })) };
  };
  const named = open(path);
  const count = Number(named.metadata.get("split.count") ?? 1);
  if (count <= 1) return named;
  const parts = partNames(path, count).map((part) => {
    if (basename(part) === basename(path)) return named;
    if (existsSync(part)) return open(part);
    throw new BnbError(`${path} is one of ${count} parts, and ${part} is missing: put it beside the others.`);
  });
  const placed = parts.flatMap((part) => part.placed);
  const seen = new Set<string>();
  const twice = placed.find(({ name }) => seen.size === seen.add(name).size);
  if (twice) throw damaged(twice.file.path, "it stands in another part too", twice.name);
  const said = Number(parts[0]!.metadata.get("split.tensors.count") ?? placed.length);
  if (said !== placed.length)
    throw damaged(path, `its parts have ${placed.length} tensors, and split.tensors.count is ${said}`);
  return { metadata: parts[0]!.metadata, placed };
}

/** llama.cpp's names of parts: `…-00001-of-00003.gguf`. */
function partNames(path: string, count: number): string[] {
  const found = /^(.*-)\d{5}(-of-(\d{5})\.gguf)$/.exec(basename(path));
  if (!found || Number(found[3]) !== count || count > 99_999) {
    const name = `NAME-00001-of-${String(count).padStart(5, "0")}.gguf`;
    throw new BnbError(`${path} is one of ${count} parts, which are found by their names: call it ${name}.`);
  }
  const number = (i: number) => String(i + 1).padStart(5, "0");
  return Array.from({ length: count }, (_, i) => join(dirname(path), `${found[1]}${number(i)}${found[2]}`));
}

function checkKind(path: string, metadata: Metadata): Architecture {
  if (metadata.get("general.type") === "adapter") {
    throw new BnbError(
      `${path} is an adapter (LoRA), not a model; convert the model that it belongs to.`,
      "unsupported",
    );
  }
  const architecture = architectureOf(metadata);
  if (typeof architecture !== "string") return architecture;
  const known = Object.keys(architectures).join(", ");
  throw new BnbError(`${path} has architecture ${architecture}; ${known} can be converted.`, "unsupported");
}

/** @throws BnbError naming the first tensor that the architecture can't do without */
function checkComplete(
  path: string,
  metadata: Metadata,
  { whole, needs, experts }: Architecture,
  all: ReadonlyMap<string, GgufInfo>,
): void {
  const layers = factsOf(path, metadata).count("block_count");
  if (layers > all.size) throw damaged(path, `its metadata says ${layers} layers, and it has ${all.size} tensors`);
  const missing = (name: string) => damaged(path, `it has no ${name}, which a model of its architecture needs`);
  for (const stem of Object.keys(whole))
    if (stem !== "output" && !all.has(`${stem}.weight`)) throw missing(`${stem}.weight`);
  const single = Object.keys(experts?.names ?? {}).map((stem) => stem.replace("_exps", ".0"));
  for (let layer = 0; layer < layers; layer++) {
    const has = (stem: string) => all.has(`blk.${layer}.${stem}.weight`);
    const apart = single.length > 0 && has(single[0]!);
    const wanted = [...needs, ...(apart ? single : Object.keys(experts?.names ?? {}))];
    const absent = wanted.find((stem) => !has(stem));
    if (absent !== undefined) throw missing(`blk.${layer}.${absent}.weight`);
  }
  const beyond = [...all.keys()].find((name) => Number(/^blk\.(\d+)\./.exec(name)?.[1] ?? 0) >= layers);
  if (beyond) throw damaged(path, `its metadata says ${layers} layers, and it has ${beyond}`);
}

function headCounts(path: string, metadata: Metadata): { q: number; k: number } {
  const facts = factsOf(path, metadata);
  const q = facts.count("attention.head_count");
  return { q, k: facts.optional("attention.head_count_kv") ?? q };
}

// ── Tensors ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** The bytes of a tensor, found to lie in its file. */
function sizeOf({ file, name, shape: extents, type: number, offset }: Placed): { shape: number[]; byteLength: number } {
  const type = ggufTypes[number];
  if (!type) {
    const known = Object.values(ggufTypes).map((one) => one.name);
    const what = `${file.path}: ${name} has GGML's type ${ggufTypeName(number)}`;
    throw new BnbError(`${what}; ${known.join(", ")} can be read.`, "unsupported");
  }
  const shape = extents.toReversed();
  const columns = shape.at(-1) ?? 1;
  if (columns % type.block !== 0) {
    throw damaged(file.path, `rows of ${columns} elements are no multiple of ${type.name}'s ${type.block}`, name);
  }
  const elements = shape.reduce((product, extent) => product * extent, 1);
  const byteLength = (elements / type.block) * type.bytes;
  if (!Number.isSafeInteger(elements) || elements === 0 || !(offset + byteLength <= file.size)) {
    throw damaged(file.path, `its ${byteLength} bytes at ${offset} reach beyond the file's ${file.size}`, name);
  }
  return { shape, byteLength };
}

const plainTypes: Readonly<Record<string, FloatDType>> = { F32: "float32", F16: "float16", BF16: "bfloat16" };

/** What a tensor of the file is in the model: itself, or one matrix for each expert. */
function toTensors(
  info: Placed,
  architecture: Architecture,
  heads: { q: number; k: number } | undefined,
): GgufTensor[] {
  const { file, offset, type } = info;
  const { shape, byteLength } = sizeOf(info);
  const format = ggufTypes[type]!.name;
  const name = hfName(info, architecture);
  const make = (hf: string, extents: readonly number[], at: number, bytes: number, order?: number): GgufTensor => {
    const read = () => {
      const view = file.view(at, bytes, info.name);
      const ordered = order === undefined ? undefined : unpermute(file.path, info.name, view, shape[0]!, order);
      const plain = architecture.normsPlusOne && isNorm(hf) ? minusOne(info, ordered ?? view) : ordered;
      if (plain) unmap(view);
      return plain ?? view;
    };
    const isItself = order === undefined && !(architecture.normsPlusOne && isNorm(hf));
    const plain = isItself ? plainTypes[format] : undefined;
    const load = (to: Placement) => file.tensor(info.name, at, plain!, extents, to);
    return { name: hf, shape: extents, type, format, byteLength: bytes, read, release: unmap, plain, load };
  };
  if (name.includes("*")) {
    const [experts = 0, ...matrix] = shape;
    if (matrix.length !== 2) throw damaged(file.path, `it has ${shape.length} extents, expected 3`, info.name);
    const bytes = byteLength / experts;
    return Array.from({ length: experts }, (_, i) =>
      make(name.replace("*", String(i)), matrix, offset + i * bytes, bytes),
    );
  }
  const order = heads && /^blk\.\d+\.attn_([qk])\./.exec(info.name)?.[1];
  // A gate of one output is a vector in GGUF.
  const extents = name.endsWith("shared_expert_gate.weight") && shape.length === 1 ? [1, ...shape] : shape;
  return [make(name, extents, offset, byteLength, order ? heads[order as "q" | "k"] : undefined)];
}

/** @returns with `*` for the number of an expert, where there is a matrix for each */
function hfName({ file, name }: Placed, { whole, layers, layer, experts }: Architecture): string {
  const [, number, stem, suffix] = /^(?:blk\.(\d+)\.)?([\w.]+)\.(weight|bias)$/.exec(name) ?? [];
  const known = number === undefined ? whole : layer;
  const prefix = number === undefined ? "" : `${layers}.${number}.`;
  if (stem !== undefined && Object.hasOwn(known, stem)) return `${prefix}${known[stem]}.${suffix}`;
  const [, single, which] = /^(ffn_\w+)\.(\d+)$/.exec(stem ?? "") ?? [];
  const fused = single === undefined ? stem : `${single}_exps`;
  if (number !== undefined && fused !== undefined && experts && Object.hasOwn(experts.names, fused))
    return `${prefix}${experts.in}.${which ?? "*"}.${experts.names[fused]}.${suffix}`;
  const what = `${file.path}: tensor ${name} has no place in the Hugging Face model of this architecture`;
  throw new BnbError(`${what}.`, "unsupported");
}

/**
 * Undoes the order that llama.cpp's converter gives the rows of llama's q and k. It interleaves the two halves of a
 * head, since its rotary embedding turns neighbouring pairs where Hugging Face's turns row i with row i + half. Rows
 * are whole runs of bytes, also when quantised.
 */
function unpermute(path: string, name: string, bytes: Uint8Array, rows: number, heads: number): Uint8Array {
  const half = rows / heads / 2;
  if (!Number.isInteger(half)) throw damaged(path, `${rows} rows do not fit ${heads} heads`, name);
  const rowBytes = bytes.length / rows;
  const ordered = new Uint8Array(bytes.length);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < 2 * half; row++) {
      const from = (head * 2 * half + row) * rowBytes;
      const to = (head * 2 * half + (row % 2) * half + Math.floor(row / 2)) * rowBytes;
      ordered.set(bytes.subarray(from, from + rowBytes), to);
    }
  }
  return ordered;
}

const isNorm = (name: string) => /norm\.weight$/.test(name);

/** A norm of Gemma as Hugging Face has it: llama.cpp's converter adds the 1 that its model adds when it runs. */
function minusOne({ file, name, type }: Placed, bytes: Uint8Array): Uint8Array {
  if (type !== 0) throw damaged(file.path, `it is ${ggufTypes[type]!.name}, expected F32 of a norm`, name);
  const values = new Float32Array(bytes.slice().buffer);
  return new Uint8Array(values.map((value) => value - 1).buffer);
}

/** A table of numbers that config.json takes the place of; it is always a short vector of F32. */
function readTable(info: Placed): Float32Array | undefined {
  if (info.type !== 0 || info.shape.length !== 1) return undefined;
  const { byteLength } = sizeOf(info);
  return new Float32Array(info.file.read(info.offset, byteLength).buffer);
}
