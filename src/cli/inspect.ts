// `bunsandbytes inspect`.
import { Command } from "commander";
import { inspectCheckpoint, summarise, type WeightReport } from "../checkpoint/inspect.ts";
import { type ReportOptions, withReporting } from "./options.ts";
import { Printable, print, printJson } from "./print.ts";
import { table } from "./table.ts";
import { bytes, counted, progress } from "./terminal.ts";

interface InspectFlags extends ReportOptions {
  readonly errorAgainst?: string;
  readonly all?: boolean;
}

/** Rows of a comparison that are printed without `--all`. */
const worstShown = 20;

export function inspectCommand(): Command {
  const command = new Command("inspect")
    .description("Show what a model's weights are stored as, what each costs, and how far it is from the original.")
    .argument("<path>", "a model's directory, a safetensors file, its index, or a .gguf file")
    .option("--error-against <original>", "measure the error of each quantised weight, the worst first")
    .option("--all", "print a row for every tensor, instead of one for each kind, or the worst")
    .addHelpText(
      "after",
      `
Examples:
  bunsandbytes inspect ./model-nf4
  bunsandbytes inspect ./model-nf4 --error-against ./model
  bunsandbytes inspect model.Q4_K_M.gguf --json`,
    );
  return withReporting(command).action(async (path: string, flags: InspectFlags) => {
    const reporter = progress("Comparing", (value) => String(Math.round(value)), flags);
    const options = { errorAgainst: flags.errorAgainst, onProgress: reporter.update };
    const reports = await inspectCheckpoint(path, options).finally(reporter.stop);
    if (flags.json) printJson(reports);
    else show(reports, flags);
  });
}

function show(reports: readonly WeightReport[], { errorAgainst, all }: InspectFlags): void {
  const compared = reports.filter(({ error }) => error);
  if (errorAgainst !== undefined) {
    const shown = all ? compared : compared.slice(0, worstShown);
    const header = ["tensor", "shape", "format", "bits/weight", "bytes", "rms error", "largest error"];
    const rows = shown.map((report) => [report.name, ...columns(report), ...errorColumns(report)]);
    showTable([header, ...rows]);
    const rest = compared.length - shown.length;
    if (rest > 0) print(`… and ${rest} with a smaller error (--all prints them)`);
  } else {
    const rows = all ? reports.map((report) => [report.name, ...columns(report)]) : kinds(reports);
    showTable([["tensor", "shape", "format", "bits/weight", "bytes"], ...rows]);
  }
  print("");
  for (const { format, weights, bytes: size } of summarise(reports)) {
    print(`${format}: ${counted(weights, "tensor")}, ${bytes(size)}`);
  }
  const total = reports.reduce((sum, report) => sum + report.bytes, 0);
  print(`all: ${counted(reports.length, "tensor")}, ${bytes(total)}`);
}

const showTable = (rows: readonly (readonly string[])[]) => print(new Printable(table(rows)));

function columns({ shape, format, bitsPerWeight, bytes: size }: WeightReport): string[] {
  return [shape.join(" × ") || "scalar", format, bitsPerWeight.toFixed(2), bytes(size)];
}

function errorColumns({ error }: WeightReport): string[] {
  return [`${(100 * error!.relative).toPrecision(3)} %`, error!.largest.toPrecision(3)];
}

/** One row for the same tensor of every layer: numbers in names become `*`. */
function kinds(reports: readonly WeightReport[]): string[][] {
  const groups = Map.groupBy(reports, (report) =>
    JSON.stringify([report.name.replace(/(?<=^|\.)\d+(?=\.)/g, "*"), ...columns(report)]),
  );
  return [...groups].map(([key, { length }]) => {
    const [name, ...rest]: string[] = JSON.parse(key);
    return [length === 1 ? name! : `${name} (${length}×)`, ...rest];
  });
}
