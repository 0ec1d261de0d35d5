// How a command runs: what becomes of an error, and the exit status.
import { type Command, CommanderError } from "commander";
import { BnbError } from "../error.ts";
import { printableLines } from "../printable.ts";
import { OutputError, output, Printable, printJson, warn } from "./print.ts";

/** By kind of failure; a signal ends the process as signals do. */
const exitStatus = { failed: 1, usage: 2, unsupported: 3, out_of_memory: 4, device_lost: 4, invalid: 1 } as const;

/** Makes a command, runs it with the process's arguments, and sets the exit status where either fails. */
export async function runCommand(make: () => Command | Promise<Command>): Promise<void> {
  try {
    const command = await make();
    for (const each of [command, ...command.commands]) each.exitOverride().configureOutput(output);
    await command.parseAsync();
  } catch (error) {
    process.exitCode = error instanceof CommanderError ? endOfParsing(error) : report(error);
  }
}

/** A mistake in the command line, which commander has explained, or help, which it has printed. */
function endOfParsing(error: CommanderError): number {
  return error.exitCode === 0 ? 0 : exitStatus.usage;
}

/** What the user can do something about is one line; anything else is a defect, and keeps its stack. */
function report(error: unknown): number {
  const isKnown = error instanceof BnbError || (error instanceof Error && "syscall" in error);
  if (!isKnown) {
    warn("bunsandbytes: this is a defect of bunsandbytes; please report it.");
    warn(new Printable(printableLines(Bun.inspect(error))));
    return exitStatus.failed;
  }
  const code = error instanceof BnbError ? error.code : "failed";
  const isToldInJson = process.argv.includes("--json") && !(error instanceof OutputError);
  if (isToldInJson) printJson({ error: { code, message: error.message } });
  warn(`bunsandbytes: ${error.message}`);
  return exitStatus[code];
}
