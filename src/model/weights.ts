// Where a model's weights come from, and what becomes of them on the way to the device: joined, quantised, or as
// they are.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import type { GgufModel } from "../checkpoint/gguf.ts";
import { loadGguf } from "../checkpoint/gguf_weight.ts";
import { type LoadWeightOptions, loadWeight } from "../checkpoint/statedict.ts";
import { Codebook } from "../codebook.ts";
import type { Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { Int8Weight, matmul8bit } from "../int8_weight.ts";
import { joinRows } from "../join.ts";
import { linear, matmul4bit, matmulBlockwise } from "../matmul.ts";
import type { Precision } from "../native.ts";
import { quantize4bit, quantizeBlockwise } from "../quantize.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import type { Adapter, LowRank } from "./adapter.ts";
import type { Kept } from "./save.ts";

/** A weight in any form that can be multiplied with. */
export type Weight = Tensor | QuantizedTensor | Int8Weight;

/** Tensors by their Hugging Face names, whatever file they lie in. */
export interface WeightSource {
  /** What was opened, for errors. */
  readonly path: string;
  has(name: string): boolean;
  /** Of a tensor as the file has it; 0 where there is none. */
  bytesOf(name: string): number;
  /** A weight on a device, the caller's to dispose of. @throws BnbError if there is none of that name */
  load(name: string, device: Device, options?: LoadWeightOptions): Weight;
}

/** The weights of a Hugging Face checkpoint: dense, and in bitsandbytes' formats. */
export function checkpointSource(checkpoint: Checkpoint): WeightSource {
  return {
    path: checkpoint.path,
    has: (name) => checkpoint.tensors.has(name) || checkpoint.quantized.has(name),
    bytesOf: (name) => checkpoint.tensors.get(name)?.byteLength ?? 0,
    load: (name, device, options) => loadWeight(checkpoint, name, device, options),
  };
}

/** What weights of a GGUF file are that are floats in it; float16 for blocks that can only be expanded. */
const ggufDtypes: Readonly<Record<string, FloatDType>> = { F32: "float32", F16: "float16", BF16: "bfloat16" };

/** The weights of a GGUF file, with its own codes and scales. */
export function ggufSource(model: GgufModel): WeightSource {
  const formats = new Map(model.tensors.map(({ name, format }) => [name, format]));
  const sizes = new Map(model.tensors.map(({ name, byteLength }) => [name, byteLength]));
  return {
    path: model.path,
    has: (name) => formats.has(name),
    bytesOf: (name) => sizes.get(name) ?? 0,
    load: (name, device, options) =>
      loadGguf(model, name, { ...options, device, dtype: ggufDtypes[formats.get(name)!] ?? "float16" }),
  };
}

/** How dense weights are quantised while a model loads. */
export interface QuantizeOnLoad {
  /** 4 bits in blocks, as in bitsandbytes, or LLM.int8(). */
  readonly quantType?: "nf4" | "fp4" | "int8" | undefined;
  /** Elements that share a scale; 64 by default. For 4 bits only. */
  readonly blocksize?: number | undefined;
  /** Quantise the scales too. For 4 bits only. */
  readonly doubleQuant?: boolean | undefined;
}

/** How products are made. */
interface LinearOptions {
  readonly precision: Precision;
  /** Of LLM.int8(): columns with a larger magnitude are multiplied in floating point. */
  readonly threshold: number;
  /** The weights are not to be joined. */
  readonly apart?: boolean;
  /** What an adapter adds to the products of some of the modules, which are multiplied as one. */
  beside?(modules: readonly number[], shapes: readonly (readonly number[])[]): LowRank | undefined;
}

/** Weights that are one product. */
interface Joined {
  readonly weight: Weight;
  readonly bias: Tensor | undefined;
  readonly beside: LowRank | undefined;
}

/** The products of one or more weights with the same input: joined to one where they can be. */
export class Linear implements Disposable {
  readonly #parts: Joined[] = [];
  readonly #precision: Precision;
  readonly #threshold: number;

  constructor(weights: Weight[], biases: (Tensor | undefined)[], options: LinearOptions) {
    this.#precision = options.precision;
    this.#threshold = options.threshold;
    const shapes = weights.map(({ shape }) => shape);
    const beside = (modules: number[]) =>
      options.beside?.(
        modules,
        modules.map((i) => shapes[i]!),
      );
    const weight = options.apart && weights.length > 1 ? undefined : joined(weights);
    if (weight) {
      this.#parts.push({ weight, bias: joinedBias(weights, biases), beside: beside([...weights.keys()]) });
      return;
    }
    for (const [i, weight] of weights.entries()) this.#parts.push({ weight, bias: biases[i], beside: beside([i]) });
  }

  /** [m, n] for each part: one where all are joined. */
  apply<D extends FloatDType>(x: Tensor<D>): Tensor<D>[] {
    return this.#parts.map(({ weight, bias, beside }) => {
      const y = product(x, weight, bias, this.#precision, this.#threshold);
      return beside ? beside.addTo(y, x) : y;
    });
  }

  /** The product, where there is one weight. */
  one<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    return this.apply(x)[0]!;
  }

  /** The products that it is. */
  get parts(): readonly Joined[] {
    return this.#parts;
  }

  /** Bytes in memory. */
  get byteLength(): number {
    return this.#parts
      .flatMap(({ weight, bias, beside }) => [weight, bias, beside])
      .reduce((sum, part) => sum + (part?.byteLength ?? 0), 0);
  }

  [Symbol.dispose](): void {
    for (const { weight, bias, beside } of this.#parts)
      for (const part of [weight, bias, beside]) part?.[Symbol.dispose]();
  }
}

