// MLX's checkpoints: every mode, width and group against MLX's own values and products, and what config.json says of
// modules.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { inspectCheckpoint, verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { inMlxOrder, inOurOrder } from "../src/checkpoint/mlx.ts";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { loadWeight } from "../src/checkpoint/statedict.ts";
import { dequantizeCheckpoint, quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { quantizeToMlx } from "../src/checkpoint/transform_mlx.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import {
  BnbError,
  dequantizeBlockwise,
  joinRows,
  matmul,
  type QuantizedTensor,
  quantizeAffine,
  Tensor,
} from "../src/index.ts";
import { llamaDirectory, weights } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-mlx-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let folders = 0;

const golden = openSafetensors(join(import.meta.dir, "golden/mlx.safetensors"));
const names = [...golden.tensors.keys()].filter((name) => name.endsWith(".weight")).map((name) => name.slice(0, -7));
const values = (name: string) => Float32Array.from(golden.tensor(name).values as Float32Array);

/** A checkpoint of weights of the golden file, with what config.json says of them. */
async function model(quantization: object, ...weights: string[]): Promise<string> {
  const folder = join(scratch, `${folders++}`);
  mkdirSync(folder);
  const tensors = [...golden.tensors.values()]
    .filter(
      ({ name }) => weights.some((weight) => name.startsWith(`${weight}.`)) && /(weight|scales|biases)$/.test(name),
    )
    .map(({ name, dtype, shape, bytes }) => ({ name, dtype, shape, bytes: bytes.slice() }));
  await writeSafetensors(join(folder, "model.safetensors"), tensors, { metadata: { format: "mlx" } });
  writeFileSync(join(folder, "config.json"), JSON.stringify({ quantization, quantization_config: quantization }));
  return folder;
}

const settings = (name: string) => {
  const [, mode, bits, group] = /^([a-z]+(?:fp\d)?)(\d)g(\d+)h?$/.exec(name)!;
  return { mode, bits: Number(bits), group_size: Number(group) };
};

describe.each(names)("%s", (name) => {
  test("has MLX's own values, and its products", async () => {
    using opened = openCheckpoint(await model(settings(name), name));
    using w = loadWeight(opened, `${name}.weight`) as QuantizedTensor;
    expect(w.shape).toEqual([4, 256]);
    using dense = dequantizeBlockwise(w, { dtype: "float32" });
    const got = dense.read() as Float32Array;
    const expected = values(`${name}.values`);
    // MLX rounds to the scales' dtype: of float16 each step; ours is in float32.
    const within = name.endsWith("h") ? 2e-3 : 0;
    for (const [i, value] of got.entries()) expect(Math.abs(value - expected[i]!)).toBeLessThanOrEqual(within * 0.2);
    if (!golden.tensors.has(`${name}.y`)) return;
    using x = Tensor.from(values("x"), [3, 256]);
    using y = matmul(x, w, { precision: "highest" });
    const theirs = values(`${name}.y`);
    for (const [i, value] of (y.read() as Float32Array).entries())
      expect(Math.abs(value - theirs[i]!)).toBeLessThan(3e-6);
  });
});

const affine = names.filter((name) => name.startsWith("affine"));

test.each(affine)("quantising gives MLX's own codes, scales and biases: %s", (name) => {
  const { bits, group_size } = settings(name);
  const dtype = name.endsWith("h") ? "float16" : "float32";
  using x = Tensor.from(values("weights"), [4, 256], { dtype });
  using q = quantizeAffine(x, { bits, blocksize: group_size });
  expect(inMlxOrder(q.codes.read(), bits)).toEqual(golden.tensor(`${name}.weight`).bytes.slice());
  const bytes = (of: Tensor) => new Uint8Array((of.read() as Float32Array).buffer as ArrayBuffer);
  expect(bytes(q.absmax)).toEqual(golden.tensor(`${name}.scales`).bytes.slice());
  expect(bytes(q.offsets!)).toEqual(golden.tensor(`${name}.biases`).bytes.slice());
});

test("what can't be quantised so is named", () => {
  const x = Tensor.from(weights(4 * 96), [4, 96]);
  expect(() => quantizeAffine(x)).toThrow(
    /quantizeAffine: blocksize is 64, expected one that divides the 96 columns of x/,
  );
  expect(() => quantizeAffine(x, { bits: 9 })).toThrow(/bits is 9, expected a whole number from 2 to 8/);
  expect(() => quantizeAffine(x, { blocksize: 24 })).toThrow(/blocksize is 24/);
  const bad = Tensor.from(weights(64).with(7, Number.NaN), [1, 64]);
  expect(() => quantizeAffine(bad)).toThrow(/x\[0, 7\] is -?nan, expected finite numbers/);
  expect(() => quantizeAffine(Tensor.from(new Int8Array(64), [1, 64]))).toThrow(BnbError);
});

