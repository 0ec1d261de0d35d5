// The build of the test drivers, and the environment that puts one in a GPU's place.
import { join } from "node:path";
import { simulated } from "../metal/host/build.ts";

/** The library that the environment's BNB_DRIVER_LIBRARY names: the kinds "null" and "discrete". */
export function testDrivers(): string {
  const sources = ["memory.c", "null.c", "discrete.c"];
  return simulated(
    "libtestdrivers.so",
    sources.map((file) => join(import.meta.dir, file)),
  );
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
