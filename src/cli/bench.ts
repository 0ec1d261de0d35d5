// `bunsandbytes bench`: the operations on the size of a language model's layer, timed in one process by tinybench.
import os from "node:os";
import { Command, InvalidArgumentError } from "commander";
import { type BenchCase, layerCases, layerSize } from "../bench/cases.ts";
import { openEnergyMeter } from "../bench/energy.ts";
import { type Limits, measureReads } from "../bench/limits.ts";
import { measure } from "../bench/measure.ts";
import {
  type BenchComparison,
  type BenchRecord,
  type BenchResult,
  compareRecords,
  loadRecord,
  saveRecord,
  schema,
} from "../bench/record.ts";
import { currentDevice, type Device, type DeviceKind } from "../device.ts";
import { BnbError } from "../error.ts";
import { version } from "../version.ts";
import { benchDevices, deviceList } from "./bench_devices.ts";
import { Printable, print, printJson, warn } from "./print.ts";
import { table } from "./table.ts";

/** What a clone of the repository adds to the command. */
export interface BenchExtras {
  /** Cases of every format, run with `--formats`. */
  readonly formats?: () => readonly BenchCase[];
  /** Measures the peak of fp32 multiply-adds on so many threads, in GFLOP/s. */
  readonly peak?: (threads: number) => number;
}

interface Flags {
  readonly time: number;
  readonly filter?: RegExp;
  readonly save?: string;
  readonly compare?: string;
  readonly tolerance: number;
  readonly devices?: readonly DeviceKind[];
  readonly energy?: boolean;
  readonly formats?: boolean;
  readonly json?: boolean;
}

/** What the processor can do at most, with as many threads as the operations use. A GPU's limits are not known here. */
async function limitsOf(device: Device, peak: BenchExtras["peak"]): Promise<Limits | undefined> {
  if (device.kind !== "cpu") return undefined;
  const threads = Number.parseInt(device.description, 10); // such as `2 threads, avx2 kernels`
  return { threads, reads: await measureReads(threads), gigaflops: peak?.(threads) };
}

function placeOf(device: Device): BenchRecord["place"] {
  return {
    processor: os.cpus()[0]?.model.trim() ?? "unknown",
    processors: os.cpus().length,
    system: `${os.type()} ${process.arch}`,
    device: device.kind,
    "device's description": device.description,
  };
}

function printLimits(limits: Limits | undefined): void {
  if (!limits) {
    print("Limits: those of a GPU are not measured, so that there are no shares of them.");
    return;
  }
  const { reads, gigaflops, threads } = limits;
  const rates = reads.map((rate) => `${(rate.bytes / 2 ** 20).toFixed(0)} MB ${rate.gigabytesPerSecond.toFixed(1)}`);
  print(`Limits on ${threads} ${threads === 1 ? "thread" : "threads"}: reading, GB/s: ${rates.join(", ")}`);
  const peak = gigaflops ? `${gigaflops.toFixed(0)} GFLOP/s` : "measured only by `bun run bench` in a clone";
  print(`  fp32 multiply-adds: ${peak}; "of limit" is the share of the slower of the two`);
}

/** A time to the microsecond, or to ten nanoseconds where that would leave two digits or fewer. */
export const milliseconds = (ms: number) => ms.toFixed(ms < 0.1 ? 5 : 3);

function printResults(results: readonly BenchResult[]): void {
  const rows = results.map(
    ({ name, medianMs, leastMs, gigabytesPerSecond, gigaflops, shareOfLimit: share, joules }) => [
      name,
      milliseconds(medianMs),
      milliseconds(leastMs),
      gigabytesPerSecond.toFixed(1),
      gigaflops?.toFixed(1) ?? "–",
      share === undefined ? "–" : `${(100 * share).toFixed(0)} %`,
      ...(results.some(({ joules }) => joules !== undefined)
        ? [joules === undefined ? "–" : (1000 * joules).toFixed(2)]
        : []),
    ],
  );
  const energy = results.some(({ joules }) => joules !== undefined) ? ["mJ"] : [];
  const head = [
    `weight [${layerSize.n}, ${layerSize.k}]`,
    "median ms",
    "least ms",
    "GB/s",
    "GFLOP/s",
    "of limit",
    ...energy,
  ];
  print(new Printable(table([head, ...rows])));
}

