// `bunsandbytes generate`.
import { Command } from "commander";
import { loadModel, type SamplingFlags, samplingOptions, standardInput, withSampling } from "./models.ts";
import { line, print, printJson, printPiece, warn } from "./print.ts";

interface Flags extends SamplingFlags {
  readonly stop?: readonly string[];
}

export function generateCommand(): Command {
  const command = new Command("generate")
    .description("Continue a text with a model, as it comes.")
    .argument("<model>", "the model's directory or .gguf file")
    .argument("[prompt]", "the text to continue; standard input where it is left out")
    .option("--stop <text>", "end before this text (repeatable)", (value: string, all: string[] = []) => [
      ...all,
      value,
    ])
    .option("--json", "print the whole text as JSON, with ids and usage, and nothing else")
    .addHelpText(
      "after",
      `
Examples:
  bunsandbytes generate ./SmolLM2-135M-nf4 "The capital of France is" --max-tokens 32
  bunsandbytes generate ./SmolLM2-135M --quant-type nf4 --temperature 0.7 < prompt.txt`,
    );
  return withSampling(command, 256).action(run);
}

async function run(path: string, prompt: string | undefined, flags: Flags): Promise<void> {
  const text = prompt ?? (await standardInput());
  using model = await loadModel(path, flags);
  const generation = model.generate(text, { ...samplingOptions(flags), stop: flags.stop ?? [] });
  const started = performance.now();
  if (flags.json) {
    const whole = await generation.text();
    const { ids, finishReason, usage } = generation;
    return printJson({ text: whole, ids, finishReason, usage });
  }
  for await (const piece of generation) printPiece(piece);
  print("");
  if (flags.quiet) return;
  const { completionTokens } = generation.usage;
  const rate = (completionTokens / ((performance.now() - started) / 1000)).toFixed(1);
  warn(line`${completionTokens} tokens, ${rate} a second`);
}
