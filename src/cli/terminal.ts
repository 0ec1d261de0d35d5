// How far a job is, for people, and how sizes and numbers are said. It goes to standard error.
import { SingleBar } from "cli-progress";
import { printable } from "../printable.ts";
import type { ReportOptions } from "./options.ts";
import { warn } from "./print.ts";

/** Shows how far a job is: a bar with rate and remaining time on a terminal, a line every tenth elsewhere. */
export interface ProgressReporter {
  update(done: number, total: number, label?: string): void;
  stop(): void;
}

/**
 * @param action what is being done, such as `Quantising`
 * @param format how `done` and `total` are printed, and so what the rate is in
 */
export function progress(action: string, format: (value: number) => string, options: ReportOptions): ProgressReporter {
  if (options.quiet) return { update() {}, stop() {} };
  return process.stderr.isTTY ? bar(action, format) : lines(action, format);
}

function bar(action: string, format: (value: number) => string): ProgressReporter {
  const started = performance.now();
  const single = new SingleBar({
    format: `${action} {bar} {percentage}% · {shown} · {rate}/s · {eta_formatted} left · {label}`,
    barCompleteChar: "━",
    barIncompleteChar: "─",
    barsize: 24,
    clearOnComplete: true,
    gracefulExit: false,
  });
  let running = false;
  return {
    update(done, total, label = "") {
      const rate = format(done / ((performance.now() - started) / 1000));
      const payload = { shown: `${format(done)} of ${format(total)}`, rate, label: printable(label) };
      if (!running) single.start(total, 0, payload);
      running = true;
      single.update(done, payload);
    },
    stop() {
      if (running) single.stop();
    },
  };
}

function lines(action: string, format: (value: number) => string): ProgressReporter {
  const started = performance.now();
  let tenth = 0;
  return {
    update(done, total) {
      const reached = Math.floor((10 * done) / total);
      if (reached <= tenth) return;
      tenth = reached;
      const rate = format(done / ((performance.now() - started) / 1000));
      warn(`${action}: ${10 * tenth}% (${format(done)} of ${format(total)}, ${rate}/s)`);
    },
    stop() {},
  };
}

/** `1.23 GB`. */
export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(1, count)) / 3)));
  return power === 0 ? `${Math.round(count)} B` : `${(count / 1000 ** power).toPrecision(3)} ${units[power]}`;
}

/** A whole number of things. */
export function counted(count: number, thing: string): string {
  return `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;
}
