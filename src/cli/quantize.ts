// `bunsandbytes quantize`.
import { Command, Option } from "commander";
import { quantizeCheckpoint } from "../checkpoint/transform.ts";
import { quantizeToMlx } from "../checkpoint/transform_mlx.ts";
import { BnbError } from "../error.ts";
import { located } from "./hub.ts";
import { type QuantizeFlags, quantizeOptions, transformOptions, withQuantizing, withWriting } from "./options.ts";
import { runTransform } from "./report.ts";

interface MlxFlags {
  readonly format: "bitsandbytes" | "mlx";
  readonly bits: number;
}

/** @throws BnbError for an option that MLX's format has not */
function mlxOptions({ bits, blocksize, doubleQuant, scales, quantType, skip, best }: QuantizeFlags & MlxFlags) {
  if (doubleQuant || scales !== "absmax" || quantType !== "nf4" || skip || best)
    throw new BnbError("MLX's format has --bits and --blocksize only: leave the other options of quantising out.");
  return { bits, blocksize };
}

export function quantizeCommand(): Command {
  const command = new Command("quantize")
    .description("Quantise a model's Linear weights, as transformers does with a BitsAndBytesConfig.")
    .argument("<input>", "a model's directory, a safetensors file, its index, or org/name of the Hugging Face hub")
    .addHelpText(
      "after",
      `
Embeddings, norms and the output head stay as they are, as in transformers; --skip leaves more alone.
With --scales least-squares weights are closer to the original, and bitsandbytes reads them as any others; --best makes
the scales' blocks smaller too. By default weights are what bitsandbytes itself would write.
transformers loads nf4, fp4 and int8; af4, nf2 to nf7, and dynamic, of 8 bits, are for this library.

Examples:
  bunsandbytes quantize ./model --output ./model-nf4 --double-quant
  bunsandbytes quantize ./model --best
  bunsandbytes quantize ./model --format mlx --bits 4
  bunsandbytes quantize HuggingFaceTB/SmolLM2-135M --double-quant
  bunsandbytes quantize ./model --output ./model-fp4 --quant-type fp4 --dtype bfloat16 --skip down_proj`,
    );
  command
    .addOption(
      new Option("--format <format>", "whose model it becomes")
        .choices(["bitsandbytes", "mlx"])
        .default("bitsandbytes"),
    )
    .addOption(new Option("--bits <n>", "of MLX's codes: 2, 3, 4, 5, 6 or 8").argParser(Number).default(4));
  const quantType = new Option("--quant-type <type>", "the codebook").default("nf4");
  return withQuantizing(withWriting(command, "the model's"), quantType).action(
    async (input: string, flags: QuantizeFlags & MlxFlags) => {
      const path = await located(input, flags);
      if (flags.format === "mlx") {
        const options = { ...transformOptions(flags, input, `mlx-${flags.bits}bit`), ...mlxOptions(flags) };
        await runTransform("Quantising", flags, (more) => quantizeToMlx(path, { ...options, ...more }));
        return;
      }
      const quantize = quantizeOptions(flags, input, flags.best ? "best" : flags.quantType!);
      await runTransform("Quantising", flags, (options) => quantizeCheckpoint(path, { ...quantize, ...options }));
    },
  );
}
