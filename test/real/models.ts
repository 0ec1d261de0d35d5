// Real models, on demand (`bun run test:models`): quantised, converted, held to theory and to transformers.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { type Checkpoint, openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { inspectCheckpoint, verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { findQuantized } from "../../src/checkpoint/state.ts";
import {
  convertGguf,
  dequantizeCheckpoint,
  type QuantizeOptions,
  quantizeCheckpoint,
} from "../../src/checkpoint/transform.ts";
import { miniLm, smolLm, transformersPython } from "./packages.ts";

const python = transformersPython();

const scratch = mkdtempSync(join(tmpdir(), "bnb-real-"));
afterAll(() => rmSync(scratch, { recursive: true }));

type Variant = Pick<QuantizeOptions, "quantType" | "doubleQuant" | "quantStorage" | "dtype">;
const around = (error: number): [least: number, most: number] => [0.85 * error, 1.15 * error];

/**
 * With the root mean square error, over that of the weights, that theory gives: for normal weights in blocks of 64; in
 * int8,
 * for rows of 384, from normal ones to those with one weight four times as large as a normal row's largest.
 */
const variants: [string, Variant, [least: number, most: number]][] = [
  ["nf4", { quantType: "nf4", dtype: "float32" }, around(0.0957)],
  ["nf4, bfloat16", { quantType: "nf4", dtype: "bfloat16" }, around(0.0957)],
  ["fp4", { quantType: "fp4", dtype: "float32" }, around(0.127)],
  ["nf4 + double quant", { quantType: "nf4", doubleQuant: true, dtype: "float32" }, around(0.0957)],
  ["int8", { quantType: "int8", dtype: "float32" }, [0.006, 0.028]],
  ["int8, bfloat16", { quantType: "int8", dtype: "bfloat16" }, [0.006, 0.028]],
  ["nf4 stored as bfloat16", { quantType: "nf4", quantStorage: "bfloat16", dtype: "bfloat16" }, around(0.0957)],
];

/** What transformers calls the same. */
function transformersOptions({ quantType, doubleQuant = false, quantStorage = "uint8", dtype }: Variant): string {
  if (quantType === "int8") return JSON.stringify({ dtype, load_in_8bit: true });
  return JSON.stringify({
    dtype,
    load_in_4bit: true,
    bnb_4bit_quant_type: quantType,
    bnb_4bit_use_double_quant: doubleQuant,
    bnb_4bit_quant_storage: quantStorage,
    bnb_4bit_compute_dtype: dtype,
  });
}

/**
 * Holds a checkpoint to transformers' of the same model: every byte, or, double quantised, what its rounding leaves
 * open.
 */
function expectSame(ours: Checkpoint, theirs: Checkpoint, doubleQuant: boolean): void {
  const open = doubleQuant ? /\.(absmax|nested_absmax|quant_state\.\w+)$/ : /^$/;
  let codes = 0;
  let otherCodes = 0;
  for (const [name, { dtype, shape, bytes }] of theirs.tensors) {
    const mine = ours.tensors.get(name)!;
    expect([name, mine?.dtype]).toEqual([name, dtype]);
    if (open.test(name)) {
      if (!name.endsWith(".absmax")) continue;
      codes += bytes.length;
      otherCodes += bytes.filter((byte, i) => byte !== mine.bytes[i]).length;
      continue;
    }
    expect([name, mine.shape]).toEqual([name, shape]);
    expect(Buffer.compare(mine.bytes, bytes)).toBe(0);
  }
  if (!doubleQuant) return;
  expect(otherCodes / codes).toBeLessThan(0.003);
  const upstream = findQuantized(theirs.tensors);
  for (const [name, weight] of findQuantized(ours.tensors)) {
    const other = upstream.get(name)!;
    if (weight.format === "int8" || other.format === "int8") throw new Error(`${name} is int8, expected 4 bits`);
    expect(Math.abs(weight.state.nested!.offset / other.state.nested!.offset - 1)).toBeLessThan(4e-7);
  }
}

