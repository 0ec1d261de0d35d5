// Where the emulator of arm64 Linux comes from: Debian's packages of qemu and of arm64's C library, unpacked into
// an ignored folder, which needs no root. Where apt-get is not, there is no emulator, and what needs it is skipped.
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { root, run, say } from "./run.ts";

/** Runs programs for arm64 Linux: put in front of a command. */
export interface Emulator {
  /** @param cpu what `qemu-aarch64 -cpu help` lists, such as `cortex-a53` */
  command(cpu: string, ...command: string[]): string[];
}

const folder = resolve(root, ".tools/qemu-aarch64");
const program = "usr/bin/qemu-aarch64-static";
const packages = ["qemu-user-static", "libc6-arm64-cross"];

/** The emulator, fetched if need be; undefined, and a line on stderr that says why, where it can't be had. */
export function findQemu(): Emulator | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return absent("it is fetched for Linux on x64 only");
  if (!existsSync(folder)) {
    const failure = fetchPackages();
    if (failure) return absent(failure);
  }
  const systemRoot = join(folder, "usr/aarch64-linux-gnu");
  return { command: (cpu, ...command) => [join(folder, program), "-cpu", cpu, "-L", systemRoot, ...command] };
}

function absent(reason: string): undefined {
  say(`There is no emulator of arm64: ${reason}. What needs it is skipped.`);
}

/**
 * Fetches the packages with lists and settings of their own, so that the machine's stay as they are. Gives what
 * failed.
 */
function fetchPackages(): string | undefined {
  if (!Bun.which("apt-get") || !Bun.which("dpkg-deb")) return "apt-get, which fetches it, is not on this machine";
  say("Fetching qemu and arm64's C library from the system's package source: once, about 65 MB …");
  const partial = `${folder}.partial`;
  rmSync(partial, { recursive: true, force: true });
  for (const name of ["lists/partial", "archives/partial", "root"]) mkdirSync(join(partial, name), { recursive: true });
  const settings = {
    "Dir::State::lists": join(partial, "lists"),
    "Dir::State::status": "/dev/null",
    "Dir::Cache": partial,
    "APT::Sandbox::User": "",
    "Acquire::Languages": "none",
  };
  const apt = ["apt-get", "-qq", ...Object.entries(settings).flatMap(([name, value]) => ["-o", `${name}=${value}`])];
  if (run([...apt, "update"], {}, partial) !== 0) return "apt-get update failed: its message is above";
  if (run([...apt, "download", ...packages], {}, partial) !== 0) return "apt-get download failed: its message is above";
  for (const file of new Bun.Glob("*.deb").scanSync({ cwd: partial, absolute: true }))
    if (run(["dpkg-deb", "-x", file, join(partial, "root")]) !== 0) return `dpkg-deb can't unpack ${file}`;
  if (!existsSync(join(partial, "root", program))) return `${packages[0]} has no ${program} here`;
  renameSync(join(partial, "root"), folder); // only a whole one gets the name that is looked for
  rmSync(partial, { recursive: true });
}
