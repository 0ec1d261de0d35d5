// `bunsandbytes tune`: times the choices among kernels on this machine's GPU, and keeps what was faster.
import { Command } from "commander";
import { deviceTimer, tune } from "../bench/tune.ts";
import { currentDevice } from "../device.ts";
import { BnbError } from "../error.ts";
import { keepTuning } from "../tuning.ts";
import { Printable, print, printJson } from "./print.ts";
import { table } from "./table.ts";

/** So long each of about 25 timings: with what the kernels' compiling takes, under a minute. */
const milliseconds = 400;

export function tuneCommand(): Command {
  return new Command("tune")
    .description(
      "Time the choices among the GPU's kernels, in under a minute, and keep the faster ones for this machine.",
    )
    .option("--json", "print what was timed as JSON on standard output")
    .addHelpText(
      "after",
      `
What is found is kept for this GPU and this version in the user's cache, and used from then on: doctor shows it, and
BNB_TUNE=0 in the environment ignores it. Results differ in their last bits only.

Example:
  bunsandbytes tune`,
    )
    .action((flags: { json?: boolean }) => {
      const device = currentDevice();
      if (device.kind === "cpu")
        throw new BnbError(
          "tune: the current device is the CPU, whose kernels need none: it is for a GPU",
          "unsupported",
        );
      using time = deviceTimer(device, milliseconds);
      const { sizes, choices } = tune(device, time);
      const path = keepTuning(device.description, sizes);
      if (flags.json) return printJson({ device: device.description, sizes, choices, path }, 2);
      const rows = choices.map(({ size, rows, dtype, times, chosen }) => [
        size,
        `${rows} ${rows === 1 ? "row" : "rows"}, ${dtype}`,
        times.map(([value, ms]) => `${value}: ${ms.toFixed(4)}`).join("  "),
        String(chosen),
      ]);
      print(new Printable(table([["size", "product", "ms by value", "chosen"], ...rows])), `Kept in ${path}.`);
    });
}
