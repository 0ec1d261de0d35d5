// `bunsandbytes doctor`: what is on this machine, what is wrong with it, and what to do about that. It works, and
// says why, where the native library can't be opened: nothing that needs the library is imported before it is asked
// for.
import { Command } from "commander";
import { BnbError } from "../error.ts";
import { namedLibrary } from "../library.ts";
import type { Tuning } from "../tuning.ts";
import { bunVersions, version } from "../version.ts";
import type { DeviceFinding } from "./examine.ts";
import { type Machine, machine } from "./machine.ts";
import { line, Printable, print, printJson, styled } from "./print.ts";
import { table } from "./table.ts";

/** What doctor finds; `--json` prints it as it is. */
interface Findings extends Machine {
  readonly bunsandbytes: string;
  readonly devices: readonly DeviceFinding[];
  /** Each a sentence with the next step. */
  readonly problems: readonly string[];
}

async function findings(): Promise<Findings> {
  const problems: string[] = [];
  if (!Bun.semver.satisfies(Bun.version, bunVersions))
    problems.push(`Bun ${Bun.version} is not ${bunVersions}, which this library needs: run "bun upgrade".`);
  const named = process.env.BNB_LIBRARY;
  if (named && namedLibrary() !== named)
    problems.push(
      `BNB_LIBRARY=${named} is not believed: this process was not started with it, so a .env file or code says it. ` +
        "Set it in the shell, or remove it there.",
    );
  const devices = await examined(problems);
  return { bunsandbytes: version, ...machine(), devices, problems };
}

async function examined(problems: string[]): Promise<DeviceFinding[]> {
  try {
    const { examineDevices } = await import("./examine.ts");
    const { devices, problems: found } = examineDevices();
    problems.push(...found);
    return devices;
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    problems.push(error.message); // the native library can't be opened
    return [];
  }
}

function show(found: Findings): void {
  const { processor, processorFeatures, memoryGB, environment } = found;
  const set = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
  const rows = [
    ["bunsandbytes", found.bunsandbytes],
    ["bun", found.bun],
    ["system", found.system],
    ["processor", `${processor}, ${memoryGB} GB; ${processorFeatures.join(" ") || "no features known"}`],
    ["library", found.library ? `${found.library.path} (${origins[found.library.origin]})` : "none"],
    ["environment", set.join(" ") || "no BNB_ variable is set"],
    ...found.devices.flatMap((device) => [
      [device.kind, device.available ? device.description : absence(device.reason)],
      ...(device.available && device.tuning ? [["", tuned(device.tuning)]] : []),
    ]),
  ];
  for (const [name, value] of rows) print(line`${styled("dim", name!.padEnd(12))}  ${value}`);
  printTests(found.devices);
  print("");
  for (const device of found.devices)
    if (device.available) for (const reason of device.fallbacks) print(`${device.kind}, on the CPU: ${reason}`);
  for (const problem of found.problems) print(line`${styled("red", "✗")} ${problem}`);
  if (found.problems.length === 0) print(line`${styled("green", "✓")} No problem found.`);
  print('For a bug report, paste what "bunsandbytes doctor --json" prints.');
}

const origins = {
  BNB_LIBRARY: "BNB_LIBRARY names it",
  package: "the package's own",
  executable: "embedded in this executable",
} as const;

const tuned = (tuning: Tuning) =>
  tuning.state === "tuned"
    ? `tuned: ${Object.entries(tuning.sizes)
        .map(([name, value]) => `${name} ${value}`)
        .join(", ")} (${tuning.path})`
    : tuning.state === "not tuned"
      ? 'not tuned: "bunsandbytes tune" times its kernels'
      : `tuning ${tuning.state}`;

/** `Metal is absent: it needs …` beside the device's name. */
const absence = (reason: string) => reason.replace(/^\w+ is absent: /, "absent: ");

function printTests(devices: readonly DeviceFinding[]): void {
  const rows = devices.flatMap((device) => {
    if (!device.available) return [];
    return device.selfTest.map((test) =>
      test.onCpu
        ? [device.kind, test.format, styled("yellow", "on the CPU"), "", "", "", "", ""]
        : [
            device.kind,
            test.format,
            test.sound ? styled("green", "sound") : styled("red", "WRONG"),
            test.error.toFixed(4),
            test.errorExpected.toFixed(4),
            test.productError === 0 ? "0" : test.productError.toExponential(0),
            test.gigabytesPerSecond.toFixed(1),
            test.gigaflops.toFixed(1),
          ],
    );
  });
  const head = ["device", "format", "self-test", "error", "theory", "product error", "1 row, GB/s", "32 rows, GFLOP/s"];
  if (rows.length > 0) print("", new Printable(table([head, ...rows])));
}

export function doctorCommand(): Command {
  return new Command("doctor")
    .description("Show versions, devices and why one is absent, and test each; --json for a bug report.")
    .option("--json", "print everything as JSON on standard output")
    .addHelpText(
      "after",
      `
Exit status 1 tells that there is a problem: each ends in what to do. An absent GPU is none, unless BNB_DEVICE asks for it.
The self-test quantises evenly spread weights [1024, 1024]. error: ‖w − ŵ‖/‖w‖, beside what theory says; product error:
against the dense product of the same ŵ.

Example:
  bunsandbytes doctor --json`,
    )
    .action(async (flags: { json?: boolean }) => {
      const found = await findings();
      if (found.problems.length > 0) process.exitCode = 1;
      if (flags.json) printJson(found, 2);
      else show(found);
    });
}
