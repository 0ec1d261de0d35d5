// `bunsandbytes verify`.
import { Command } from "commander";
import { verifyCheckpoint } from "../checkpoint/inspect.ts";
import { type ReportOptions, withReporting } from "./options.ts";
import { print, printJson, warn } from "./print.ts";
import { counted, progress } from "./terminal.ts";

export function verifyCommand(): Command {
  const command = new Command("verify")
    .description("Check a model through: files, index, quantisation states, config.json, and no NaN in any weight.")
    .argument("<path>", "a model's directory, a safetensors file, or its index")
    .addHelpText(
      "after",
      `
Exit status 1 tells that something is wrong.

Example:
  bunsandbytes verify ./model-nf4`,
    );
  return withReporting(command).action(async (path: string, flags: ReportOptions) => {
    const reporter = progress("Verifying", (value) => String(Math.round(value)), flags);
    const report = await verifyCheckpoint(path, { onProgress: reporter.update }).finally(reporter.stop);
    const { tensors, quantized, problems } = report;
    if (problems.length > 0) process.exitCode = 1;
    if (flags.json) printJson(report);
    else for (const problem of problems) warn(problem);
    if (flags.json || flags.quiet || problems.length > 0) return;
    const formats = Object.entries(quantized).map(([format, weights]) => `${counted(weights, "weight")} as ${format}`);
    print(`${path} is sound: ${[counted(tensors, "tensor"), ...formats].join(", ")}.`);
  });
}
