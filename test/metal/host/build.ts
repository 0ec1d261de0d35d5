// Owns the build of the fake Metal and of the programs that test the driver on it.
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { cached, compileHost, runtimeLibrary } from "../toolchain.ts";

const root = resolve(import.meta.dir, "../../..");

function files(folder: string, pattern: string): string[] {
  return [...new Bun.Glob(pattern).scanSync(join(root, folder))].sort().map((file) => join(root, folder, file));
}

/** Compiles `sources`, once for each content of what they can include. */
export function build(name: string, sources: string[], more: readonly string[], counted = false): string {
  const inputs = [
    ...sources,
    ...files("csrc", "**/*.h"),
    ...files("test/metal/host", "**/*.{h,metal}"),
    ...files("test/drivers", "*.h"),
    join(root, "metal/args.h"),
  ];
  const path = cached(`/${name}`, ...more, ...inputs.map((file) => readFileSync(file, "utf8")));
  return compileHost(path, [...sources, ...more], counted);
}

/** The library that the environment's BNB_METAL_LIBRARY puts in Metal's place. */
export function fakeMetal(): string {
  const simulator = runtimeLibrary();
  const sources = ["runtime.c", "foundation.c", "device.c", "commands.c", "capture.c"].map((file) =>
    join(import.meta.dir, file),
  );
  const linked = ["-L", dirname(simulator), "-lsimulator", `-Wl,-rpath,${dirname(simulator)}`];
  return build("libfakemetal.so", sources, ["-shared", "-D_GNU_SOURCE", `-DSIM_ROOT="${root}"`, ...linked]);
}

/** Every rule of the driver, one a run: the driver itself, with kernels of its own. */
export function scenarios(): string {
  const sources = ["scenarios.c", "families.c"].map((file) => join(import.meta.dir, file));
  return build("scenarios", [...sources, ...files("csrc/gpu/metal", "*.c")], ["-rdynamic"], true);
}

/** Every rule of the fake Metal, broken one a run. */
export function misuses(): string {
  const sources = ["misuses.c", "families.c"].map((file) => join(import.meta.dir, file));
  return build("misuses", [...sources, join(root, "csrc/gpu/metal/objc.c")], []);
}
