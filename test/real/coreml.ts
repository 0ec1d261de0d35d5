// MiniLM as a package of Core ML's, on demand (`bun run test:models`): coremltools reads it, its constants are the
// model's dequantised weights, and what the program computes is what transformers does.

import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { installPython } from "../../bench/peers/install.ts";
import { quantizeInt4 } from "../../src/coreml/int4.ts";
import { checkpoint, dequantizeBlockwise, type QuantizedTensor, type Tensor } from "../../src/index.ts";
import { Tokenizer } from "../../src/model/tokenizer.ts";
import { miniLm, transformersPython } from "./packages.ts";

const python = transformersPython();

const scratch = mkdtempSync(join(tmpdir(), "bnb-coreml-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const problem = python === undefined ? "no transformers" : installPython("coreml");

interface Found {
  readonly constants: Record<string, [hash: string, dtype: string]>;
  readonly outputs: [difference: number, largest: number, embedding: number][];
  readonly operations: Record<string, number>;
  readonly specification: number;
}

async function read(output: string, model: string, texts: readonly number[][]): Promise<Found> {
  const given = texts.map((ids) => JSON.stringify(ids));
  const { stdout } = await $`${python} ${join(import.meta.dir, "coreml.py")} ${output} ${model} ${given}`.quiet();
  return JSON.parse(stdout.toString().trim().split("\n").at(-1)!);
}

test.skipIf(problem !== undefined).each([
  ["float32", {}, 1e-6],
  ["float32", { doubleQuant: true }, 1e-6],
  ["float16", {}, 0.02],
] as const)("in %s, quantised with %j", async (dtype, options, most) => {
  const original = await miniLm();
  const model = join(scratch, "model");
  await checkpoint.quantizeCheckpoint(original, { output: model, force: true, ...options });
  const output = join(scratch, "model.mlpackage");
  const report = await checkpoint.exportCoreml(model, { output, dtype, tokens: 24, force: true });
  const read_ = (name: string) => Bun.file(join(original, name)).json();
  const files = { tokenizer: await read_("tokenizer.json"), config: await read_("tokenizer_config.json") };
  const tokenizer = new Tokenizer({ ...files, path: original });
  const texts = ["A guitar.", "The quick brown fox jumps over the lazy dog, again."].map((text) =>
    tokenizer.encode(text),
  );
  const dense = join(scratch, "dense"); // bitsandbytes' own products on a CPU are less exact
  await checkpoint.dequantizeCheckpoint(model, { output: dense, dtype: "float32", force: true });
  const found = await read(output, dense, texts);
  expect([report.weights, Object.keys(found.constants).length, found.specification]).toEqual([36, 36, 10]);
  expect(found.operations).toMatchObject({ linear: 36, softmax: 6, gelu: 6, constexpr_lut_to_dense: 36 });
  for (const [difference, largest, embedding] of found.outputs)
    expect([difference < most * largest, embedding < most, largest > 1]).toEqual([true, true, true]);
  if (dtype === "float16") return; // its scales are rounded
  using opened = checkpoint.openCheckpoint(model);
  for (const [name, [hash]] of Object.entries(found.constants)) {
    using weight = checkpoint.loadWeight(opened, name) as QuantizedTensor;
    using values = dequantizeBlockwise(weight, { dtype: "float32" });
    expect([name, hash]).toEqual([
      name,
      createHash("sha256")
        .update(values.read() as Float32Array)
        .digest("hex"),
    ]);
  }
});

test.skipIf(problem !== undefined).each(["float32", "float16"] as const)("int4, for iOS 18, in %s", async (dtype) => {
  const original = await miniLm();
  const output = join(scratch, "int4.mlpackage");
  const report = await checkpoint.exportCoreml(original, { output, dtype, tokens: 24, force: true, quantType: "int4" });
  const found = await read(output, original, [[101, 1037, 2858, 1012, 102]]);
  expect([report.weights, Object.keys(found.constants).length, found.specification]).toEqual([36, 36, 9]);
  expect(found.operations).toMatchObject({ linear: 36, constexpr_blockwise_shift_scale: 36 });
  expect(found.operations.constexpr_lut_to_dense).toBeUndefined();
  // The model's own vectors, less what 4 bits lose.
  expect(found.outputs[0]![2]).toBeLessThan(0.06);
  using opened = checkpoint.openCheckpoint(original);
  for (const [name, [hash, kind]] of Object.entries(found.constants)) {
    using weight = checkpoint.loadWeight(opened, name) as Tensor<"float32">;
    using q = quantizeInt4(weight);
    using rounded = dequantizeBlockwise(q, { dtype });
    const values = rounded.readFloat32();
    expect([name, kind, hash]).toEqual([name, dtype, createHash("sha256").update(values).digest("hex")]);
  }
});
