// Owns `bunsandbytes doctor`: what is on this machine, why a device is absent, and whether each one computes right.
import os from "node:os";
import { Command } from "commander";
import { compare } from "../compare.ts";
import { Device, type DeviceReport, devices } from "../device.ts";
import { libraryPath } from "../library.ts";
import { linear, matmul4bit } from "../matmul.ts";
import { dequantize4bit, quantize4bit } from "../quantize.ts";
import { support } from "../support.ts";
import { Tensor } from "../tensor.ts";
import { version } from "../version.ts";
import { table } from "./table.ts";

/** NF4 in blocks of 64 is off by 0.091 on uniform weights; with a million of them chance moves that by little. */
const errorRange = [0.088, 0.094] as const;

/** A product may differ from the dense product of the same dequantised weight by fp32's rounding only. */
const productErrorMax = 1e-5;

interface SelfTest {
  readonly error: number;
  readonly productError: number;
  readonly milliseconds: number;
  readonly sound: boolean;
}

/** Quantises a weight, multiplies with it, and holds both to what they must be. */
function selfTest(device: Device): SelfTest {
  const size = 1024;
  const uniform = (length: number) => Float32Array.from({ length }, () => 2 * Math.random() - 1);
  using w = Tensor.from(uniform(size * size), [size, size], { device });
  using x = Tensor.from(uniform(size), [1, size], { device });
  const started = performance.now();
  using q = quantize4bit(w);
  using y = matmul4bit(x, q, { precision: "highest" });
  device.wait();
  const milliseconds = performance.now() - started;

  using back = dequantize4bit(q, { dtype: "float32" });
  using dense = linear(x, back);
  const weights = compare(w, back);
  const products = compare(dense, y);
  const error = weights.rmsError / weights.rms;
  const productError = products.rmsError / products.rms;
  const sound = error > errorRange[0] && error < errorRange[1] && productError < productErrorMax;
  return { error, productError, milliseconds, sound };
}

function examine(report: DeviceReport) {
  if (!report.available) return report;
  const device = Device.open(report.kind);
  const test = selfTest(device);
  const lacks = support(device).filter((row) => row.support !== "yes");
  return { ...report, selfTest: test, lacks, fallbacks: device.fallbacks };
}

const environment = () => Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith("BNB_")));

function findings() {
  const [processor] = os.cpus();
  return {
    bunsandbytes: version,
    bun: Bun.version,
    system: `${os.type()} ${os.release()} ${process.arch}`,
    processor: processor ? `${processor.model.trim()}, ${os.cpus().length} threads` : "unknown",
    memoryGB: Number((os.totalmem() / 2 ** 30).toFixed(1)),
    library: libraryPath(),
    environment: environment(),
    devices: devices().map(examine),
  };
}

type Findings = ReturnType<typeof findings>;

function print({ devices: reports, environment: variables, ...rest }: Findings): void {
  for (const [name, value] of Object.entries(rest)) console.log(`${name.padEnd(13)} ${value}`);
  const set = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
  console.log(`environment   ${set.join(" ") || "no BNB_ variable is set"}`);
  console.log();
  const rows = reports.map((report) => {
    if (!report.available || !("selfTest" in report)) return [report.kind, "absent", "–", "–", "–"];
    const { sound, error, productError, milliseconds } = report.selfTest;
    return [
      report.kind,
      sound ? "sound" : "WRONG",
      error.toFixed(3),
      productError.toExponential(0),
      milliseconds.toFixed(1),
    ];
  });
  console.log(table([["device", "self-test", "NF4 error", "product error", "ms"], ...rows]));
  console.log();
  for (const report of reports) console.log(`${report.kind}: ${report.available ? report.description : report.reason}`);
  for (const report of reports)
    if ("lacks" in report)
      for (const row of report.lacks) console.log(`${report.kind}: ${row.operation}, ${row.format}: ${row.support}`);
}

export function doctorCommand(): Command {
  return new Command("doctor")
    .description("Show versions, devices and why one is absent, and test each device; --json for a bug report.")
    .option("--json", "print everything as JSON on standard output")
    .addHelpText(
      "after",
      "\nExit status 1 tells that a device computes wrongly.\n\nExample:\n  bunsandbytes doctor --json",
    )
    .action((flags: { json?: boolean }) => {
      const found = findings();
      if (found.devices.some((report) => "selfTest" in report && !report.selfTest.sound)) process.exitCode = 1;
      if (flags.json) console.log(JSON.stringify(found, null, 2));
      else print(found);
    });
}
