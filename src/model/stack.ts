// The layers of a model that stand on one device, and how rows go through them: what the decoder and the encoder
// share.
import { activate } from "../activate.ts";
import { type AttentionOptions, attention, type KvCache } from "../attention.ts";
import type { Device } from "../device.ts";
import { add } from "../elementwise.ts";
import { BnbError } from "../error.ts";
import { layerNorm } from "../layer_norm.ts";
import { rmsNorm } from "../rms_norm.ts";
import { Tensor } from "../tensor.ts";
import type { Architecture, LayerSpec, NormPlace, RopeSpec } from "./architecture.ts";
import { Experts } from "./experts.ts";
import { RopeTable } from "./rope.ts";
import type { Linear, Loader } from "./weights.ts";

type Floats = Tensor<"float32">;

/** A norm of either kind. */
export class Norm implements Disposable {
  readonly #weight: Tensor;
  readonly #bias: Tensor | undefined;
  readonly #spec: Architecture["norm"];

  constructor(loader: Loader, module: string, spec: Architecture["norm"]) {
    this.#spec = spec;
    this.#weight = loader.dense(module);
    const bias = loader.bias(module);
    this.#bias = spec.kind === "layer" ? (bias ?? zerosLike(this.#weight)) : bias;
  }

  apply(x: Floats): Floats {
    const { kind, eps, offset } = this.#spec;
    if (kind === "layer") return layerNorm(x, this.#weight, this.#bias!, { eps });
    return rmsNorm(x, this.#weight, { eps, offset });
  }

  /** The norm of a stream, to which what is to be added is added on the way. */
  of(stream: Stream): Floats {
    const { kind, eps, offset } = this.#spec;
    const residual = kind === "rms" ? stream.takePending() : undefined;
    if (!residual) return this.apply(stream.x);
    using added = residual;
    return rmsNorm(stream.x, this.#weight, { eps, offset, residual: added, scale: stream.scale });
  }

  /** What {@link attention} takes to normalise heads by itself. */
  get weight(): Tensor {
    return this.#weight;
  }

  [Symbol.dispose](): void {
    this.#weight.dispose();
    this.#bias?.dispose();
  }
}

function zerosLike(weight: Tensor): Tensor {
  return Tensor.from(new Float32Array(weight.size), weight.shape, { device: weight.device });
}

/** What layers add to. */
export class Stream implements Disposable {
  #x: Floats;
  /** What is to be added: the next norm does it, or who asks for x. */
  #pending: Floats | undefined;
  /** What is added is multiplied by it: Granite's residual multiplier. */
  readonly scale: number;

  constructor(x: Floats, scale: number) {
    this.#x = x;
    this.scale = scale;
  }

  get x(): Floats {
    this.#settle();
    return this.#x;
  }

  #settle(): void {
    const residual = this.takePending();
    if (!residual) return;
    using added = residual;
    this.replace(add(this.#x, added, { scale: this.scale }));
  }

  /** Takes over what is to be added. */
  add(residual: Floats): void {
    this.#settle();
    this.#pending = residual;
  }

  /** Hands over what is to be added to x, which is without it then. */
  takePending(): Floats | undefined {
    const residual = this.#pending;
    this.#pending = undefined;
    return residual;
  }

  replace(x: Floats): void {
    this.#x.dispose();
    this.#x = x;
  }

  [Symbol.dispose](): void {
    this.#x.dispose();
    this.#pending?.dispose();
  }
}

/**
 * What rows of one pass are told to attention: where they stand, and what they see in layers with a window and
 * without.
 */
export interface Rows {
  /** [rows, 4], by the window of a layer; the key `undefined` is for those that see all. */
  readonly seen: ReadonlyMap<number | undefined, Int32Array>;
  /** The positions that tables must reach. */
  readonly positions: number;
  /** [texts, n]: the pages of the cache that each text's keys lie in. */
  readonly pages: { readonly values: Int32Array; readonly texts: number } | undefined;
  /** [heads, 2w - 1], added to scores. */
  readonly bias: { readonly values: Float32Array; readonly heads: number } | undefined;
}

/** The same on a device: for a pass, or for passes that are alike, each of which writes its own numbers. */
export class PlacedRows implements Disposable {
  readonly positions: number;
  readonly cache: KvCache | undefined;
  readonly pages: Tensor<"int32"> | undefined;
  readonly bias: Floats | undefined;
  readonly #seen: ReadonlyMap<number | undefined, Tensor<"int32">>;
  /** What `pages` holds. */
  #values: Int32Array;

  constructor({ seen, positions, pages, bias }: Rows, device: Device, cache: KvCache | undefined) {
    this.#values = pages?.values ?? new Int32Array(0);
    this.positions = positions;
    this.cache = cache;
    this.pages = pages && Tensor.from(pages.values, [pages.texts, pages.values.length / pages.texts], { device });
    this.bias = bias && Tensor.from(bias.values, [bias.heads, bias.values.length / bias.heads], { device });
    this.#seen = new Map(
      Array.from(seen, ([window, rows]) => [window, Tensor.from(rows, [rows.length / 4, 4], { device })]),
    );
  }

  seenBy(window: number | undefined): Tensor<"int32"> {
    return this.#seen.get(window)!;
  }

  /** Puts rows of the same number, with pages of the same shape, in their place. */
  write({ seen, pages }: Rows): void {
    for (const [window, rows] of seen) this.seenBy(window).write(rows);
    if (!pages || pages.values.every((page, i) => page === this.#values[i])) return;
    this.#values = pages.values;
    this.pages!.write(pages.values);
  }

  [Symbol.dispose](): void {
    for (const seen of this.#seen.values()) seen.dispose();
    this.pages?.dispose();
    this.bias?.dispose();
  }
}

class Layer implements Disposable {
  readonly spec: LayerSpec;
  readonly norms: Partial<Record<NormPlace, Norm>> = {};
  readonly qkv: Linear;
  readonly attentionOut: Linear;
  readonly qNorm: Norm | undefined;
  readonly kNorm: Norm | undefined;
  readonly mlp: Mlp | Experts;

  constructor(loader: Loader, architecture: Architecture, index: number) {
    const { names, norm } = architecture;
    const prefix = names.layer.replace("{}", String(index));
    this.spec = architecture.layers[index]!;
    for (const [place, module] of Object.entries(names.norms) as [NormPlace, string][])
      if (place !== "beforeAttention" || this.spec.attentionNorm)
        this.norms[place] = new Norm(loader, prefix + module, norm);
    this.qkv = loader.linear(firstThere(loader, prefix, names.qkv), { apart: architecture.qkNorm === "all" });
    this.attentionOut = loader.linear([prefix + names.attentionOut]);
    this.qNorm = names.qNorm ? new Norm(loader, prefix + names.qNorm, norm) : undefined;
    this.kNorm = names.kNorm ? new Norm(loader, prefix + names.kNorm, norm) : undefined;
    this.mlp = this.spec.sparse
      ? new Experts(loader, architecture, prefix)
      : new Mlp(loader, architecture, firstThere(loader, prefix, names.mlpIn), prefix + names.mlpOut);
  }

  [Symbol.dispose](): void {
    for (const part of [...Object.values(this.norms), this.qkv, this.attentionOut, this.qNorm, this.kNorm, this.mlp])
      part?.[Symbol.dispose]();
  }
}

/** The first of several ways to name modules that a checkpoint has; the last where it has none, for the error. */
function firstThere(loader: Loader, prefix: string, ways: readonly (readonly string[])[]): string[] {
  const way = ways.find((way) => loader.has(prefix + way[0])) ?? ways.at(-1)!;
  return way.map((module) => prefix + module);
}

/** The products of a layer's second half, and what stands between them. */
export class Mlp implements Disposable {
  readonly #spec: Architecture["mlp"];
  readonly #into: Linear;
  readonly #out: Linear;

  constructor(loader: Loader, { mlp }: Pick<Architecture, "mlp">, into: readonly string[], out: string) {
    this.#spec = mlp;
    this.#into = loader.linear(into);
    this.#out = loader.linear([out]);
  }

  apply(x: Floats): Floats {
    const [first, up] = this.#into.apply(x);
    using gate = first!;
    using active = activate(gate, this.#spec.activation, { up, gated: this.#spec.gated });
    up?.dispose();
    return this.#out.one(active);
  }

  [Symbol.dispose](): void {
    this.#into[Symbol.dispose]();
    this.#out[Symbol.dispose]();
  }
}

/** What is made, or undefined where the device has no memory for it and another one may have. */
function layerIfFits(make: () => Layer, mayBeElsewhere: boolean): Layer | undefined {
  try {
    return make();
  } catch (error) {
    if (mayBeElsewhere && error instanceof BnbError && error.code === "out_of_memory") return undefined;
    throw error;
  }
}

/** Layers of a model that stand on one device, one after the other. */
export class Stack implements Disposable {
  readonly device: Device;
  readonly #architecture: Architecture;
  readonly #layers: readonly Layer[];
  readonly #ropes = new Map<RopeSpec, RopeTable>();

  private constructor(architecture: Architecture, layers: readonly Layer[], device: Device) {
    this.device = device;
    this.#architecture = architecture;
    this.#layers = layers;
    for (const { rope } of layers.map(({ spec }) => spec))
      if (rope && !this.#ropes.has(rope)) this.#ropes.set(rope, new RopeTable(rope, device));
  }

  /** Layer by layer, as long as there is room; `onLayer` may wait, or stop it by throwing. */
  static async load(
    loader: Loader,
    architecture: Architecture,
    device: Device,
    { first, last, hasRoom }: { first: number; last: number; hasRoom?: () => boolean },
    onLayer: (index: number) => Promise<void>,
  ): Promise<Stack> {
    const layers: Layer[] = [];
    try {
      for (let index = first; index <= last && hasRoom?.() !== false; index++) {
        const layer = layerIfFits(() => new Layer(loader, architecture, index), hasRoom !== undefined);
        if (!layer) break;
        layers.push(layer);
        await onLayer(index);
      }
    } catch (error) {
      for (const layer of layers) layer[Symbol.dispose]();
      throw error;
    }
    return new Stack(architecture, layers, device);
  }

  /** How many. */
  get layers(): number {
    return this.#layers.length;
  }

  /** A longer text than this turns its positions by other angles. */
  get shortMost(): number {
    return Math.min(...Array.from(this.#ropes.values(), ({ shortMost }) => shortMost));
  }

  /** Whether a pass asks the device for nothing but operations, so that it can be recorded. */
  get isRecordable(): boolean {
    return this.#layers.every(({ spec }) => !spec.sparse); // a mixture's rows are sorted by expert on the CPU
  }

  /** What rows are told to attention, on this device. */
  place(rows: Rows, cache: KvCache | undefined): PlacedRows {
    return new PlacedRows(rows, this.device, cache);
  }

  /** Runs the rows of a stream through every layer, which is what it yields between. */
  *run(stream: Stream, rows: PlacedRows): Generator<void, void, void> {
    for (const [index, layer] of this.#layers.entries()) {
      if (this.#architecture.parallel) this.#both(layer, index, stream, rows);
      else this.#oneAfterTheOther(layer, index, stream, rows);
      yield;
    }
  }

  #both(layer: Layer, index: number, stream: Stream, rows: PlacedRows): void {
    using input = layer.norms.beforeAttention!.of(stream);
    const attended = this.#attend(layer, index, input, rows);
    stream.add(attended);
    stream.add(layer.mlp.apply(input));
  }

  #oneAfterTheOther(layer: Layer, index: number, stream: Stream, rows: PlacedRows): void {
    const { beforeAttention, afterAttention, sumAttention, beforeMlp, afterMlp, sumMlp } = layer.norms;
    const input = beforeAttention?.of(stream);
    stream.add(normed(this.#attend(layer, index, input ?? stream.x, rows), afterAttention));
    input?.dispose();
    if (sumAttention) stream.replace(sumAttention.of(stream));
    const next = beforeMlp?.of(stream);
    stream.add(normed(layer.mlp.apply(next ?? stream.x), afterMlp));
    next?.dispose();
    if (sumMlp) stream.replace(sumMlp.of(stream));
  }

  #attend(layer: Layer, index: number, x: Floats, rows: PlacedRows): Floats {
    const { heads, kvHeads, qkNorm, norm, attention: options } = this.#architecture;
    const { rope, window } = layer.spec;
    let [q, k, v] = layer.qkv.apply(x);
    if (qkNorm === "all") [q, k] = [normed(q!, layer.qNorm), normed(k!, layer.kNorm)];
    const byHead = qkNorm === "head" && { qNorm: layer.qNorm!.weight, kNorm: layer.kNorm!.weight };
    const parts: AttentionOptions = { heads, kvHeads, k, v, ...options, ...byHead };
    using attended = attention(q!, rows.seenBy(window), {
      ...parts,
      normEps: norm.eps,
      normOffset: norm.offset,
      rope: rope && this.#ropes.get(rope)!.for(rows.positions),
      bias: rows.bias,
      cache: rows.cache,
      pages: rows.pages,
      layer: index,
    });
    for (const part of [q, k, v]) part?.dispose();
    return layer.attentionOut.one(attended);
  }

  [Symbol.dispose](): void {
    for (const part of [...this.#layers, ...this.#ropes.values()]) part[Symbol.dispose]();
  }
}

/** A tensor's norm in its place. */
function normed(x: Floats, norm: Norm | undefined): Floats {
  if (!norm) return x;
  using before = x;
  return norm.apply(before);
}
