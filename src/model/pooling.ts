// What makes one vector of a text's: sentence-transformers' modules.json, and the arithmetic that it names.
import { join } from "node:path";
import type { Metadata } from "../checkpoint/gguf_header.ts";
import { BnbError } from "../error.ts";
import { jsonListOf, jsonOf } from "./folder.ts";

/** The mean of all token vectors, the first, the last, or the maximum of each column. */
export type PoolingMode = "mean" | "cls" | "last" | "max";

/** How a text's token vectors become one vector. */
export interface Pooling {
  readonly mode: PoolingMode;
  /** Whether the vector is scaled to length 1. */
  readonly normalize: boolean;
  /** The longest text that the model was made for, in tokens; undefined: as many as it has positions. */
  readonly maxTokens: number | undefined;
}

const modes: readonly [key: string, mode: PoolingMode][] = [
  ["pooling_mode_mean_tokens", "mean"],
  ["pooling_mode_cls_token", "cls"],
  ["pooling_mode_lasttoken", "last"],
  ["pooling_mode_max_tokens", "max"],
];

/** What a folder says; the mean, as it is, where it says nothing. @throws BnbError for a module that is not known */
export function readPooling(folder: string): Pooling {
  const modules = jsonListOf(folder, "modules.json") ?? [];
  let [mode, normalize]: [PoolingMode, boolean] = ["mean", false];
  for (const { type, path } of modules) {
    const kind = String(type).split(".").at(-1);
    if (kind === "Pooling") mode = readMode(join(folder, String(path ?? "")));
    else if (kind === "Normalize") normalize = true;
    else if (kind !== "Transformer")
      throw new BnbError(`${folder}: modules.json names ${String(type)}, which is not supported.`, "unsupported");
  }
  const most = jsonOf(folder, "sentence_bert_config.json")?.max_seq_length;
  return { mode, normalize, maxTokens: typeof most === "number" && most >= 1 ? most : undefined };
}

/** By GGUF's numbers. */
const ggufModes: readonly (PoolingMode | undefined)[] = ["mean", "mean", "cls", "last"];

/** What a GGUF file says, which is the mode alone; vectors have length 1, as llama.cpp gives them. */
export function ggufPooling(path: string, metadata: Metadata): Pooling {
  const said = metadata.get(`${String(metadata.get("general.architecture"))}.pooling_type`) ?? 1;
  const mode = ggufModes[Number(said)];
  if (mode) return { mode, normalize: true, maxTokens: undefined };
  throw new BnbError(`${path} asks for pooling of GGUF's type ${String(said)}, expected 0 to 3.`, "unsupported");
}

function readMode(folder: string): PoolingMode {
  const config = jsonOf(folder, "config.json") ?? {};
  const named = modes.filter(([key]) => config[key] === true);
  const other = Object.keys(config).find(
    (key) => key.startsWith("pooling_mode_") && config[key] === true && !named.some(([known]) => known === key),
  );
  if (named.length !== 1 || other)
    throw new BnbError(
      `${folder}/config.json asks for ${other ?? `${named.length} ways of pooling`}, expected one of ${modes.map(([key]) => key).join(", ")}.`,
      "unsupported",
    );
  return named[0]![1];
}

/** One vector of `rows` token vectors of `columns` numbers each. */
export function pool(vectors: Float32Array, columns: number, { mode, normalize }: Pooling): Float32Array<ArrayBuffer> {
  const rows = vectors.length / columns;
  const pooled = new Float32Array(columns);
  for (let column = 0; column < columns; column++) {
    const at = (row: number) => vectors[row * columns + column]!;
    if (mode === "cls") pooled[column] = at(0);
    else if (mode === "last") pooled[column] = at(rows - 1);
    else {
      let whole = mode === "max" ? -Infinity : 0;
      for (let row = 0; row < rows; row++) whole = mode === "max" ? Math.max(whole, at(row)) : whole + at(row);
      pooled[column] = mode === "max" ? whole : whole / rows;
    }
  }
  if (!normalize) return pooled;
  const length = Math.sqrt(pooled.reduce((sum, value) => sum + value * value, 0));
  return pooled.map((value) => value / Math.max(length, 1e-12));
}
