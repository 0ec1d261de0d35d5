// SmolLM2 quantised for MLX, on demand (`bun run test:models`): mlx_lm's own conversion to the bit, and what that
// generates.
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { installPython, python } from "../../bench/peers/install.ts";
import { convertGguf } from "../../src/checkpoint/transform.ts";
import { quantizeToMlx } from "../../src/checkpoint/transform_mlx.ts";
import { smolLm } from "./packages.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-real-mlx-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const problem = installPython("mlx");

test.skipIf(problem !== undefined)("4 bits in groups of 64", async () => {
  const [bits, blocksize] = [4, 64];
  const model = join(scratch, "model");
  await convertGguf(await smolLm(), { output: model, force: true });
  const [ours, theirs] = [join(scratch, `ours-${bits}`), join(scratch, `theirs-${bits}`)];
  await quantizeToMlx(model, { output: ours, bits, blocksize });
  const script = join(import.meta.dir, "mlx_models.py");
  const { stdout } = await $`${python} ${script} ${model} ${ours} ${theirs} ${bits} ${blocksize}`.quiet();
  const found = JSON.parse(stdout.toString().trim().split("\n").at(-1)!);
  expect([found.tensors, found.same]).toEqual([694, true]);
  expect(found.ids[0]).toEqual(found.ids[1]);
});
