// `bunsandbytes dequantize`.
import { Command } from "commander";
import { dequantizeCheckpoint } from "../checkpoint/transform.ts";
import { transformOptions, type WriteFlags, withWriting } from "./options.ts";
import { runTransform } from "./report.ts";

export function dequantizeCommand(): Command {
  const command = new Command("dequantize")
    .description("Write a bitsandbytes model's weights out as floats.")
    .argument("<input>", "a model's directory, a safetensors file, or its index")
    .addHelpText(
      "after",
      `
Example:
  bunsandbytes dequantize ./model-nf4 --output ./model-bf16 --dtype bfloat16`,
    );
  return withWriting(command, "as it was before quantising").action((input: string, flags: WriteFlags) =>
    runTransform("Dequantising", flags, (options) =>
      dequantizeCheckpoint(input, { ...transformOptions(flags, input, "floats"), ...options }),
    ),
  );
}
