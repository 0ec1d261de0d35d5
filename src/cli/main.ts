#!/usr/bin/env -S bun --no-env-file --config=/dev/null
// The command line: which commands there are. Its first line keeps Bun from loading the .env and the bunfig.toml
// of the current folder, which may be a model from a stranger.
import { Command } from "commander";
import { version } from "../version.ts";
import { doctorCommand } from "./doctor.ts";
import { runCommand } from "./run.ts";

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

Exit status: 0 done; 1 not done, or a check failed; 2 the command was not understood; 3 not supported;
4 the device failed or has no memory left.`,
  )
  .configureHelp({ showGlobalOptions: true });

/** Every other command needs the native library; where it can't be opened, doctor is there to say so. */
async function commands(): Promise<Command[]> {
  const doctor = doctorCommand();
  if (process.argv[2] === doctor.name()) return [doctor];
  const { commandsOfLibrary } = await import("./commands.ts");
  return [...commandsOfLibrary(), doctor];
}

await runCommand(async () => {
  for (const command of await commands()) program.addCommand(command);
  return program;
});