describe("writing", () => {
  test("a llama: what MLX quantises, its config, and back", async () => {
    const input = join(scratch, "llama");
    await llamaDirectory(input);
    const output = join(scratch, "llama-mlx");
    const report = await quantizeToMlx(input, { output, bits: 3, blocksize: 32, dtype: "float16" });
    expect([report.weights, report.kept]).toEqual([9, 3]);
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
    const config = JSON.parse(readFileSync(join(output, "config.json"), "utf8"));
    const said = { bits: 3, group_size: 32, mode: "affine" };
    expect([config.quantization, config.quantization_config, config.torch_dtype]).toEqual([said, said, "float16"]);
    using opened = openCheckpoint(output);
    expect(opened.tensors.get("model.embed_tokens.weight")!.shape).toEqual([96, 6]);
    expect(opened.files[0]!.metadata).toEqual({ format: "mlx" });
    const [worst] = await inspectCheckpoint(output, { errorAgainst: input });
    expect([worst!.format, worst!.error!.relative < 0.2]).toEqual(["mlx affine3/32", true]);
  });

  test("weights by columns, and widths that MLX has not, are refused", async () => {
    const input = join(scratch, "gpt2");
    await llamaDirectory(input, { "h.0.attn.c_attn.weight": [64, 192], "h.0.attn.c_attn.bias": [192] });
    writeFileSync(join(input, "config.json"), '{"model_type": "gpt2"}');
    const output = join(scratch, "none");
    await expect(quantizeToMlx(input, { output })).rejects.toThrow(/c_attn.weight is stored by columns/);
    await expect(quantizeToMlx(input, { output, bits: 7 })).rejects.toThrow(/bits is 7; MLX has 2, 3/);
    await expect(quantizeToMlx(input, { output, blocksize: 16 })).rejects.toThrow(/blocksize is 16; MLX has 32/);
  });
});

test.each([
  ["affine4g64h", settings("affine4g64h")],
  ["mxfp44g32", { mode: "mxfp4" }],
] as const)("weights of %s are joined with all that belongs to them", async (name, how) => {
  using opened = openCheckpoint(await model(how, name));
  using w = loadWeight(opened, `${name}.weight`) as QuantizedTensor;
  using joined = joinRows([w, w]);
  using one = dequantizeBlockwise(w);
  using two = dequantizeBlockwise(joined);
  expect([...two.readFloat32().slice(0, one.size)]).toEqual([...one.readFloat32()]);
  expect([...two.readFloat32().slice(one.size)]).toEqual([...one.readFloat32()]);
});

test("a weight costs what it does in its file: 4 bits in groups of 64 with halves as scales are 4.5", async () => {
  using opened = openCheckpoint(await model(settings("affine4g64h"), "affine4g64h"));
  using w = loadWeight(opened, "affine4g64h.weight") as QuantizedTensor;
  expect(w.bitsPerElement).toBe(4.5);
});

describe("config.json", () => {
  test("says of each module what differs", async () => {
    const quantization = { group_size: 64, bits: 4, affine8g32: { group_size: 32, bits: 8 }, other: false };
    const folder = await model(quantization, "affine4g64", "affine8g32");
    const formats = Object.fromEntries((await inspectCheckpoint(folder)).map(({ name, format }) => [name, format]));
    expect(formats).toEqual({ "affine4g64.weight": "mlx affine4/64", "affine8g32.weight": "mlx affine8/32" });
    expect(await verifyCheckpoint(folder)).toEqual({ tensors: 2, quantized: { mlx: 2 }, problems: [] });
    const output = join(scratch, "dense");
    await dequantizeCheckpoint(folder, { output });
    using dense = openCheckpoint(output);
    expect([...dense.tensors.keys()]).toEqual(["affine4g64.weight", "affine8g32.weight"]);
    expect(readFileSync(join(output, "config.json"), "utf8")).toBe("{}\n");
    await expect(quantizeCheckpoint(folder, { output: join(scratch, "no") })).rejects.toThrow(
      /quantised already \(mlx\)/,
    );
  });

  test.each<[object, RegExp]>([
    [{ group_size: 64, bits: 1 }, /affine4g64: bits is 1; of MLX's affine, 2, 3, 4, 5, 6, 8 can be read/],
    [{ group_size: 16, bits: 4 }, /group_size is 16; of MLX's affine, 32, 64, 128/],
    [{ group_size: 64, bits: 4, mode: "of-tomorrow" }, /mode "of-tomorrow" is not known; affine, mxfp4/],
    [{ group_size: 32, bits: 4 }, /is \[4, 32\] of 4 bits in groups of 32, which its scales \[4, 4\] do not fit/],
    [{ mode: "mxfp4" }, /which its scales \[4, 4\] do not fit/],
  ])("%j is refused", async (quantization, message) => {
    using opened = openCheckpoint(await model(quantization, "affine4g64"));
    expect(() => opened.quantized).toThrow(message);
  });
});

test.each([2, 3, 4, 5, 6, 8])("codes of %d bits are turned from the lowest bit first to the highest", (bits) => {
  const codes = Array.from({ length: 64 }, (_, i) => (i * 37 + 11) % 2 ** bits);
  const pack = (bitOf: (at: number) => [byte: number, bit: number]) => {
    const bytes = new Uint8Array(8 * bits);
    for (const [i, code] of codes.entries())
      for (let b = 0; b < bits; b++) {
        const [byte, bit] = bitOf(i * bits + b);
        // Of MLX's, bit b of a code is its b-th lowest; of ours its b-th highest.
        bytes[byte]! |= ((bit < 0 ? code >> (bits - 1 - b) : code >> b) & 1) << (bit < 0 ? -1 - bit : bit);
      }
    return bytes;
  };
  const theirs = pack((at) => [at >> 3, at % 8]);
  const ours = pack((at) => [at >> 3, -1 - (7 - (at % 8))]);
  expect(inOurOrder(theirs, bits)).toEqual(ours);
  expect(inMlxOrder(ours, bits)).toEqual(theirs);
});
