// Owns a model's way back into a folder: what was loaded under which names, and what each weight is written as.
import type { Step } from "../checkpoint/checkpoint.ts";
import { type Config, withOwnQuantization, withoutQuantization } from "../checkpoint/huggingface.ts";
import { specsBlockwise, specsInt8 } from "../checkpoint/state.ts";
import { tensorSource, toStateDict } from "../checkpoint/statedict.ts";
import { type Progress, type TransformReport, write } from "../checkpoint/transform.ts";
import { Codebook } from "../codebook.ts";
import { BnbError } from "../error.ts";
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
  /** Begin another shard before one grows above this many bytes; 50 GB by default. */
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
  const { quantType, blocksize = 64 } = quantization;
  const config =
    origin.config && quantType
      ? withOwnQuantization(withoutQuantization(origin.config), quantType, blocksize)
      : origin.config;
  const weights = [...kept.values()].filter(({ weight }) => !(weight instanceof Tensor)).length;
  return await write(origin, steps, config, weights, [], options, { texts: origin.texts });
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
  checkForm(name, weight);
  const { bits, blocksize, nestedBlocksize } = weight;
  const quantType = weight.quantType === "nf4" || weight.quantType === "fp4" ? weight.quantType : "blockwise";
  const specs = specsBlockwise(name, shape, { quantType, bits, blocksize, storage: "uint8", nestedBlocksize });
  const make = () => {
    if (shape[0] === weight.shape[0]) return toStateDict(name, weight);
    using part = rowsOf(weight, rows);
    return toStateDict(name, part);
  };
  return { specs, make };
}

/** Of a weight of another program's format, which has scales or offsets that bitsandbytes' keys have no place for. */
function checkForm(name: string, weight: QuantizedTensor): void {
  using scales = weight.absmax;
  using offsets = weight.offsets;
  if (!offsets && (weight.nested || scales.dtype === "float32")) return;
  const what = `Model.save: ${name} is in a form of GGUF's or MLX's`;
  throw new BnbError(
    `${what}, which a folder of safetensors has no place for: \`bunsandbytes convert\` makes one of the file.`,
    "unsupported",
  );
}

/** Rows of a weight that was joined, and so has whole blocks in each part and no nested scales. */
function rowsOf(weight: QuantizedTensor, { from, to }: Rows): QuantizedTensor {
  const { bits, blocksize, dtype } = weight;
  const columns = weight.shape[1]!;
  using allCodes = weight.codes;
  using allScales = weight.absmax;
  using codes = allCodes.slice((from * columns * bits) / 8, (to * columns * bits) / 8);
  using absmax = allScales.slice((from * columns) / blocksize, (to * columns) / blocksize);
  const code = weight.quantType ? Codebook.named(weight.quantType) : Codebook.from(weight.code);
  return QuantizedTensor.fromParts({ codes, absmax, code, blocksize, dtype, shape: [to - from, columns] });
}
