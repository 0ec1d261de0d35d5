// The way from a model to one of MLX's: its matrices as affine codes, in a folder that mlx_lm loads.

import { BnbError } from "../error.ts";
import { quantizeAffine } from "../quantize_affine.ts";
import { show } from "../signature.ts";
import { checkPlain, noConfig, nothingToDo } from "./advice.ts";
import { checkPath, checkTransform, signatures } from "./arguments.ts";
import { openCheckpoint, type Step } from "./checkpoint.ts";
import {
  type Config,
  chooseModules,
  configDtype,
  kindOf,
  readConfig,
  type TensorShape,
  withDtype,
  withoutQuantization,
} from "./huggingface.ts";
import { inMlxOrder } from "./mlx.ts";
import { isHead, isReplaced, judge } from "./modules.ts";
import { floatDtypes } from "./state.ts";
import { floatDtypeOf, fromSafetensors, keepStep, type Source } from "./steps.ts";
import { type TransformOptions, type TransformReport, write } from "./transform.ts";

/** Options of {@link quantizeToMlx}, under MLX's names, except for `blocksize`. */
export interface MlxOptions extends TransformOptions {
  /** Bits of a code: 2, 3, 4, 5, 6 or 8; 4 by default. */
  readonly bits?: number | undefined;
  /** Elements of a row that share a scale and an offset, MLX's `group_size`: 32, 64 or 128; 64 by default. */
  readonly blocksize?: number | undefined;
}

/**
 * Quantises a model as `mlx_lm.convert --quantize` does, code for code: linear layers, embeddings and the head, into a
 * folder that MLX loads.
 *
 * @example
 * ```ts
 * const report = await checkpoint.quantizeToMlx("./model", { output: "./model-mlx", dtype: "float16" });
 * report.weights; // → 9
 * ```
 *
 * @throws BnbError if the model is quantised already, or its family stores its weights by columns
 */
export async function quantizeToMlx(input: string, options: MlxOptions): Promise<TransformReport> {
  const me = signatures.quantizeToMlx;
  checkPath(me, input, "input");
  checkTransform(me, options);
  const { bits = 4, blocksize = 64 } = options;
  if (![2, 3, 4, 5, 6, 8].includes(bits)) throw me.fail(`bits is ${show(bits)}; MLX has 2, 3, 4, 5, 6 and 8.`);
  if (![32, 64, 128].includes(blocksize)) throw me.fail(`blocksize is ${show(blocksize)}; MLX has 32, 64 and 128.`);
  using checkpoint = openCheckpoint(input);
  const config = readConfig(checkpoint.directory);
  const leftover = checkPlain(input, checkpoint, config);
  const tensors = [...checkpoint.tensors.values()];
  const wanted = options.dtype ?? configDtype(config);
  const chosen = weightsFor(tensors, config, blocksize);
  if (chosen.size === 0) throw nothingToDo(input, chooseModules(tensors, config));
  const steps = tensors.map((tensor) =>
    chosen.has(tensor.name)
      ? quantizeMlxStep(fromSafetensors(tensor), wanted, bits, blocksize)
      : keepStep(tensor, wanted),
  );
  const quantization = { bits, group_size: blocksize, mode: "affine" };
  const plain = config && withoutQuantization(config);
  const written = plain && {
    ...(wanted ? withDtype(plain, wanted) : plain),
    quantization,
    quantization_config: quantization,
  };
  const notes = [...(config ? [] : [noConfig(input)]), ...leftover];
  return await write(checkpoint, steps, written, chosen.size, notes, options, { metadata: { format: "mlx" } });
}

/** The matrices that MLX quantises: of linear layers and embeddings, if groups divide their rows. */
function weightsFor(tensors: readonly TensorShape[], config: Config | undefined, blocksize: number): Set<string> {
  const shapes = new Map(tensors.map(({ name, shape }) => [name, shape]));
  const chosen = new Set<string>();
  for (const [module, verdict] of judge(shapes, kindOf(config))) {
    const name = `${module}.weight`;
    if (verdict === "Conv1D")
      throw new BnbError(
        `${name} is stored by columns, which mlx_lm undoes only where it is not quantised.`,
        "unsupported",
      );
    const isMatrix = isReplaced(verdict) || isHead(verdict) || verdict === "Embedding";
    const isExpert = /\.experts\.\d+\./.test(module);
    const tensor = tensors.find((one) => one.name === name)!;
    if ((isMatrix || isExpert) && floatDtypeOf(tensor.dtype) && tensor.shape[1]! % blocksize === 0) chosen.add(name);
  }
  return chosen;
}

/** Writes a weight as MLX's three tensors, having rounded it to a dtype first, as mlx_lm does. */
function quantizeMlxStep(source: Source, to: Source["dtype"] | undefined, bits: number, blocksize: number): Step {
  const dtype = to ?? source.dtype;
  const [rows, columns] = source.shape as [number, number];
  const module = source.name.slice(0, -".weight".length);
  const groups = [rows, columns / blocksize];
  const names = { codes: source.name, scales: `${module}.scales`, biases: `${module}.biases` };
  const specs = [
    { name: names.codes, dtype: "U32" as const, shape: [rows, (columns * bits) / 32] },
    { name: names.scales, dtype: floatDtypes[dtype], shape: groups },
    { name: names.biases, dtype: floatDtypes[dtype], shape: groups },
  ];
  const run: Step["run"] = (put) => {
    using loaded = source.load();
    using weight = loaded.cast(dtype);
    using q = quantizeAffine(weight, { bits, blocksize });
    using codes = q.codes;
    using scales = q.absmax;
    using offsets = q.offsets!;
    put(names.biases, offsets.read());
    put(names.scales, scales.read());
    put(names.codes, inMlxOrder(codes.read(), bits));
  };
  return { name: source.name, specs, inputBytes: source.inputBytes, parameters: rows * columns, run };
}
