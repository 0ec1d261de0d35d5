// `bunsandbytes bench --devices cpu,metal,cuda`: the same cases on several devices, side by side.
import { InvalidArgumentError } from "commander";
import type { BenchCase } from "../bench/cases.ts";
import { measure } from "../bench/measure.ts";
import type { BenchResult } from "../bench/record.ts";
import { currentDevice, type DeviceKind, devices, setDevice } from "../device.ts";
import { BnbError } from "../error.ts";
import { Printable, print, printJson } from "./print.ts";
import { table } from "./table.ts";

const kinds: readonly DeviceKind[] = ["cpu", "metal", "cuda"];

/** The kinds that an option lists. @throws InvalidArgumentError for what is none */
export function deviceList(text: string): DeviceKind[] {
  const names = text.split(",").map((name) => name.trim());
  const wrong = names.find((name) => !kinds.includes(name as DeviceKind));
  if (wrong !== undefined) throw new InvalidArgumentError(`Expected kinds out of ${kinds.join(", ")}, with commas.`);
  return [...new Set(names)] as DeviceKind[];
}

/** Times cases on each device that is here; what is absent is told, with its reason. */
export async function benchDevices(
  wanted: readonly DeviceKind[],
  casesOf: () => readonly BenchCase[],
  { time, json }: { readonly time: number; readonly json?: boolean },
): Promise<void> {
  const reports = devices().filter(({ kind }) => wanted.includes(kind));
  const absent = reports.flatMap((report) => (report.available ? [] : [report.reason]));
  const here = wanted.filter((kind) => reports.some((report) => report.kind === kind && report.available));
  if (!here.length) throw new BnbError(`--devices: none of them is here: ${absent.join(" ")}`, "unsupported");
  const before = currentDevice();
  const columns = new Map<DeviceKind, BenchResult[]>();
  try {
    // Cases are made anew for each device: their tensors live there.
    for (const kind of here) columns.set(kind, await measure(casesOf(), setDevice(kind), time));
  } finally {
    setDevice(before);
  }
  if (json) return printJson({ absent, devices: Object.fromEntries(columns) }, 2);
  for (const reason of absent) print(reason);
  printColumns([...columns]);
}

function printColumns(columns: [DeviceKind, BenchResult[]][]): void {
  const [[first, base], ...others] = columns as [[DeviceKind, BenchResult[]], ...[DeviceKind, BenchResult[]][]];
  const ms = (value: number) => value.toFixed(value < 0.1 ? 5 : 3);
  const rows = base.map(({ name, leastMs }, i) => [
    name,
    ms(leastMs),
    ...others.flatMap(([, results]) => [ms(results[i]!.leastMs), `${(leastMs / results[i]!.leastMs).toFixed(2)}×`]),
  ]);
  const head = ["least ms", first, ...others.flatMap(([kind]) => [kind, `${kind}: speed-up`])];
  print(new Printable(table([head, ...rows])));
  if (!others.length) print(`Only ${first} is here, so that there is nothing to set beside it.`);
}
