// A device's counters, with what other tests have dropped out of the way.
import type { Device } from "../src/index.ts";

/**
 * All tests share one process and one device, and the collector frees what they dropped whenever it likes: in the midst
 * of a test that counts bytes. So it is asked first.
 */
export function settled(device: Device): Device["counters"] {
  Bun.gc(true);
  return device.counters;
}
