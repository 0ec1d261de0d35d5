#!/usr/bin/env bun
// Owns the command line: which commands there are, what becomes of an error, and the exit status.
import { Command, CommanderError } from "commander";
import { BnbError } from "../error.ts";
import { version } from "../version.ts";
import { doctorCommand } from "./doctor.ts";

/** By kind of failure; a signal ends the process as signals do. */
const exitStatus = { failed: 1, usage: 2, unsupported: 3, out_of_memory: 4, device_lost: 4, invalid: 1 } as const;

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

/** Every other command needs the native library; where it can't be opened, doctor is there to say so. */
async function commands(): Promise<Command[]> {
  const doctor = doctorCommand();
  if (process.argv[2] === doctor.name()) return [doctor];
  const { commandsOfLibrary } = await import("./commands.ts");
  return [...commandsOfLibrary(), doctor];
}

/** A mistake in the command line, which commander has explained, or help, which it has printed. */
function endOfParsing(error: CommanderError): number {
  return error.exitCode === 0 ? 0 : exitStatus.usage;
}

/** What the user can do something about is one line; anything else is a defect, and keeps its stack. */
function report(error: unknown): number {
  const system = error instanceof Error && "syscall" in error;
  if (!(error instanceof BnbError) && !system) throw error;
  const code = error instanceof BnbError ? error.code : "failed";
  if (process.argv.includes("--json")) console.log(JSON.stringify({ error: { code, message: error.message } }));
  console.error(`bunsandbytes: ${error.message}`);
  return exitStatus[code];
}

try {
  for (const command of await commands()) program.addCommand(command.exitOverride());
  await program.exitOverride().parseAsync();
} catch (error) {
  process.exitCode = error instanceof CommanderError ? endOfParsing(error) : report(error);
}
