// `bunsandbytes perplexity`.
import { readFileSync } from "node:fs";
import { Command, InvalidArgumentError } from "commander";
import { perplexity } from "../model/perplexity.ts";
import { type LoadFlags, loadModel, withLoading } from "./models.ts";
import { line, print, printJson } from "./print.ts";
import { progress } from "./terminal.ts";

interface Flags extends LoadFlags {
  readonly window: number;
}

export function perplexityCommand(): Command {
  const command = new Command("perplexity")
    .description("How well a model foretells a text: less is better, and what quantising costs shows in it.")
    .argument("<model>", "the model's directory or .gguf file")
    .argument("<file>", "a text file")
    .option("--window <n>", "tokens that are read at once", count, 512)
    .option("--json", "print the result as JSON on standard output, and nothing else there")
    .addHelpText("after", "\nExample:\n  bunsandbytes perplexity ./SmolLM2-135M-nf4 alice.txt");
  return withLoading(command).action(run);
}

async function run(path: string, file: string, flags: Flags): Promise<void> {
  const text = readFileSync(file, "utf8");
  using model = await loadModel(path, flags);
  const ids = model.tokenizer.encode(text);
  const window = Math.min(flags.window, model.architecture.positions);
  const reporter = progress("Reading", (tokens) => `${tokens.toFixed(0)} tokens`, flags);
  const found = await perplexity(model, ids, { window, onProgress: (done, total) => reporter.update(done, total) });
  reporter.stop();
  if (flags.json) return printJson({ ...found, window });
  print(line`perplexity ${found.perplexity.toFixed(4)} over ${found.tokens} tokens, in windows of ${window}`);
}

function count(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 2) return value;
  throw new InvalidArgumentError("Expected a whole number of at least 2.");
}
