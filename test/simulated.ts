// What a simulated GPU has run, by its own count: it runs nothing that nobody waits for.
import { dlopen } from "bun:ffi";

/**
 * How many launches the simulated GPU that the suite runs on has run until now; undefined where it runs on none. What
 * is enqueued is run when somebody waits, or has asked often enough whether it is done.
 */
export const launchesRun: (() => number) | undefined = counterOf("cuda") ?? counterOf("metal");

function counterOf(kind: "cuda" | "metal"): (() => number) | undefined {
  const library = process.env[`BNB_${kind.toUpperCase()}_LIBRARY`];
  if (process.env.BNB_DEVICE !== kind || !library) return undefined;
  const name = `fake_${kind}_count` as const;
  const { symbols } = dlopen(library, { [name]: { args: ["cstring"], returns: "i64" } });
  const count = symbols[name] as unknown as (counter: Buffer) => bigint;
  return () => Number(count(Buffer.from("runs\0")));
}
