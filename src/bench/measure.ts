// Times the cases of `bunsandbytes bench`, by tinybench.
import { Bench } from "tinybench";
import type { Device } from "../device.ts";
import type { BenchCase } from "./cases.ts";
import type { EnergyMeter } from "./energy.ts";
import { type Limits, shareOfLimit } from "./limits.ts";
import type { BenchResult } from "./record.ts";

/** Times each case for so many milliseconds at least, and with a meter measures as long what it uses. */
export async function measure(
  cases: readonly BenchCase[],
  device: Device,
  milliseconds: number,
  limits?: Limits,
  meter?: EnergyMeter,
): Promise<BenchResult[]> {
  const results: BenchResult[] = [];
  for (const { name, make } of cases) {
    const { run, ...work } = make();
    const once = () => {
      run()?.[Symbol.dispose]();
      device.wait();
    };
    const { medianMs, leastMs } = await latencyOf(name, once, milliseconds);
    results.push({
      name,
      medianMs,
      leastMs,
      gigabytesPerSecond: work.bytes / medianMs / 1e6,
      ...(work.flops && { gigaflops: work.flops / medianMs / 1e6 }),
      ...(limits && { shareOfLimit: shareOfLimit(limits, work, medianMs) }),
      ...(meter && (await joulesOf(once, meter, milliseconds))),
    });
  }
  return results;
}

/** Calls a function for so many milliseconds at least, five times at least, and gives how long a call takes. */
export async function latencyOf(
  name: string,
  run: () => void,
  milliseconds: number,
): Promise<{ medianMs: number; leastMs: number }> {
  const bench = new Bench({
    time: milliseconds,
    iterations: 5,
    warmupTime: milliseconds / 4,
    warmupIterations: 2,
    timestampProvider: "bunNanoseconds",
    throws: true,
  });
  bench.add(name, run);
  await bench.run();
  const { result } = bench.tasks[0]!;
  if (result.state !== "completed") throw new Error(`${name} did not complete: ${result.state}`);
  return { medianMs: result.latency.p50, leastMs: result.latency.min };
}

async function joulesOf(
  run: () => void,
  meter: EnergyMeter,
  milliseconds: number,
): Promise<Pick<BenchResult, "joules" | "joulesUnknown">> {
  let count = 0;
  const used = await meter.during(async () => {
    const end = performance.now() + milliseconds;
    do {
      run();
      count++;
    } while (performance.now() < end);
  });
  return typeof used === "string" ? { joulesUnknown: used } : { joules: used / count };
}
