// The way from a model to a package of Core ML's, which Xcode and Apple's systems open.
import fs from "node:fs";
import { join } from "node:path";
import { checkPath, signatures } from "../checkpoint/arguments.ts";
import { openCheckpoint } from "../checkpoint/checkpoint.ts";
import { intoDirectory } from "../checkpoint/output.ts";
import type { OutputOptions } from "../checkpoint/plan.ts";
import { about, StagedFile, writeText } from "../checkpoint/staging.ts";
import type { TransformReport } from "../checkpoint/transform.ts";
import { BnbError } from "../error.ts";
import { readArchitecture } from "../model/config.ts";
import { jsonOf } from "../model/folder.ts";
import { readPooling } from "../model/pooling.ts";
import { checkpointSource } from "../model/weights.ts";
import { type CoremlDtype, CoremlEncoder, checkEncoder } from "./encoder.ts";
import { Program, WeightsFile } from "./program.ts";

/** Options of {@link exportCoreml}. */
export interface CoremlOptions extends OutputOptions {
  /** The dtype to compute in; `"float16"` by default, which the Neural Engine needs. */
  readonly dtype?: CoremlDtype | undefined;
  /**
   * The length of a text in tokens; shorter texts are padded. By default what the model was made for, but at most 512.
   */
  readonly tokens?: number | undefined;
  /**
   * `"int4"`: every matrix as integers in blocks of 32, which macOS 15 and iOS 18 support; matrices in other formats
   * are quantised again. By default matrices stay in the model's own format.
   */
  readonly quantType?: "int4" | undefined;
}

/** A table and then scales of blocks is an order that systems of 2025 brought; without it those of 2024 do. */
const versions = {
  tables: { specification: 10, opset: "CoreML9", systems: "macOS 26 and iOS 26" },
  plain: { specification: 9, opset: "CoreML8", systems: "macOS 15 and iOS 18" },
} as const;

/** Names of the package's parts in its manifest; they have to be unique in it. */
const parts = { model: "4c2ff386-2ab2-4bb3-9837-36a4b638e504", weights: "45e60493-ced1-4312-b660-3448850c0a3a" };

/**
 * Writes an encoder of the BERT family as a Core ML package: an ML program that the Neural Engine can run. Its inputs
 * are `input_ids` and `attention_mask`, its outputs `last_hidden_state` and `embedding`, pooled as
 * sentence-transformers does. NF4 and FP4 weights keep their codes and scales, which needs macOS 26 or iOS 26; 4-bit
 * integers (GPTQ, AWQ, MLX) keep theirs, which needs macOS 15 or iOS 18; other weights become floats. Tests compare
 * coremltools' own arithmetic on the package with transformers; it has not been measured on an Apple system.
 *
 * @example
 * ```ts
 * const report = await checkpoint.exportCoreml("./tiny-bert", { output: "./tiny-bert.mlpackage", tokens: 16 });
 * report.outputBytes > 0; // → true
 * ```
 *
 * @param input a model's directory, dense or quantised by bitsandbytes
 * @throws BnbError for a model that is not such an encoder
 */
export async function exportCoreml(input: string, options: CoremlOptions): Promise<TransformReport> {
  const me = signatures.exportCoreml;
  checkPath(me, input, "input");
  const { output, force, dtype = "float16", tokens: wanted, quantType } = me.members(options, "options");
  if (!me.text(output, "output").endsWith(".mlpackage"))
    throw me.fail(`output ${output} must end with .mlpackage, by which Apple's systems know it.`);
  if (force !== undefined) me.boolean(force, "force");
  me.choice(dtype, "dtype", ["float16", "float32"]);
  if (quantType !== undefined) me.choice(quantType, "quantType", ["int4"]);
  if (wanted !== undefined) me.whole(wanted, "tokens", 1);
  using checkpoint = openCheckpoint(input);
  const { directory } = checkpoint;
  const config = jsonOf(directory, "config.json");
  if (!config) throw new BnbError(`${input} has no config.json; export the model's whole directory.`);
  const architecture = readArchitecture(config, directory);
  checkEncoder(architecture, input);
  const pooling = readPooling(directory);
  const most = architecture.positions;
  const tokens = wanted ?? Math.min(pooling.maxTokens ?? most, most, 512);
  if (tokens > most) throw me.fail(`tokens is ${tokens}; the model reads ${most} at most.`);
  const inputBytes = [...checkpoint.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
  const written = await intoDirectory({ output, force }, { bytes: inputBytes }, async (folder) => {
    const inner = join(folder, "Data/com.apple.CoreML");
    fs.mkdirSync(join(inner, "weights"), { recursive: true });
    using weights = new WeightsFile(join(inner, "weights"));
    const program = new Program(weights);
    const source = checkpointSource(checkpoint);
    const int4 = quantType === "int4";
    const encoder = new CoremlEncoder(program, { weights: source, architecture, pooling, dtype, tokens, int4 });
    const outputs = encoder.build();
    weights.commit();
    const version = encoder.usesTables ? versions.tables : versions.plain;
    writeBytes(join(inner, "model.mlmodel"), program.model(outputs, version).finish());
    writeText(join(folder, "Manifest.json"), `${JSON.stringify(manifest, null, 4)}\n`);
    const files = [join(inner, "model.mlmodel"), join(inner, "weights/weight.bin")];
    const outputBytes = files.reduce((sum, file) => sum + fs.statSync(file).size, 0);
    return { outputBytes, encoder, version, names: outputs.map(({ name }) => name) };
  });
  const { encoder, version, names, notes, ...report } = written;
  const weights = encoder.packed.length;
  const all = [...notesOf(encoder, version.systems, names, tokens), ...notes];
  return { output, weights, kept: encoder.kept, inputBytes, ...report, notes: all };
}

function notesOf(encoder: CoremlEncoder, systems: string, names: readonly string[], tokens: number): string[] {
  const { unpacked, requantised } = encoder;
  const plain = `${unpacked.length} quantised weights, such as ${unpacked[0]}, are floats in it`;
  return [
    `For ${systems} or later. Texts have ${tokens} tokens: fill shorter ones up, with 0 in attention_mask.`,
    ...(requantised.length > 0 ? [`${requantised.length} weights were quantised to int4, in blocks of 32.`] : []),
    ...(unpacked.length > 0 ? [`${plain}: of codes, those of 4 bits in blocks that divide a row stay.`] : []),
    ...(names.includes("embedding")
      ? []
      : ["It has no output for a whole text: only mean and first token are pooled."]),
  ];
}

const part = (name: string, path: string, description: string) => ({
  author: "com.apple.CoreML",
  description,
  name,
  path: `com.apple.CoreML/${path}`,
});

const manifest = {
  fileFormatVersion: "1.0.0",
  itemInfoEntries: {
    [parts.weights]: part("weights", "weights", "CoreML Model Weights"),
    [parts.model]: part("model.mlmodel", "model.mlmodel", "CoreML Model Specification"),
  },
  rootModelIdentifier: parts.model,
};

function writeBytes(path: string, bytes: Uint8Array): void {
  using file = new StagedFile(path);
  try {
    fs.writeFileSync(file.path, bytes, { flag: "wx", flush: true });
  } catch (error) {
    throw about(error, path);
  }
  file.commit();
}
