// Owns the build of the test drivers, and the environment that puts one in a GPU's place.
import { dirname, join, resolve } from "node:path";
import { build } from "../metal/host/build.ts";
import { runtimeLibrary } from "../metal/toolchain.ts";

const root = resolve(import.meta.dir, "../..");

/** The library that the environment's BNB_DRIVER_LIBRARY names: the kinds "null" and "discrete". */
export function testDrivers(): string {
  const simulator = runtimeLibrary();
  const sources = ["memory.c", "null.c", "discrete.c"].map((file) => join(import.meta.dir, file));
  const linked = ["-L", dirname(simulator), "-lsimulator", `-Wl,-rpath,${dirname(simulator)}`];
  return build("libtestdrivers.so", sources, ["-shared", "-D_GNU_SOURCE", `-DSIM_ROOT="${root}"`, ...linked]);
}

/** What a process needs to have one of them as its device. */
export function driverEnvironment(kind: "null" | "discrete"): Record<string, string> {
  return {
    BNB_DEVICE: kind,
    BNB_DRIVER_LIBRARY: testDrivers(),
    BNB_SIM_BUN: process.execPath,
    // The null driver launches nothing: all of its operations are the CPU's, which a suite around may have forbidden.
    BNB_STRICT: kind === "discrete" ? (process.env.BNB_STRICT ?? "1") : "0",
  };
}
