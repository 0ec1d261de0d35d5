// What the commands that write a model have in common: progress meanwhile, a report at the end.
import type { Progress, TransformOptions, TransformReport } from "../checkpoint/transform.ts";
import type { ReportOptions } from "./options.ts";
import { print, printJson } from "./print.ts";
import { bytes, counted, progress } from "./terminal.ts";

/** Runs a job with progress and prints its report. */
export async function runTransform(
  action: string,
  flags: ReportOptions,
  job: (options: Pick<TransformOptions, "onProgress">) => Promise<TransformReport>,
): Promise<void> {
  const reporter = progress(action, bytes, flags);
  const started = performance.now();
  const onProgress = ({ inputBytes, inputBytesTotal, tensor }: Progress) => {
    reporter.update(inputBytes, inputBytesTotal, tensor);
  };
  let report: TransformReport;
  try {
    report = await job({ onProgress });
  } finally {
    reporter.stop();
  }
  const seconds = (performance.now() - started) / 1000;
  if (flags.json) printJson({ ...report, seconds });
  else if (!flags.quiet) printReport(report, seconds);
}

function printReport(report: TransformReport, seconds: number): void {
  const { output, weights, kept, inputBytes, outputBytes, carried, notes } = report;
  const rate = bytes(inputBytes / seconds);
  print(`Wrote ${output} in ${seconds.toFixed(1)} s (${rate}/s).`);
  print(`  ${bytes(inputBytes)} → ${bytes(outputBytes)}, ${(inputBytes / outputBytes).toFixed(2)}×`);
  print(
    `  ${counted(weights, "weight")} changed, ${counted(kept, "tensor")} kept, ` +
      counted(carried.length, "other file"),
  );
  for (const note of notes) print(`  Note: ${note}`);
}
