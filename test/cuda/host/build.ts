// Owns the build of the fake libcuda and of the program that tests the driver on it.
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { packOf } from "../../../scripts/ptx.ts";
import { cached, compileHost, runtimeLibrary, writeWhole } from "../../metal/toolchain.ts";
import { sourceOf } from "./compile.ts";

const root = resolve(import.meta.dir, "../../..");

function files(folder: string, pattern: string): string[] {
  return [...new Bun.Glob(pattern).scanSync(join(root, folder))].sort().map((file) => join(root, folder, file));
}

/** Compiles `sources`, once for each content of what they can include. */
function build(name: string, sources: string[], more: readonly string[], counted = false): string {
  const inputs = [...sources, ...files("csrc", "**/*.h"), ...files("test/cuda/host", "*.h")];
  const path = cached(`/${name}`, ...more, ...inputs.map((file) => readFileSync(file, "utf8")));
  return compileHost(path, [...sources, ...more], counted);
}

/** The library that the environment's BNB_CUDA_LIBRARY puts in NVIDIA's place. */
export function fakeCuda(): string {
  const simulator = runtimeLibrary();
  const sources = ["device.c", "stream.c", "modules.c"].map((file) => join(import.meta.dir, file));
  const linked = ["-L", dirname(simulator), "-lsimulator", `-Wl,-rpath,${dirname(simulator)}`];
  return build("libfakecuda.so", sources, ["-shared", "-D_GNU_SOURCE", `-DSIM_ROOT="${root}"`, ...linked]);
}

/** Every rule of the driver, one a run: the driver itself, with kernels of its own. */
export async function scenarios(): Promise<string> {
  const pack = await packOf(["small"].map((family) => ({ family, source: sourceOf(family) })));
  const folder = dirname(cached("/kernels.ptx", pack));
  writeWhole(join(folder, "kernels.ptx"), pack);
  const sources = [join(import.meta.dir, "scenarios.c"), ...files("csrc/gpu/cuda", "*.c")];
  return build("cuda_scenarios", sources, ["-rdynamic", `--embed-dir=${folder}`], true);
}
