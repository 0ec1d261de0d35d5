// The energy that this machine's processor has used, where the system tells: Linux by RAPL, macOS by powermetrics.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** Counts energy. */
export interface EnergyMeter {
  /** What is counted, for people. */
  readonly source: string;
  /** The joules that were used while `run` was under way, or a sentence that says why they are not known. */
  during(run: () => Promise<void>): Promise<number | string>;
}

/** A meter for this machine, or a sentence that says why there is none. */
export function openEnergyMeter(platform = process.platform): EnergyMeter | string {
  if (platform === "linux") return openRapl("/sys/class/powercap");
  if (platform === "darwin") return openPowermetrics();
  return `${platform} has no energy counter that this program knows.`;
}

/**
 * Intel's and AMD's running average power limit: a counter in microjoules for each package, which wraps.
 *
 * @param folder the kernel's, https://docs.kernel.org/power/powercap/powercap.html
 */
export function openRapl(folder: string): EnergyMeter | string {
  const packages = existsSync(folder) ? readdirSync(folder).filter((name) => /^intel-rapl:\d+$/.test(name)) : [];
  if (!packages.length)
    return `Energy is not told: ${folder} has no intel-rapl, which virtual machines and ARM processors lack.`;
  const counters = packages.sort().map((name) => join(folder, name));
  const read = (counter: string, file: string) => Number(readFileSync(join(counter, file), "utf8"));
  try {
    for (const counter of counters) read(counter, "energy_uj");
  } catch (error) {
    return `Energy is not told: ${(error as Error).message}. Linux lets only root read it; run the bench as root.`;
  }
  return {
    source: `RAPL, ${packages.length} ${packages.length === 1 ? "package" : "packages"}`,
    async during(run) {
      const before = counters.map((counter) => read(counter, "energy_uj"));
      await run();
      const used = counters.map((counter, i) => {
        const difference = read(counter, "energy_uj") - before[i]!;
        return difference < 0 ? difference + read(counter, "max_energy_range_uj") : difference;
      });
      return used.reduce((sum, microjoules) => sum + microjoules, 0) / 1e6;
    },
  };
}

const sampleMs = 200;

/** macOS' powermetrics, which samples the power of processor, GPU and neural engine together; root only. */
function openPowermetrics(): EnergyMeter | string {
  if (process.getuid?.() !== 0) return "Energy is not told: powermetrics needs root; run the bench with sudo.";
  return {
    source: "powermetrics, processor, GPU and neural engine",
    async during(run) {
      const command = ["powermetrics", "--samplers", "cpu_power,gpu_power", "-i", `${sampleMs}`];
      const meter = Bun.spawn(command, { stderr: "pipe" });
      const texts = Promise.all([new Response(meter.stdout).text(), new Response(meter.stderr).text()]);
      const started = performance.now();
      await run();
      const seconds = (performance.now() - started) / 1000;
      meter.kill();
      const [samples, complaint] = await texts;
      const watts = meanWatts(samples);
      if (watts !== undefined) return seconds * watts;
      await meter.exited;
      return meter.exitCode
        ? `Energy is not told: powermetrics ended with status ${meter.exitCode}: ${complaint.trim() || "it said nothing"}`
        : `Energy is not told: powermetrics samples every ${sampleMs} ms, longer than a case ran; give it more --time.`;
    },
  };
}

/** The mean of the samples, `Combined Power (CPU + GPU + ANE): 1234 mW`, in what powermetrics prints, if it has any. */
export function meanWatts(text: string): number | undefined {
  const samples = [...text.matchAll(/^Combined Power \(.*\): (\d+) mW$/gm)].map(([, milliwatts]) => Number(milliwatts));
  return samples.length ? samples.reduce((sum, milliwatts) => sum + milliwatts, 0) / samples.length / 1000 : undefined;
}