function product<D extends FloatDType>(
  x: Tensor<D>,
  weight: Weight,
  bias: Tensor | undefined,
  precision: Precision,
  threshold: number,
): Tensor<D> {
  if (weight instanceof Int8Weight) return matmul8bit(x, weight, { bias, threshold });
  if (weight instanceof Tensor)
    return linear(x, weight, { bias, precision: densePrecision(x.device, weight, precision) });
  return weight.bits === 4
    ? matmul4bit(x, weight, { bias, precision })
    : matmulBlockwise(x, weight, { bias, precision });
}

/** A dense weight is multiplied exactly, but for halves on an NVIDIA GPU, whose tensor cores take halves of x. */
const densePrecision = (device: Device, { dtype }: Tensor, precision: Precision): Precision | undefined =>
  device.kind === "cuda" && dtype !== "float32" ? precision : undefined;

/** One weight of several, which it takes over; undefined where they are of different kinds, and left as they are. */
function joined(weights: Weight[]): Weight | undefined {
  if (weights.length === 1) return weights[0];
  let whole: Weight;
  if (weights.every((weight) => weight instanceof Int8Weight)) whole = joinedInt8(weights);
  else if (weights.every((weight) => weight instanceof QuantizedTensor) && areAlike(weights)) whole = joinRows(weights);
  else if (weights.every((weight) => weight instanceof Tensor && weight.dtype === (weights[0] as Tensor).dtype))
    whole = joinRows(weights as Tensor[]);
  else return undefined;
  for (const weight of weights) weight[Symbol.dispose]();
  return whole;
}

/** Whether codes can lie behind each other: of one form, and each of whole blocks. */
function areAlike(weights: readonly QuantizedTensor[]): boolean {
  const { bits, quantType, blocksize, code } = weights[0]!;
  const offsets = offsetsOf(weights[0]!);
  return weights.every(
    (weight) =>
      weight.bits === bits &&
      weight.quantType === quantType &&
      (quantType !== undefined || Bun.deepEquals(weight.code, code)) &&
      offsetsOf(weight) === offsets &&
      weight.blocksize === blocksize &&
      weight.size % blocksize === 0,
  );
}

/** The dtype of what is added to each block, where something is. */
function offsetsOf(weight: QuantizedTensor): string | undefined {
  using offsets = weight.offsets;
  return offsets?.dtype;
}

