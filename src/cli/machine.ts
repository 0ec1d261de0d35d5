// The facts about a machine that a bug report needs and that need no native library.
import { readFileSync } from "node:fs";
import os from "node:os";
import { BnbError } from "../error.ts";
import { findLibrary, type LibraryFile } from "../library.ts";

export interface Machine {
  readonly bun: string;
  readonly system: string;
  readonly processor: string;
  /** What the kernels' instruction sets ask about, by the system's names. */
  readonly processorFeatures: readonly string[];
  readonly memoryGB: number;
  /** The native library, and how it was found; null where there is none: doctor's problems say why. */
  readonly library: LibraryFile | null;
  /** Every variable of the environment that begins with BNB_. */
  readonly environment: Readonly<Record<string, string>>;
}

export function machine(): Machine {
  const [processor] = os.cpus();
  return {
    bun: Bun.version,
    system: `${system()}, ${process.platform}-${process.arch}`,
    processor: processor ? `${processor.model.trim()}, ${os.cpus().length} threads` : "unknown",
    processorFeatures: processorFeatures(),
    memoryGB: Number((os.totalmem() / 2 ** 30).toFixed(1)),
    library: library(),
    environment: Object.fromEntries(
      Object.entries(process.env).flatMap(([name, value = ""]) => (name.startsWith("BNB_") ? [[name, value]] : [])),
    ),
  };
}

function system(): string {
  const kernel = `${os.type()} ${os.release()}`;
  return process.platform === "darwin" ? `macOS ${output(["/usr/bin/sw_vers", "-productVersion"])}, ${kernel}` : kernel;
}

function library(): LibraryFile | null {
  try {
    return findLibrary();
  } catch (error) {
    if (!(error instanceof BnbError)) throw error;
    return null;
  }
}

const features = /^(fma|f16c|avx.*|amx.*|asimd.*|i8mm|bf16|sve.*|sme\d*|feat_(dotprod|fp16|i8mm|bf16|sme.*))$/i;

/** Of what /proc/cpuinfo and macOS' sysctl say: `flags : fma avx2 …`, `Features : asimd …`, `….FEAT_I8MM: 1`. */
function processorFeatures(): string[] {
  const text =
    process.platform === "darwin" ? output(["/usr/sbin/sysctl", "hw.optional.arm", "machdep.cpu"]) : cpuinfo();
  const words = text
    .replaceAll(/^hw\.optional\.arm\.(\w+): ([01])$/gm, (_, name, has) => (has === "1" ? name : ""))
    .split(/\s+/);
  return [...new Set(words.filter((word) => features.test(word)).map((word) => word.toLowerCase()))].sort();
}

function cpuinfo(): string {
  try {
    return readFileSync("/proc/cpuinfo", "utf8");
  } catch {
    return ""; // a sandbox without /proc: nothing is known
  }
}

/** What a command prints; a part of it where it fails for the rest, as sysctl does. */
function output(command: string[]): string {
  try {
    return Bun.spawnSync(command, { stderr: "ignore" }).stdout.toString().trim();
  } catch {
    return ""; // no such command
  }
}
