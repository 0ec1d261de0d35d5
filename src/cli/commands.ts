// The list of commands that need the native library: all but doctor.
import type { Command } from "commander";
import { benchCommand } from "./bench.ts";
import { chatCommand } from "./chat.ts";
import { convertCommand } from "./convert.ts";
import { dequantizeCommand } from "./dequantize.ts";
import { embedCommand } from "./embed.ts";
import { exportCommand } from "./export.ts";
import { generateCommand } from "./generate.ts";
import { inspectCommand } from "./inspect.ts";
import { mergeCommand } from "./merge.ts";
import { perplexityCommand } from "./perplexity.ts";
import { quantizeCommand } from "./quantize.ts";
import { serveCommand } from "./serve.ts";
import { tuneCommand } from "./tune.ts";
import { verifyCommand } from "./verify.ts";

export function commandsOfLibrary(): Command[] {
  const commands = [
    chatCommand,
    generateCommand,
    embedCommand,
    perplexityCommand,
    quantizeCommand,
    dequantizeCommand,
    convertCommand,
    mergeCommand,
    exportCommand,
    inspectCommand,
    verifyCommand,
    serveCommand,
    benchCommand,
    tuneCommand,
  ];
  return commands.map((command) => command());
}