function joinedInt8(weights: readonly Int8Weight[]): Int8Weight {
  const rows = weights.map(({ CB }) => CB.shape[0]!);
  const columns = weights.map(({ SCB }, i) => SCB.reshape([rows[i]!, 1]));
  using scales = joinRows(columns);
  for (const column of columns) column.dispose();
  const CB = joinRows(weights.map(({ CB }) => CB)) as Tensor<"int8">;
  return new Int8Weight(CB, scales.reshape([scales.size]) as Tensor<"float32">);
}

/** The biases behind each other, zeros where a weight has none. */
function joinedBias(weights: readonly Weight[], biases: readonly (Tensor | undefined)[]): Tensor | undefined {
  if (biases.every((bias) => bias === undefined)) return undefined;
  if (biases.length === 1) return biases[0];
  const rows = biases.map((bias, i) => {
    using wide = bias?.cast("float32") ?? Tensor.zeros([weights[i]!.shape[0]!], { device: weights[i]!.device });
    bias?.dispose();
    return wide.reshape([wide.size, 1]);
  });
  using column = joinRows(rows);
  for (const row of rows) row.dispose();
  return column.reshape([column.size]);
}

/** What a {@link Loader} does with weights. */
export interface LoaderOptions extends QuantizeOnLoad, LoadWeightOptions, Pick<LinearOptions, "threshold"> {
  /** By the device where it is left out: what `Model.load` says. */
  readonly precision?: Precision | undefined;
  readonly adapter?: Adapter | undefined;
  /** Notes where each tensor of the source is now. */
  readonly kept: Map<string, Kept>;
}

type Part = "weight" | "bias";

/** Takes modules out of a source, by their names less what stands before all of them. */
export class Loader {
  readonly #source: WeightSource;
  readonly device: Device;
  readonly #root: string;
  readonly #options: LoaderOptions;

  constructor(source: WeightSource, device: Device, root: string, options: LoaderOptions) {
    this.#source = source;
    this.device = device;
    this.#root = root;
    this.#options = options;
  }

  /** The same for modules that go to another device. */
  on(device: Device): Loader {
    return device === this.device ? this : new Loader(this.#source, device, this.#root, this.#options);
  }

  has(module: string, part: Part = "weight"): boolean {
    return this.#source.has(this.#nameOf(module, part)) || this.#options.adapter?.has(module, part) === true;
  }

  /**
   * A tensor of the adapter where it has one whole, else of the source. What is quantised next need not be copied
   * before.
   *
   * @param staysDense it is not, whatever the options say
   */
  #load(module: string, part: Part = "weight", staysDense = true): Weight {
    const { adapter, mmap = false, quantType } = this.#options;
    const whole = adapter?.whole(module, part, this.device);
    const options = { mmap: mmap || (quantType !== undefined && !staysDense) };
    return whole ?? this.#source.load(this.#nameOf(module, part), this.device, options);
  }

  /** A dense tensor, as it is. */
  dense(module: string, part: Part = "weight"): Tensor {
    const weight = this.#load(module, part);
    if (weight instanceof Tensor) return this.#keep(module, weight, part);
    weight[Symbol.dispose]();
    const name = this.#nameOf(module, part);
    throw new BnbError(`${this.#source.path}: ${name} is quantised, expected a dense tensor.`, "unsupported");
  }

  bias(module: string): Tensor | undefined {
    return this.has(module, "bias") ? this.dense(module, "bias") : undefined;
  }

