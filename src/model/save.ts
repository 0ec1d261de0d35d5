// A model's way back into a folder: what was loaded under which names, and what each weight is written as.
import type { Step } from "../checkpoint/checkpoint.ts";
import { type Config, quantMethod, withOwnQuantization, withoutQuantization } from "../checkpoint/huggingface.ts";
import { specsBlockwise, specsInt8 } from "../checkpoint/state.ts";
import { stateTypeOf, tensorSource, toStateDict } from "../checkpoint/statedict.ts";
import { type Progress, type TransformReport, write } from "../checkpoint/transform.ts";
import { Codebook } from "../codebook.ts";
import type { FloatDType } from "../dtype.ts";
import { Int8Weight } from "../int8_weight.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import type { QuantizeOnLoad, Weight } from "./weights.ts";

/** Options of {@link Model.save}. */
export interface SaveOptions {
  /** The folder to write. It must not exist, or be empty, unless `force`. */
  readonly output: string;
  /** Replace the weights, config.json and other files of the same names that are there. */
  readonly force?: boolean | undefined;
  /** The most bytes of a shard; 50 GB by default. */
  readonly shardBytes?: number | undefined;
  /** Called when a tensor has been written. */
  readonly onProgress?: ((progress: Progress) => void) | undefined;
}

/** Where a tensor of the checkpoint is now: all of a weight, or some rows of one that others were joined to. */
export interface Kept {
  readonly weight: Weight;
  readonly rows?: { readonly from: number; readonly to: number } | undefined;
}

/** What a saved folder has beside weights. */
export interface Origin {
  readonly path: string;
  readonly config: Config | undefined;
  /** Texts of files that do not lie in the folder that it came from. */
  readonly texts: ReadonlyMap<string, string>;
}

/** @throws BnbError naming the first weight that a checkpoint has no form for */
export async function saveModel(
  kept: ReadonlyMap<string, Kept>,
  origin: Origin,
  quantization: QuantizeOnLoad,
  options: SaveOptions,
): Promise<TransformReport> {
  const steps = Array.from(kept, ([name, place]) => stepOf(name, place));
  const config = origin.config && configOf(origin.config, kept, quantization);
  const weights = [...kept.values()].filter(({ weight }) => !(weight instanceof Tensor)).length;
  return await write(origin, steps, config, weights, [], options, { texts: origin.texts });
}

/** The config, and what says how weights are quantised where that is no longer what it said. */
function configOf(config: Config, kept: ReadonlyMap<string, Kept>, { quantType, blocksize = 64 }: QuantizeOnLoad) {
  if (quantType) return withOwnQuantization(withoutQuantization(config), quantType, blocksize);
  const isOwn = ({ weight }: Kept) => weight instanceof QuantizedTensor && stateTypeOf(weight) === "blockwise";
  if (quantMethod(config) === "blockwise" || ![...kept.values()].some(isOwn)) return config;
  return withOwnQuantization(withoutQuantization(config), "blockwise");
}

function stepOf(name: string, { weight, rows }: Kept): Step {
  const [all, ...rest] = weight.shape;
  const shape = [rows ? rows.to - rows.from : all!, ...rest];
  const parameters = shape.reduce((product, extent) => product * extent, 1);
  const inputBytes = Math.ceil((weight.byteLength * shape[0]!) / all!);
  const { specs, make } = formOf(name, weight, shape, rows ?? { from: 0, to: all! });
  const run: Step["run"] = (write) => {
    // A part whose length is open until it is written goes before what follows it in the file.
    const parts = make().sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
    for (const { name, bytes } of parts) write(name, bytes as ArrayBufferView);
  };
  return { name, specs, inputBytes, parameters, run };
}

type Rows = NonNullable<Kept["rows"]>;

/** What is written for a weight, and how that is made. */
function formOf(name: string, weight: Weight, shape: readonly number[], rows: Rows) {
  if (weight instanceof Tensor) {
    const source = tensorSource(name, weight);
    const make = () => {
      using part = weight.slice(rows.from, rows.to);
      return [{ name, bytes: part.read() as ArrayBufferView }];
    };
    return { specs: [{ name, dtype: source.dtype, shape }], make };
  }
  if (weight instanceof Int8Weight) {
    const make = () => {
      using part = new Int8Weight(weight.CB.slice(rows.from, rows.to), weight.SCB.slice(rows.from, rows.to));
      return toStateDict(name, part);
    };
    return { specs: specsInt8(name, shape), make };
  }
  const { bits, blocksize, nestedBlocksize, stores } = weight;
  const options = {
    quantType: stateTypeOf(weight),
    bits,
    blocksize,
    storage: "uint8",
    nestedBlocksize,
    stores,
  } as const;
  const specs = specsBlockwise(name, shape, options);
  const make = () => {
    if (shape[0] === weight.shape[0]) return toStateDict(name, weight);
    using part = rowsOf(weight, rows);
    return toStateDict(name, part);
  };
  return { specs, make };
}

/** Rows of a weight that was joined, and so has whole blocks, groups of them and bytes in each part. */
function rowsOf(weight: QuantizedTensor, { from, to }: Rows): QuantizedTensor {
  const { bits, blocksize, nestedBlocksize, dtype, offset, state2, stores } = weight;
  const columns = weight.shape[1]!;
  const [first, last] = [from * columns, to * columns];
  const part = <T extends Tensor>(all: T | undefined, elements: number): T | undefined => {
    using whole = all;
    return whole?.slice(Math.floor(first / elements), Math.ceil(last / elements)) as T | undefined;
  };
  const elementsOf = (store: string | undefined) =>
    store === "uint8" ? (8 * blocksize) / stores.nested!.bits : blocksize;
  using codes = part(weight.codes, 8 / bits)!;
  using absmax = part(weight.absmax as Tensor<FloatDType>, elementsOf(stores.absmax))!;
  using offsets = part(weight.offsets as Tensor<FloatDType> | undefined, elementsOf(stores.offsets));
  const code = weight.quantType ? Codebook.named(weight.quantType) : Codebook.from(weight.code);
  const common = { codes, absmax, offsets, code, blocksize, dtype, shape: [to - from, columns] };
  if (!state2) return QuantizedTensor.fromParts(common);
  const group = blocksize * nestedBlocksize;
  using nestedAbsmax = part(state2.absmax, group)!;
  using nestedOffsets = part(state2.offsets, group);
  using offsetsAbsmax = part(state2.offsetsAbsmax, group);
  const nested = {
    ...{ absmax: nestedAbsmax, code: Codebook.from(state2.code), blocksize: nestedBlocksize, offset },
    ...{ offsets: nestedOffsets, offsetsAbsmax },
  };
  return QuantizedTensor.fromParts({ ...common, nested });
}
