// The builds of the fake Metal and of the programs that test the driver on it.
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { cached, compileHost, type Kind, withSimulator } from "../toolchain.ts";

const root = resolve(import.meta.dir, "../../..");

function files(folder: string, pattern: string): string[] {
  return [...new Bun.Glob(pattern).scanSync(join(root, folder))].sort().map((file) => join(root, folder, file));
}

/** Compiles `sources`, once for each content of what they can include. */
export function build(
  kind: Kind,
  name: string,
  sources: string[],
  more: readonly string[] = [],
  link: readonly string[] = [],
  counted = false,
): string {
  const inputs = [
    ...sources,
    ...files("csrc", "**/*.h"),
    ...files("test/metal/host", "**/*.{h,metal}"),
    ...files("test/drivers", "*.h"),
    ...files("test/cuda/host", "*.h"),
    join(root, "metal/args.h"),
  ];
  const path = cached(`/${name}`, ...more, ...link, ...inputs.map((file) => readFileSync(file, "utf8")));
  return compileHost(kind, path, sources, more, link, counted);
}

/** A shared library on the simulator. */
export function simulated(name: string, sources: string[]): string {
  return build("library", name, sources, ["-D_GNU_SOURCE", `-DSIM_ROOT="${root}"`], withSimulator());
}

/** The library that the environment's BNB_METAL_LIBRARY puts in Metal's place. */
export function fakeMetal(): string {
  const sources = ["runtime.c", "foundation.c", "device.c", "commands.c", "capture.c"];
  return simulated(
    "libfakemetal.so",
    sources.map((file) => join(import.meta.dir, file)),
  );
}

/** Every rule of the driver, one a run: the driver itself, with kernels of its own. */
export function scenarios(): string {
  const sources = ["scenarios.c", "families.c"].map((file) => join(import.meta.dir, file));
  return build("program", "scenarios", [...sources, ...files("csrc/gpu/metal", "*.c")], [], ["-rdynamic"], true);
}

/** Every rule of the fake Metal, broken one a run. */
export function misuses(): string {
  const sources = ["misuses.c", "families.c"].map((file) => join(import.meta.dir, file));
  return build("program", "misuses", [...sources, join(root, "csrc/gpu/metal/objc.c")]);
}
