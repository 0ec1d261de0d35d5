// The one encoder: texts in, a vector for each token out, and what becomes of those for a whole text.

import type { Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { add } from "../elementwise.ts";
import { embedding } from "../embedding.ts";
import { BnbError } from "../error.ts";
import type { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import type { Architecture } from "./architecture.ts";
import type { Placed } from "./cache.ts";
import type { Pipeline } from "./pipeline.ts";
import { Norm, type Rows, Stream } from "./stack.ts";
import type { Loader } from "./weights.ts";

type Table = Tensor<FloatDType> | QuantizedTensor;
type Floats = Tensor<"float32">;

/** A model that reads texts whole. */
export class Encoder implements Disposable {
  readonly architecture: Architecture;
  readonly device: Device;
  readonly #tables: { words: Table; positions: Table | undefined; types: Table | undefined };
  readonly #buckets: Tensor | undefined;
  readonly #relative: Float32Array | undefined;
  readonly #embeddingNorm: Norm;
  readonly #finalNorm: Norm | undefined;
  readonly #pipeline: Pipeline;

  constructor(loader: Loader, architecture: Architecture, pipeline: Pipeline) {
    const { names, norm } = architecture;
    const table = (module: string | undefined) => (module && loader.has(module) ? loader.table(module) : undefined);
    this.architecture = architecture;
    this.device = pipeline.placed[0]!.device;
    this.#tables = {
      words: loader.table(names.embedding),
      positions: names.positions ? loader.table(names.positions) : undefined,
      types: table(names.tokenTypes),
    };
    this.#buckets = names.relativeBias ? loader.dense(names.relativeBias) : undefined;
    this.#relative = this.#buckets?.readFloat32();
    this.#embeddingNorm = new Norm(loader, names.embeddingNorm!, norm);
    const last = loader.on(pipeline.placed.at(-1)!.device);
    this.#finalNorm = names.finalNorm ? new Norm(last, names.finalNorm, norm) : undefined;
    this.#pipeline = pipeline;
  }

  /**
   * A vector for each token of each text, one text after the other; none is padded.
   *
   * @param texts ids of each, with those of segments where a text is a pair
   */
  *steps(texts: readonly EncoderInput[]): Generator<void, Floats, void> {
    for (const { ids } of texts) this.#checkIds(ids);
    using stream = new Stream(this.#embed(texts), 1);
    stream.replace(this.#embeddingNorm.apply(stream.x));
    using rows = this.#pipeline.place(this.#rowsOf(texts));
    yield* this.#pipeline.run(stream, rows);
    return this.#finalNorm ? this.#finalNorm.apply(stream.x) : (stream.x.reshape(stream.x.shape) as Floats);
  }

  #embed(texts: readonly EncoderInput[]): Floats {
    const { words, positions, types } = this.#tables;
    const first = this.architecture.firstPosition;
    let sum = this.#look(words, texts, (ids, i) => ids[i]!);
    if (positions)
      sum = plus(
        sum,
        this.#look(positions, texts, (_, i) => first + i),
      );
    if (types)
      sum = plus(
        sum,
        this.#look(types, texts, (_, i, text) => text.types?.[i] ?? 0),
      );
    return sum;
  }

  #look(
    table: Table,
    texts: readonly EncoderInput[],
    rowOf: (ids: readonly number[], i: number, text: EncoderInput) => number,
  ): Floats {
    const rows = Int32Array.from(texts.flatMap((text) => text.ids.map((_, i) => rowOf(text.ids, i, text))));
    using places = Tensor.from(rows, undefined, { device: this.device });
    return embedding(places, table, { dtype: "float32" });
  }

  #rowsOf(texts: readonly EncoderInput[]): Rows {
    const windows = new Set(this.architecture.layers.map(({ window }) => window));
    const total = texts.reduce((sum, { ids }) => sum + ids.length, 0);
    const seen = new Map([...windows].map((window) => [window, seenBy(texts, window, total)]));
    const longest = Math.max(...texts.map(({ ids }) => ids.length));
    return { seen, positions: longest, pages: undefined, bias: this.#biasOf(longest) };
  }

  /** MPNet's bias: a value a head for the bucket that a distance falls into. */
  #biasOf(longest: number): Rows["bias"] {
    if (!this.#relative) return undefined;
    const { heads, relativeBuckets } = this.architecture;
    const columns = 2 * longest - 1;
    const bias = new Float32Array(heads * columns);
    for (let column = 0; column < columns; column++) {
      const bucket = bucketOf(column - longest + 1, relativeBuckets);
      for (let head = 0; head < heads; head++) bias[head * columns + column] = this.#relative[bucket * heads + head]!;
    }
    return { values: bias, heads };
  }

  #checkIds(ids: readonly number[]): void {
    const { vocabulary, positions } = this.architecture;
    if (ids.length === 0) throw new BnbError("embed: a text has no tokens, expected at least one.");
    if (ids.length > positions)
      throw new BnbError(
        `embed: a text has ${ids.length} tokens, ${ids.length - positions} more than the model reads: shorten it, or pass { truncate: true }.`,
      );
    for (const [i, id] of ids.entries())
      if (!Number.isInteger(id) || id < 0 || id >= vocabulary)
        throw new BnbError(`embed: ids[${i}] is ${id}, expected an id of the vocabulary, 0 to ${vocabulary - 1}.`);
  }

  /** Where layers stand, in their order. */
  get placed(): readonly Placed[] {
    return this.#pipeline.placed;
  }

  [Symbol.dispose](): void {
    const { words, positions, types } = this.#tables;
    for (const part of [words, positions, types, this.#buckets, this.#embeddingNorm, this.#finalNorm, this.#pipeline])
      part?.[Symbol.dispose]();
  }
}

/** One text for an encoder. */
export interface EncoderInput {
  readonly ids: readonly number[];
  /** Which of a pair of texts each token belongs to; all 0 by default. */
  readonly types?: readonly number[] | undefined;
}

function plus(a: Floats, b: Floats): Floats {
  using first = a;
  using second = b;
  return add(first, second);
}

/**
 * For each row its position in its text, and the rows that it sees: all of the text, or those of a window around
 * it.
 */
function seenBy(texts: readonly EncoderInput[], window: number | undefined, total: number): Int32Array {
  const rows = new Int32Array(4 * total);
  let start = 0;
  for (const { ids } of texts) {
    const end = start + ids.length;
    for (let row = start; row < end; row++) {
      rows[4 * row + 1] = row - start;
      rows[4 * row + 2] = window === undefined ? start : Math.max(start, row - window);
      rows[4 * row + 3] = window === undefined ? end : Math.min(end, row + window + 1);
    }
    start = end;
  }
  return rows;
}

/**
 * The bucket of a key that lies so far after the row: T5's, as MPNet has it, exact near by and logarithmic further
 * off.
 */
function bucketOf(distance: number, buckets: number): number {
  const half = buckets / 2;
  const exact = Math.floor(half / 2);
  const side = distance > 0 ? half : 0;
  const n = Math.abs(distance);
  if (n < exact) return side + n;
  const far = exact + Math.trunc((Math.log(n / exact) / Math.log(128 / exact)) * (half - exact));
  return side + Math.min(far, half - 1);
}
