// Owns `bunsandbytes quantize`.
import { Command, Option } from "commander";
import { quantizeCheckpoint } from "../checkpoint/transform.ts";
import { type QuantizeFlags, quantizeOptions, withQuantizing, withWriting } from "./options.ts";
import { runTransform } from "./transform.ts";

export function quantizeCommand(): Command {
  const command = new Command("quantize")
    .description("Quantise a model's Linear weights, as transformers does with a BitsAndBytesConfig.")
    .argument("<input>", "a model's directory, a safetensors file, or its index")
    .addHelpText(
      "after",
      `
Embeddings, norms and the output head stay as they are, as in transformers; --skip leaves more alone.
With --scales least-squares weights are closer to the original, and bitsandbytes reads them as any others; by default
they are what bitsandbytes itself would write.

Examples:
  bunsandbytes quantize ./model --output ./model-nf4 --double-quant
  bunsandbytes quantize ./model --output ./model-nf4 --scales least-squares
  bunsandbytes quantize ./model --output ./model-fp4 --quant-type fp4 --dtype bfloat16 --skip down_proj`,
    );
  const quantType = new Option("--quant-type <type>", "the codebook").default("nf4");
  return withQuantizing(withWriting(command, "the model's"), quantType).action((input: string, flags: QuantizeFlags) =>
    runTransform("Quantising", flags, (options) =>
      quantizeCheckpoint(input, { ...quantizeOptions(flags), ...options }),
    ),
  );
}