function printComparison({ cases, differences }: BenchComparison, path: string, tolerance: number): void {
  const time = (ms: number | undefined) => (ms === undefined ? "–" : milliseconds(ms));
  const rows = cases.map(({ name, beforeMs, nowMs, ratio, regressed }) => {
    const remark = regressed ? "slower" : ratio === undefined ? (beforeMs ? "gone" : "new") : "";
    return [name, time(beforeMs), time(nowMs), ratio?.toFixed(2) ?? "–", remark];
  });
  print("", `Against ${path}, by the least times:`);
  print(new Printable(table([["case", "before ms", "now ms", "ratio", ""], ...rows])));
  const slower = cases.filter(({ regressed }) => regressed).length;
  print(`${slower} of ${cases.length} cases are more than ${(100 * tolerance).toFixed(0)} % slower.`);
  if (!differences.length) return;
  print("These are figures of different places, whose ratios do not tell of the code, and no failure:");
  for (const difference of differences) print(`  ${difference}`);
}

function positive(text: string): number {
  const value = Number(text);
  if (value > 0) return value;
  throw new InvalidArgumentError("Expected a number above 0.");
}

function pattern(text: string): RegExp {
  try {
    return new RegExp(text, "i");
  } catch (error) {
    throw new InvalidArgumentError(`Expected a regular expression: ${(error as Error).message}.`);
  }
}

async function bench(flags: Flags, extras: BenchExtras): Promise<void> {
  const all = () => [...layerCases(), ...(flags.formats && extras.formats ? extras.formats() : [])];
  const chosen = () => all().filter(({ name }) => flags.filter?.test(name) ?? true);
  const cases = chosen();
  if (!cases.length)
    throw new BnbError(
      `--filter ${flags.filter!.source} matches no case, expected part of a name such as "${all()[0]!.name}".`,
    );
  if (flags.devices) return benchDevices(flags.devices, chosen, flags);
  const meter = flags.energy ? openEnergyMeter() : undefined;
  const before = flags.compare === undefined ? undefined : loadRecord(flags.compare);
  const device = currentDevice();
  const place = placeOf(device);
  const say = flags.json ? () => {} : print;
  say(
    `bunsandbytes ${version} on ${device.kind} (${device.description}); ${place.processor}, ${place.processors} processors, load ${os.loadavg()[0]!.toFixed(1)}`,
  );
  const limits = await limitsOf(device, extras.peak);
  if (!flags.json) printLimits(limits);
  if (typeof meter === "string") (flags.json ? warn : print)(meter);
  else if (meter) say(`Energy: ${meter.source}; "mJ" is millijoules a run.`);

  const results = await measure(cases, device, flags.time, limits, typeof meter === "string" ? undefined : meter);
  for (const sentence of new Set(results.flatMap(({ joulesUnknown }) => joulesUnknown ?? []))) warn(sentence);
  const versions = { bunsandbytes: version, bun: Bun.version };
  const record = {
    schema,
    place,
    versions,
    date: new Date().toISOString(),
    ...(limits && { limits }),
    results,
  } as const;
  if (flags.save) saveRecord(flags.save, record);
  const was = before && { ...before, results: before.results.filter(({ name }) => flags.filter?.test(name) ?? true) };
  const comparison = was && compareRecords(was, record, flags.tolerance);
  if (flags.json) printJson({ ...record, ...(comparison && { comparison }) }, 2);
  else {
    printResults(results);
    if (comparison) printComparison(comparison, flags.compare!, flags.tolerance);
  }
  const samePlace = comparison?.differences.length === 0;
  if (samePlace && comparison.cases.some(({ regressed }) => regressed)) process.exitCode = 1;
}

export function benchCommand(extras: BenchExtras = {}): Command {
  const command = new Command("bench")
    .description("Time the operations on a layer of 4096 by 4096, on the current device (BNB_DEVICE chooses another).")
    .option("--time <ms>", "how long to time each case at least", positive, 400)
    .option("--filter <pattern>", "time only the cases whose names match this regular expression", pattern)
    .option("--save <file>", "keep the result, to be compared with later")
    .option("--compare <file>", "print what has changed since the result in this file")
    .option("--tolerance <share>", "the share by which a case may be slower than before", positive, 0.2)
    .option("--devices <kinds>", "time each case on several devices side by side, such as cpu,metal,cuda", deviceList)
    .option("--energy", "measure the energy of each case too, where the system tells it")
    .option("--json", "print the result as JSON on standard output")
    .addHelpText(
      "after",
      `
Exit status 1 tells that a case is slower than in the file to compare with, beyond the tolerance, on the same machine.

Examples:
  BNB_DEVICE=cpu BNB_NUM_THREADS=1 bunsandbytes bench --time 200
  bunsandbytes bench --devices cpu,metal --filter quantize
  bunsandbytes bench --filter "quantize|1 row" --save before.json
  bunsandbytes bench --filter "quantize|1 row" --compare before.json --tolerance 0.1`,
    )
    .action((flags: Flags) => bench(flags, extras));
  return extras.formats
    ? command.option("--formats", "time every codebook and block size that is tested, too")
    : command;
}
