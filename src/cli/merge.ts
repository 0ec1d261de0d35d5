// `bunsandbytes merge`.
import { Command, Option } from "commander";
import { mergeAdapter } from "../checkpoint/transform.ts";
import { type QuantizeFlags, quantizeOptions, withQuantizing, withWriting } from "./options.ts";
import { runTransform } from "./report.ts";

export function mergeCommand(): Command {
  const command = new Command("merge")
    .description("Put an adapter (LoRA, rsLoRA or DoRA, as PEFT saves it) into the weights of its base.")
    .argument("<base>", "the model's directory, dense or quantised by bitsandbytes")
    .argument("<adapter>", "the adapter's directory: adapter_config.json and adapter_model.safetensors")
    .addHelpText(
      "after",
      `
A dense base gives a dense model, or a quantised one with --quant-type; of a quantised base the weights that change are
quantised again as they were.

Examples:
  bunsandbytes merge ./model ./adapter --output ./merged
  bunsandbytes merge ./model ./adapter --output ./merged-nf4 --quant-type nf4`,
    );
  const quantType = new Option("--quant-type <type>", "quantise the merged model's Linear weights");
  return withQuantizing(withWriting(command, "the base's"), quantType).action(
    (base: string, adapter: string, flags: QuantizeFlags) =>
      runTransform("Merging", flags, (options) =>
        mergeAdapter(base, adapter, { ...quantizeOptions(flags, base, "merged"), ...options }),
      ),
  );
}
