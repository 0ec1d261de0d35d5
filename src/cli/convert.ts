// Owns `bunsandbytes convert`.
import { Command, Option } from "commander";
import { convertGguf } from "../checkpoint/transform.ts";
import { type QuantizeFlags, quantizeOptions, withQuantizing, withWriting } from "./options.ts";
import { runTransform } from "./transform.ts";

export function convertCommand(): Command {
  const command = new Command("convert")
    .description("Make a Hugging Face model of a GGUF file (llama, qwen2 and qwen3 architectures).")
    .argument("<file>", "a .gguf file of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K tensors")
    .addHelpText(
      "after",
      `
The tokenizer is not carried over: copy it from the original model.

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
