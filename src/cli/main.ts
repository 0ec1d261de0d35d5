#!/usr/bin/env bun
// Owns the command line: which commands there are.
import { Command } from "commander";
import { version } from "../version.ts";
import { benchCommand } from "./bench.ts";
import { convertCommand } from "./convert.ts";
import { dequantizeCommand } from "./dequantize.ts";
import { doctorCommand } from "./doctor.ts";
import { inspectCommand } from "./inspect.ts";
import { quantizeCommand } from "./quantize.ts";
import { runCommand } from "./run.ts";
import { verifyCommand } from "./verify.ts";

const program = new Command("bunsandbytes")
  .description("Quantise models to 4 and 8 bits, and read and write what bitsandbytes and transformers do.")
  .version(version)
  .addHelpText(
    "after",
    `
Examples:
  bunsandbytes quantize ./Qwen2.5-0.5B --output ./Qwen2.5-0.5B-nf4 --double-quant
  bunsandbytes inspect ./Qwen2.5-0.5B-nf4 --error-against ./Qwen2.5-0.5B
  bunsandbytes convert model.Q4_K_M.gguf --output ./model --quant-type nf4

Exit status: 0 done; 1 the input is damaged, or a check failed; 2 the command was not understood; 3 not supported;
4 the device failed or has no memory left.`,
  )
  .configureHelp({ showGlobalOptions: true });

const commands = [
  quantizeCommand,
  dequantizeCommand,
  convertCommand,
  inspectCommand,
  verifyCommand,
  doctorCommand,
  benchCommand,
];
for (const command of commands) {
  program.addCommand(command().exitOverride());
}
await runCommand(program);