  /**
   * Modules that take the same input.
   *
   * @param how `dense`: they are not quantised, whatever the options say; `apart`: they are not joined
   */
  linear(modules: readonly string[], how: { dense?: boolean; apart?: boolean } = {}): Linear {
    const weights: Weight[] = [];
    const biases: (Tensor | undefined)[] = [];
    for (const module of modules) {
      weights.push(this.#quantized(module, how.dense ?? false));
      biases.push(this.bias(module));
    }
    const { mmap = false, quantType } = this.#options;
    return this.#linear(modules, weights, biases, how.apart ?? (mmap && quantType === undefined));
  }

  #linear(modules: readonly string[], weights: Weight[], biases: (Tensor | undefined)[], apart = false): Linear {
    const { adapter, threshold } = this.#options;
    const precision = this.#options.precision ?? (this.device.kind === "cuda" ? "medium" : "high");
    const beside: LinearOptions["beside"] = (which, shapes) =>
      adapter?.beside(
        which.map((i) => modules[i]!),
        shapes,
        this.device,
      );
    const [rows, hasBias] = [weights.map(({ shape }) => shape[0]!), biases.map((bias) => bias !== undefined)];
    const made = new Linear(weights, biases, { precision, threshold, apart, beside });
    this.#keepJoined(modules, made, rows, hasBias);
    return made;
  }

  #keep<W extends Weight>(module: string, weight: W, part: Part = "weight", rows?: Kept["rows"]): W {
    this.#options.kept.set(this.#nameOf(module, part), { weight, rows });
    return weight;
  }

  #keepJoined(modules: readonly string[], made: Linear, rows: readonly number[], hasBias: readonly boolean[]): void {
    const { parts } = made;
    let from = 0;
    for (const [i, module] of modules.entries()) {
      const isJoined = parts.length < modules.length;
      const { weight, bias } = parts[isJoined ? 0 : i]!;
      const range = isJoined ? { from, to: from + rows[i]! } : undefined;
      this.#keep(module, weight, "weight", range);
      if (bias && hasBias[i]) this.#keep(module, bias, "bias", range);
      from += rows[i]!;
    }
  }

  /** What a table takes in its file: on a device as much, or less where it is quantised to bytes. */
  tableBytes(module: string): number {
    return this.#source.bytesOf(this.#nameOf(module, "weight"));
  }

  /** A table to look rows up in and to multiply with as a head. */
  table(module: string): Tensor<FloatDType> | QuantizedTensor {
    const weight = this.#load(module, "weight", false);
    if (weight instanceof Int8Weight)
      throw new BnbError(`${this.#source.path}: ${module} is in LLM.int8(), expected a dense table.`, "unsupported");
    return this.#keep(module, this.#byteQuantized(weight));
  }

  /** The product with a table, as a module; takes it over. A tied one has another name in the checkpoint. */
  linearOf(module: string, table: Weight, bias: Tensor | undefined): Linear {
    const isTied = !this.has(module);
    const made = this.#linear([module], [table], [bias]);
    if (isTied) this.#options.kept.delete(this.#nameOf(module));
    return made;
  }

  /**
   * A head is quantised to bytes where the rest is quantised: in 4 bits it is what changes every text
   * (docs/models.md).
   */
  #byteQuantized(weight: Tensor | QuantizedTensor): Tensor<FloatDType> | QuantizedTensor {
    if (!this.#options.quantType || !(weight instanceof Tensor)) return weight as Tensor<FloatDType> | QuantizedTensor;
    using dense = weight;
    return quantizeBlockwise(dense, { code: Codebook.named("int8"), blocksize: 64 });
  }

  #quantized(module: string, keepsDense: boolean): Weight {
    const { quantType, blocksize = 64, doubleQuant = false } = this.#options;
    const weight = this.#load(module, "weight", keepsDense);
    if (!quantType || keepsDense) return weight;
    if (!(weight instanceof Tensor)) {
      weight[Symbol.dispose]();
      const name = this.#nameOf(module);
      throw new BnbError(`${this.#source.path}: ${name} is quantised already: load it without quantType.`);
    }
    using dense = weight;
    if (quantType === "int8") return Int8Weight.quantize(dense);
    return quantize4bit(dense, { quantType, blocksize, compressStatistics: doubleQuant });
  }

  #nameOf(module: string, part: Part = "weight"): string {
    return `${this.#source.has(`${module}.${part}`) ? "" : this.#root}${module}.${part}`;
  }
}
