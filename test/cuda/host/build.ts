// The builds of the fake libcuda and of the program that tests the driver on it.
import { dirname, join, resolve } from "node:path";
import { packOf } from "../../../scripts/ptx.ts";
import { build, simulated } from "../../metal/host/build.ts";
import { cached, writeWhole } from "../../metal/toolchain.ts";
import { sourceOf } from "./compile.ts";

const root = resolve(import.meta.dir, "../../..");

/** The library that the environment's BNB_CUDA_LIBRARY puts in NVIDIA's place. */
export function fakeCuda(): string {
  const sources = ["device.c", "stream.c", "modules.c"];
  return simulated(
    "libfakecuda.so",
    sources.map((file) => join(import.meta.dir, file)),
  );
}

/** Every rule of the driver, one a run: the driver itself, with kernels of its own. */
export async function scenarios(): Promise<string> {
  const pack = await packOf(["small"].map((family) => ({ family, source: sourceOf(family) })));
  const folder = dirname(cached("/kernels.ptx", pack));
  writeWhole(join(folder, "kernels.ptx"), pack);
  const driver = [...new Bun.Glob("csrc/gpu/cuda/*.c").scanSync(root)].sort().map((file) => join(root, file));
  const sources = [join(import.meta.dir, "scenarios.c"), ...driver];
  return build("program", "cuda_scenarios", sources, [`--embed-dir=${folder}`], ["-rdynamic"], true);
}
