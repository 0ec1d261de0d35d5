// Energy as the bench counts it: by a folder that is laid out as the kernel's, and by what powermetrics prints.
import { afterAll, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type EnergyMeter, meanWatts, openEnergyMeter, openRapl } from "../src/bench/energy.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-energy-"));
afterAll(() => rmSync(scratch, { recursive: true }));

function counter(folder: string, name: string, microjoules: number): string {
  const path = join(folder, name);
  mkdirSync(path, { recursive: true });
  writeFileSync(join(path, "energy_uj"), `${microjoules}\n`);
  writeFileSync(join(path, "max_energy_range_uj"), "1000000\n");
  return join(path, "energy_uj");
}

test("packages are added up, their parts are not, and a counter may wrap", async () => {
  const folder = join(scratch, "two");
  const first = counter(folder, "intel-rapl:0", 100_000);
  const second = counter(folder, "intel-rapl:1", 900_000);
  const part = counter(folder, "intel-rapl:0:0", 5);
  const meter = openRapl(folder) as EnergyMeter;
  expect(meter.source).toBe("RAPL, 2 packages");
  const joules = await meter.during(async () => {
    writeFileSync(first, "350000\n");
    writeFileSync(second, "100000\n"); // past the million
    writeFileSync(part, "999999\n");
  });
  expect(joules).toBeCloseTo(0.25 + 0.2, 9);
});

test("where there is no counter, or none that may be read, a sentence says so", () => {
  expect(openRapl(join(scratch, "none"))).toContain("has no intel-rapl");
  const folder = join(scratch, "closed");
  rmSync(counter(folder, "intel-rapl:0", 1)); // root may read what others may not, so that the file is gone instead
  chmodSync(folder, 0o755);
  expect(openRapl(folder)).toContain("run the bench as root");
});

test("powermetrics' samples are averaged", () => {
  const sample = (milliwatts: number) =>
    `CPU Power: 1 mW\nGPU Power: 2 mW\nANE Power: 0 mW\nCombined Power (CPU + GPU + ANE): ${milliwatts} mW\n`;
  expect(meanWatts(sample(1000) + sample(3000))).toBe(2);
  expect(meanWatts("CPU Power: 1 mW\n")).toBeUndefined();
});

test("each system has its meter, or a sentence", () => {
  expect(openEnergyMeter("win32")).toBe("win32 has no energy counter that this program knows.");
  expect(JSON.stringify(openEnergyMeter("linux"))).toBe(JSON.stringify(openRapl("/sys/class/powercap")));
  const { getuid } = process;
  try {
    process.getuid = () => 501;
    expect(openEnergyMeter("darwin")).toContain("powermetrics needs root; run the bench with sudo");
  } finally {
    process.getuid = getuid!;
  }
});

/** A meter of what stands on PATH as powermetrics, and then what `measured` is while it runs. */
function withPowermetrics(folder: string, body: string, measured: string) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "powermetrics"), `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  const source = `
    import { existsSync } from "node:fs";
    import { openEnergyMeter } from ${JSON.stringify(join(import.meta.dir, "../src/bench/energy.ts"))};
    process.getuid = () => 0;
    const meter = openEnergyMeter("darwin");
    let seconds;
    const used = await meter.during(async () => {
      const started = performance.now();
      ${measured}
      seconds = (performance.now() - started) / 1000;
    });
    console.log(JSON.stringify({ source: meter.source, used, seconds }));`;
  const env = { ...process.env, PATH: `${folder}:${process.env.PATH}` };
  const { stdout, stderr } = Bun.spawnSync([process.execPath, "-e", source], { env });
  expect(stderr.toString()).toBe("");
  return JSON.parse(stdout.toString());
}

/** Until the program in a folder has said that it is there. */
const untilBegun = (folder: string) =>
  `while (!existsSync(${JSON.stringify(join(folder, "began"))})) await Bun.sleep(1);`;

test("powermetrics runs for as long as what it measures", () => {
  const folder = join(scratch, "samples");
  const prints = 'echo "Combined Power (CPU + GPU + ANE): 5000 mW"';
  const body = `${prints}\n: > ${folder}/began\nexec sleep 60`;
  const { source, used, seconds } = withPowermetrics(folder, body, untilBegun(folder));
  expect(source).toStartWith("powermetrics");
  expect(used / 5).toBeGreaterThanOrEqual(seconds); // at five watts
});

test("powermetrics without a sample is a sentence with its reason, and no number", () => {
  const slow = join(scratch, "slow");
  expect(withPowermetrics(slow, `: > ${slow}/began\nexec sleep 60`, untilBegun(slow)).used).toBe(
    "Energy is not told: powermetrics samples every 200 ms, longer than a case ran; give it more --time.",
  );
  const refusing = join(scratch, "refusing");
  const complains = `echo "unrecognized sampler: gpu_power" >&2\n: > ${refusing}/began\nexit 64`;
  expect(withPowermetrics(refusing, complains, untilBegun(refusing)).used).toBe(
    "Energy is not told: powermetrics ended with status 64: unrecognized sampler: gpu_power",
  );
});
