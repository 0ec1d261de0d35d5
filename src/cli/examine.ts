// What doctor finds out about devices: which are here, whether each computes right, and what it leaves to the CPU.
import { Device, type DeviceReport, devices } from "../device.ts";
import { BnbError } from "../error.ts";
import { support } from "../support.ts";
import { type Tuning, tuningOf } from "../tuning.ts";
import { type SelfTest, selfTest } from "./selftest.ts";

/** A device that was tested, or the reason for which there is none. */
export type DeviceFinding =
  | Extract<DeviceReport, { available: false }>
  | (Extract<DeviceReport, { available: true }> & {
      readonly selfTest: readonly SelfTest[];
      /** Of a GPU: whether its sizes were measured here. */
      readonly tuning?: Tuning;
      /** What it leaves to the CPU, or does not do, operation by operation. */
      readonly lacks: readonly { readonly operation: string; readonly format: string; readonly support: string }[];
      /** Why: a line for each operation and reason, since the process began. */
      readonly fallbacks: readonly string[];
    });

export interface Examination {
  readonly devices: DeviceFinding[];
  /** Each a sentence with the next step. */
  readonly problems: string[];
}

/** Tests every device that is here, in about a second each. */
export function examineDevices(): Examination {
  const problems: string[] = [];
  const found = devices().map((report) => (report.available ? examine(report, problems) : report));
  // The CPU is absent only where a variable of the environment makes no sense, and then all devices are, for that
  // reason.
  const cpu = found.find(({ kind }) => kind === "cpu");
  if (cpu?.available === false) return { devices: found, problems: [`${cpu.reason}.`] };

  const { BNB_DEVICE: wanted = "auto" } = process.env;
  const device = found.find(({ kind }) => kind === wanted);
  if (device && !device.available)
    problems.push(`BNB_DEVICE asks for ${wanted}. ${device.reason}, or unset BNB_DEVICE.`);
  if (!device && wanted !== "auto" && wanted !== "")
    problems.push(`BNB_DEVICE is "${wanted}", expected "metal", "cuda" or "cpu": unset it, or name one of these.`);
  return { devices: found, problems };
}

function examine(report: Extract<DeviceReport, { available: true }>, problems: string[]): DeviceFinding {
  const device = Device.open(report.kind);
  const tests = tested(device, problems);
  for (const test of tests)
    if (!test.onCpu && !test.sound)
      problems.push(
        `${report.kind} computes ${test.format} wrongly: error ${test.error.toFixed(4)} for ` +
          `${test.errorExpected.toFixed(4)}, product error ${test.productError.toExponential(0)}. Take another device ` +
          "(BNB_DEVICE), and report this.",
      );
  const lacks = support(device).filter((row) => row.support !== "yes");
  const { fallbacks } = device;
  // By design a GPU may lack a kernel; one that its compiler refuses is a problem.
  const refused = fallbacks.filter((line) => line.includes("could not compile"));
  if (refused.length > 0)
    problems.push(
      `${report.kind} leaves work to the CPU, for its compiler refuses ${refused.length} of the kernels: ` +
        `${refused[0]!.slice(0, 300)}. Update the system; if it is up to date, report this.`,
    );
  const tuning = report.kind === "cpu" ? undefined : tuningOf(report.description);
  if (tuning?.state === "unreadable")
    problems.push(`${tuning.path} is not used: ${tuning.reason}. Run "bunsandbytes tune" anew, or delete it.`);
  return { ...report, selfTest: tests, ...(tuning && { tuning }), lacks, fallbacks };
}

function tested(device: Device, problems: string[]): SelfTest[] {
  try {
    return selfTest(device);
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    problems.push(
      `The self-test fails on ${device}: ${error.message}. Take another device (BNB_DEVICE), and report this.`,
    );
    return [];
  }
}
