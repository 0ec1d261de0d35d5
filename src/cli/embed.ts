// `bunsandbytes embed`.
import { writeFileSync } from "node:fs";
import { Command } from "commander";
import { BnbError } from "../error.ts";
import { type LoadFlags, loadModel, standardInput, withLoading } from "./models.ts";
import { line, print, printJson } from "./print.ts";

interface Flags extends LoadFlags {
  readonly output?: string;
  readonly truncate?: boolean;
}

export function embedCommand(): Command {
  const command = new Command("embed")
    .description("Turn texts into vectors, pooled and normalised as the model's modules.json says.")
    .argument("<model>", "the directory or .gguf file of an encoder, such as all-MiniLM-L6-v2")
    .argument("[text...]", "the texts; where none is given, the lines of standard input")
    .option("-o, --output <file>", "write the vectors as a .npy file, float32 [texts, columns], in place of JSON")
    .option("--truncate", "leave off what is longer than the model reads, in place of an error")
    .addHelpText(
      "after",
      `
Examples:
  bunsandbytes embed ./all-MiniLM-L6-v2 "a guitar" "an instrument"
  bunsandbytes embed ./all-MiniLM-L6-v2 --output vectors.npy < lines.txt`,
    );
  return withLoading(command).action(run);
}

async function run(path: string, given: string[], flags: Flags): Promise<void> {
  const texts = given.length ? given : (await standardInput()).split("\n");
  if (texts.join("") === "") throw new BnbError("embed: there are no texts, expected at least one.");
  using model = await loadModel(path, flags);
  const vectors = await model.embed(texts, { truncate: flags.truncate });
  if (flags.output === undefined) return printJson(vectors.map((vector) => Array.from(vector)));
  writeFileSync(flags.output, npy(vectors));
  if (!flags.quiet) print(line`${vectors.length} vectors of ${vectors[0]!.length} numbers in ${flags.output}`);
}

/** NumPy's format 1.0: a header that is padded to 64 bytes, then the numbers. */
function npy(vectors: readonly Float32Array[]): Uint8Array {
  const shape = `(${vectors.length}, ${vectors[0]!.length})`;
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': ${shape}, }`;
  const padded = header.padEnd(Math.ceil((10 + header.length + 1) / 64) * 64 - 11);
  const start = new Uint8Array([
    0x93,
    ...Buffer.from("NUMPY"),
    1,
    0,
    (padded.length + 1) & 255,
    (padded.length + 1) >> 8,
  ]);
  return Buffer.concat([start, Buffer.from(`${padded}\n`), ...vectors.map((vector) => Buffer.from(vector.buffer))]);
}