async function compareWithTransformers(kind: string, model: string, ours: string, variant: Variant): Promise<void> {
  const theirs = `${ours}-theirs`;
  const script = join(import.meta.dir, "reference.py");
  const output =
    await $`${python} ${script} ${kind} ${model} ${ours} ${theirs} ${transformersOptions(variant)}`.quiet();
  const { difference, largest } = JSON.parse(output.stdout.toString().trim().split("\n").at(-1)!);
  // The same weights give the same outputs; where scales differ in their last bit, nearly the same.
  expect(difference).toBeLessThanOrEqual(variant.doubleQuant ? 1e-2 * largest : 0);
  using a = openCheckpoint(ours);
  using b = openCheckpoint(theirs);
  expectSame(a, b, variant.doubleQuant ?? false);
}

describe.each(variants)("MiniLM in %s", (name, variant, theory) => {
  const output = join(scratch, name);

  test("37 Linear weights, the error that theory gives, nothing unsound", async () => {
    const model = await miniLm();
    expect(await quantizeCheckpoint(model, { output, ...variant })).toMatchObject({ weights: 37, kept: 67 });
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
    const compared = (await inspectCheckpoint(output, { errorAgainst: model })).filter(({ format }) =>
      format.startsWith(variant.quantType!),
    );
    expect(compared.length).toBe(37);
    for (const { error } of compared) expect(error!.relative).toBeWithin(...theory);
  });

  test.skipIf(!python)("transformers saves the same bytes, and computes the same with ours", async () => {
    await compareWithTransformers("bert", await miniLm(), output, variant);
  });
});

describe.each(["nf4", "fp4"] as const)("MiniLM in %s with scales of least squares", (quantType) => {
  test.each([false, true])(
    "double quant %p: every weight is closer, and bitsandbytes reads what we do",
    async (doubleQuant) => {
      const model = await miniLm();
      const errors = await Promise.all(
        (["absmax", "leastSquares"] as const).map(async (scales) => {
          const output = join(scratch, `${quantType}-${scales}-${doubleQuant}`);
          await quantizeCheckpoint(model, { output, quantType, doubleQuant, scales });
          expect((await verifyCheckpoint(output)).problems).toEqual([]);
          const reports = await inspectCheckpoint(output, { errorAgainst: model });
          return new Map(reports.flatMap(({ name, error }) => (error ? [[name, error.relative] as const] : [])));
        }),
      );
      const [absmax, leastSquares] = errors as [Map<string, number>, Map<string, number>];
      expect(leastSquares.size).toBe(37);
      for (const [name, error] of leastSquares) expect(error).toBeLessThan(0.95 * absmax.get(name)!);
      if (!python) return;
      const output = join(scratch, `${quantType}-leastSquares-${doubleQuant}`);
      const dense = `${output}-dense`;
      await dequantizeCheckpoint(output, { output: dense, dtype: "float32" });
      const read = await $`${python} ${join(import.meta.dir, "read.py")} ${output} ${dense}`.quiet();
      expect(JSON.parse(read.stdout.toString().trim().split("\n").at(-1)!)).toEqual({ weights: 37, difference: 0 });
    },
  );
});

describe("SmolLM2, from GGUF", () => {
  const floats = join(scratch, "smol");
  const quantized = join(scratch, "smol-nf4");

  test("converts to a llama in bfloat16, and quantises", async () => {
    const model = await smolLm();
    expect(await convertGguf(model, { output: floats })).toMatchObject({ weights: 0, kept: 272 });
    expect(await quantizeCheckpoint(floats, { output: quantized })).toMatchObject({ weights: 210, kept: 62 });
    expect((await verifyCheckpoint(quantized)).problems).toEqual([]);
    const direct = join(scratch, "smol-direct");
    await convertGguf(model, { output: direct, quantType: "nf4" });
    using a = openCheckpoint(quantized);
    using b = openCheckpoint(direct);
    expectSame(a, b, false);
  });

  test.skipIf(!python)("transformers saves the same bytes, and computes the same with ours", async () => {
    await compareWithTransformers("llama", floats, quantized, { quantType: "nf4", dtype: "bfloat16" });
  });
});
