// `bunsandbytes convert`.
import { Command, Option } from "commander";
import { architectures } from "../checkpoint/gguf_architectures.ts";
import { ggufTypes } from "../checkpoint/gguf_types.ts";
import { convertGguf } from "../checkpoint/transform.ts";
import { type QuantizeFlags, quantizeOptions, withQuantizing, withWriting } from "./options.ts";
import { runTransform } from "./report.ts";

export function convertCommand(): Command {
  const command = new Command("convert")
    .description("Make a Hugging Face model of a GGUF file, its tokenizer included.")
    .argument("<file>", "a .gguf file, of a split one any part")
    .addHelpText(
      "after",
      `
Architectures: ${Object.keys(architectures).join(", ")}.
Types: ${Object.values(ggufTypes)
        .map(({ name }) => name)
        .join(", ")}.

Examples:
  bunsandbytes convert model.Q4_K_M.gguf --output ./model
  bunsandbytes convert model.Q8_0.gguf --output ./model-nf4 --quant-type nf4`,
    );
  const quantType = new Option("--quant-type <type>", "quantise the Linear weights, instead of writing floats");
  return withQuantizing(withWriting(command, "bfloat16"), quantType).action((file: string, flags: QuantizeFlags) =>
    runTransform("Converting", flags, (options) =>
      convertGguf(file, { ...quantizeOptions(flags, file, flags.quantType ?? "converted"), ...options }),
    ),
  );
}
