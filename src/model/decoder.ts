// The one decoder: ids of several sequences in, logits out, with their keys and values in a cache.
import { activate } from "../activate.ts";
import type { Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { scale } from "../elementwise.ts";
import { embedding } from "../embedding.ts";
import { BnbError } from "../error.ts";
import { joinRows } from "../join.ts";
import type { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import type { Architecture } from "./architecture.ts";
import type { ModelCache, Placed } from "./cache.ts";
import type { Pipeline, PipelineRows } from "./pipeline.ts";
import { RecordedStep } from "./recorded.ts";
import { Norm, type Rows, Stream } from "./stack.ts";
import type { Linear, Loader } from "./weights.ts";

/** What one step does with one sequence. */
export interface Segment {
  /** Where in the cache its tokens are, page by page, the new ones' too. */
  readonly pages: readonly number[];
  /** How many of its tokens the cache holds already. */
  readonly start: number;
  /** The tokens that follow. */
  readonly ids: ArrayLike<number>;
  /** Whose logits are wanted: those after the last token, after each, or none. */
  readonly logits: "last" | "all" | "none";
}

/** A model that continues texts. */
export class Decoder implements Disposable {
  readonly architecture: Architecture;
  /** Where ids go in. */
  readonly device: Device;
  readonly #embedding: Tensor<FloatDType> | QuantizedTensor;
  readonly #pipeline: Pipeline;
  readonly #norm: Norm;
  readonly #head: Linear;

  constructor(loader: Loader, architecture: Architecture, pipeline: Pipeline) {
    const { names } = architecture;
    const { device } = pipeline.placed[0]!;
    const last = loader.on(pipeline.placed.at(-1)!.device);
    this.architecture = architecture;
    this.device = device;
    this.#embedding = loader.table(names.embedding);
    if (this.#embedding.shape[0]! < architecture.vocabulary)
      throw new BnbError(
        `${names.embedding} has ${this.#embedding.shape[0]} rows, expected the ${architecture.vocabulary} of vocab_size.`,
      );
    this.#pipeline = pipeline;
    this.#norm = new Norm(last, names.finalNorm!, architecture.norm);
    const tied = architecture.tied && !loader.has(names.head!);
    const here = tied && this.#embedding.device === last.device; // else the table stands on both
    const table = here ? this.#embedding : last.table(tied ? names.embedding : names.head!);
    this.#head = last.linearOf(names.head!, table, tied ? undefined : last.bias(names.head!));
  }

  /** A cache for this model. */
  cache(options: Parameters<Pipeline["cache"]>[0]): ModelCache {
    return this.#pipeline.cache(options);
  }

  /**
   * Takes the tokens of every segment in, and gives the logits that they ask for.
   *
   * @returns float32 [wanted, vocabulary], in the order of the segments; undefined where none are wanted
   */
  forward(segments: readonly Segment[], cache: ModelCache): Tensor<"float32"> | undefined {
    return toEnd(this.steps(segments, cache));
  }

  /** The same, layer by layer, so that who runs it can let others in between. */
  *steps(segments: readonly Segment[], cache: ModelCache): Generator<void, Tensor<"float32"> | undefined, void> {
    const { shortMost } = this.#pipeline;
    const isLong = ({ start, ids }: Segment) => start + ids.length > shortMost;
    const long = segments.filter(isLong);
    if (long.length === 0 || long.length === segments.length) return yield* this.#pass(segments, cache);
    // One table serves all rows of a pass.
    const first = yield* this.#pass(
      segments.filter((segment) => !isLong(segment)),
      cache,
    );
    const second = yield* this.#pass(long, cache);
    return inOrder(segments, isLong, first, second);
  }

  *#pass(segments: readonly Segment[], cache: ModelCache): Generator<void, Tensor<"float32"> | undefined, void> {
    if (this.#pipeline.isRecordable && segments.every(({ ids, logits }) => ids.length === 1 && logits === "last")) {
      const logits = this.#again(segments, cache);
      if (logits) return logits;
    }
    using ids = Tensor.from(idsOf(segments), undefined, { device: this.device });
    using rows = this.#pipeline.place(this.#rowsOf(segments), cache);
    return yield* this.#run(ids, rows, wantedRows(segments));
  }

  *#run(
    ids: Tensor<"int32">,
    rows: PipelineRows,
    wanted: Int32Array,
  ): Generator<void, Tensor<"float32"> | undefined, void> {
    const { multipliers } = this.architecture;
    using stream = new Stream(embedding(ids, this.#embedding, { dtype: "float32" }), multipliers.residual);
    if (multipliers.embedding !== 1) stream.replace(scale(stream.x, multipliers.embedding));
    yield* this.#pipeline.run(stream, rows);
    return this.#logits(stream.x, wanted);
  }

  /**
   * A token more of each text by a recorded step; undefined where somebody still has what that gave. Tables of pages
   * are as long as the next power of two, so that a step serves until a text has twice as many.
   */
  #again(segments: readonly Segment[], cache: ModelCache): Tensor<"float32"> | undefined {
    const { shortMost } = this.#pipeline;
    const most = 2 ** Math.ceil(Math.log2(Math.max(leastPages, ...segments.map(({ pages }) => pages.length))));
    const long = segments[0]!.start + 1 > shortMost; // as all of a pass are
    const positions = long ? most * cache.capacity : Math.min(most * cache.capacity, shortMost);
    const [ids, rows] = [idsOf(segments), { ...this.#rowsOf(segments, most), positions }];
    const shape = `${segments.length} texts of ${most} pages${long ? ", long" : ""}`;
    const recorded = cache.steps.get(shape);
    if (recorded?.isInUse) return undefined;
    if (recorded) recorded.run(ids, rows);
    const step =
      recorded ??
      new RecordedStep(ids, rows, {
        device: this.device,
        place: (rows) => this.#pipeline.place(rows, cache),
        run: (ids, rows) => toEnd(this.#run(ids, rows, wantedRows(segments)))!,
      });
    if (!recorded) cache.steps.set(shape, step);
    return step.logits;
  }

  #logits(x: Tensor<"float32">, wanted: Int32Array): Tensor<"float32"> | undefined {
    if (wanted.length === 0) return undefined;
    const { multipliers, logitSoftcap } = this.architecture;
    using places = Tensor.from(wanted, undefined, { device: x.device });
    using last = embedding(places, x, { dtype: "float32" });
    using normal = this.#norm.apply(last);
    const scaled = scaledBy(this.#head.one(normal), multipliers.logits / (logitSoftcap || 1));
    if (!logitSoftcap) return scaled;
    using uncapped = scaled;
    return scaledBy(activate(uncapped, "tanh"), logitSoftcap);
  }

  #rowsOf(segments: readonly Segment[], pages = 0): Rows {
    const windows = new Set(this.architecture.layers.map(({ window }) => window));
    const seen = new Map([...windows].map((window) => [window, seenBy(segments, window)]));
    const positions = Math.max(...segments.map(({ start, ids }) => start + ids.length));
    return { seen, positions, pages: pagesOf(segments, pages), bias: undefined };
  }

  /** Where layers stand, in their order. */
  get placed(): readonly Placed[] {
    return this.#pipeline.placed;
  }

  [Symbol.dispose](): void {
    this.#pipeline[Symbol.dispose]();
    this.#norm[Symbol.dispose]();
    this.#head[Symbol.dispose]();
    this.#embedding.dispose();
  }
}

/** Recorded steps have tables of at least so many pages. */
const leastPages = 8;

/** What a generator gives at its end. */
function toEnd<Result>(steps: Generator<void, Result, void>): Result {
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/** A tensor times a factor, in its place. */
function scaledBy(x: Tensor<"float32">, factor: number): Tensor<"float32"> {
  if (factor === 1) return x;
  using before = x;
  return scale(before, factor);
}

const count = (segments: readonly Segment[]) => segments.reduce((sum, { ids }) => sum + ids.length, 0);

function idsOf(segments: readonly Segment[]): Int32Array {
  const ids = new Int32Array(count(segments));
  let at = 0;
  for (const segment of segments) {
    ids.set(segment.ids, at);
    at += segment.ids.length;
  }
  return ids;
}

/** A table of pages, a row for each segment, as long as the longest of them, and `least`. */
function pagesOf(segments: readonly Segment[], least: number): Rows["pages"] {
  const most = Math.max(least, ...segments.map(({ pages }) => pages.length));
  const values = new Int32Array(segments.length * most);
  for (const [i, { pages }] of segments.entries()) values.set(pages, i * most);
  return { values, texts: segments.length };
}

/** For each row its segment, its position, and the keys that it sees: all up to itself, or those of a window. */
function seenBy(segments: readonly Segment[], window: number | undefined): Int32Array {
  const rows = new Int32Array(4 * count(segments));
  let at = 0;
  for (const [text, { start, ids }] of segments.entries())
    for (let position = start; position < start + ids.length; position++, at += 4) {
      rows[at] = text;
      rows[at + 1] = position;
      rows[at + 2] = window === undefined ? 0 : Math.max(0, position + 1 - window);
      rows[at + 3] = position + 1;
    }
  return rows;
}

/** Which rows of a pass logits are wanted of. */
function wantedRows(segments: readonly Segment[]): Int32Array {
  const wanted: number[] = [];
  let at = 0;
  for (const { ids, logits } of segments) {
    if (logits === "all") for (let i = 0; i < ids.length; i++) wanted.push(at + i);
    if (logits === "last") wanted.push(at + ids.length - 1);
    at += ids.length;
  }
  return Int32Array.from(wanted);
}

/** Logits of two passes, put back into the order of the segments. */
function inOrder(
  segments: readonly Segment[],
  isSecond: (segment: Segment) => boolean,
  first: Tensor<"float32"> | undefined,
  second: Tensor<"float32"> | undefined,
): Tensor<"float32"> | undefined {
  if (!first || !second) return first ?? second;
  using a = first;
  using b = second;
  using both = joinRows([a, b]) as Tensor<"float32">;
  const next = [0, a.shape[0]!];
  const order = segments.flatMap((segment) => {
    const pass = Number(isSecond(segment));
    const length = segment.logits === "all" ? segment.ids.length : Number(segment.logits === "last");
    return Array.from({ length }, () => next[pass]!++);
  });
  using places = Tensor.from(Int32Array.from(order), undefined, { device: both.device });
  return embedding(places, both, { dtype: "float32" });
}
