// `bunsandbytes export`.
import { Command, Option } from "commander";
import { exportCoreml } from "../coreml/export.ts";
import { located } from "./hub.ts";
import { type ReportOptions, transformOptions, withReporting } from "./options.ts";
import { runTransform } from "./report.ts";

interface ExportFlags extends ReportOptions {
  readonly format: "coreml";
  readonly output?: string;
  readonly dtype: "float16" | "float32";
  readonly tokens?: number;
  readonly quantType?: "int4";
  readonly force?: boolean;
}

export function exportCommand(): Command {
  const command = new Command("export")
    .description("Write a model for Apple's Core ML: an encoder of BERT's kin, as an .mlpackage.")
    .argument("<input>", "a model's directory, dense or quantised by bitsandbytes, or org/name of the Hugging Face hub")
    .addHelpText(
      "after",
      `
Weights in NF4 or FP4 keep their codes and scales, for macOS 26 and iOS 26 or later; integers of 4 bits, as GPTQ, AWQ and
MLX have them, for macOS 15 and iOS 18; others become floats, or with --quant-type int4 such integers. input_ids and
attention_mask go in, last_hidden_state and embedding come out. Whether it runs on the Neural Engine is Core ML's choice,
and takes float16.

Examples:
  bunsandbytes export ./all-MiniLM-L6-v2-nf4 --format coreml --tokens 128
  bunsandbytes export ./all-MiniLM-L6-v2 --quant-type int4`,
    )
    .addOption(new Option("--format <format>", "of which system").choices(["coreml"]).default("coreml"))
    .option("-o, --output <dir>", "where to write; it ends with .mlpackage (default: here, under the input's name)")
    .addOption(new Option("--dtype <dtype>", "what is computed in").choices(["float16", "float32"]).default("float16"))
    .addOption(
      new Option("--quant-type <type>", "quantise matrices that are not so yet, for macOS 15 and iOS 18").choices([
        "int4",
      ]),
    )
    .option("--tokens <n>", "of a text: shorter ones are filled up (default: what the model says, 512 at most)", Number)
    .option("--force", "replace what is in an output directory that is not empty");
  return withReporting(command).action(async (input: string, flags: ExportFlags) => {
    const { dtype, tokens, force, quantType } = flags;
    const output = flags.output ?? `${transformOptions(flags, input, "").output.slice(0, -1)}.mlpackage`;
    const path = await located(input, flags);
    await runTransform("Exporting", flags, () => exportCoreml(path, { output, dtype, tokens, force, quantType }));
  });
}
