// Checkpoints of GPTQ's and AWQ's: packed here as those programs pack them, held to (code - zero) · scale in doubles;
// what can't be read is refused by name.
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { inspectCheckpoint, verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { dequantizeCheckpoint, mergeAdapter, quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { type TensorSource, writeSafetensors } from "../src/checkpoint/writer.ts";
import { checkpoint, dequantizeBlockwise, Model, matmul, QuantizedTensor, Tensor } from "../src/index.ts";
import { errorOf } from "./reference.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-gptq-"));
afterAll(() => rmSync(scratch, { recursive: true }));

let made = 0;
const fresh = () => join(scratch, `${made++}`);

interface Layer {
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  readonly group: number;
  /** [rows, columns], [groups, rows], [groups, rows] */
  readonly codes: Uint8Array;
  readonly zeros: Uint8Array;
  readonly scales: Float16Array;
}

function layer(bits: number, { rows = 64, columns = 256, group = 64, zero = -1 } = {}): Layer {
  let state = bits;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
  const some = (count: number) => Uint8Array.from({ length: count }, () => Math.floor(random() * 2 ** bits));
  const groups = columns / group;
  const zeros = zero < 0 ? some(groups * rows) : new Uint8Array(groups * rows).fill(zero);
  const scales = Float16Array.from({ length: groups * rows }, () => (random() + 0.01) * 0.02);
  return { rows, columns, bits, group, codes: some(rows * columns), zeros, scales };
}

/** Values in doubles. */
function valuesOf({ rows, columns, group, codes, zeros, scales }: Layer): Float64Array {
  return Float64Array.from({ length: rows * columns }, (_, i) => {
    const [row, column] = [Math.floor(i / columns), i % columns];
    const at = Math.floor(column / group) * rows + row;
    return (codes[i]! - zeros[at]!) * scales[at]!;
  });
}

/** Codes as words, the lowest bit of the first code first, bit by bit. */
function words(codes: readonly number[], bits: number): number[] {
  const packed = new Array<number>((codes.length * bits) / 32).fill(0);
  for (const [i, code] of codes.entries())
    for (let bit = 0; bit < bits; bit++) {
      const at = i * bits + bit;
      packed[at >> 5]! |= ((code >> bit) & 1) << (at & 31);
    }
  return packed;
}

const range = (count: number) => Array.from({ length: count }, (_, i) => i);
const i32 = (name: string, shape: number[], bytes: Int32Array): TensorSource => ({ name, dtype: "I32", shape, bytes });

/** As GPTQ's programs save a layer: words down the columns; zeros along the rows, less one in the first version. */
function gptq(module: string, of: Layer, { version = 1, order = true } = {}): TensorSource[] {
  const { rows, columns, bits, group, codes, zeros, scales } = of;
  const groups = columns / group;
  const down = range(rows).map((row) => words([...codes.subarray(row * columns, (row + 1) * columns)], bits));
  const height = (columns * bits) / 32;
  const qweight = Int32Array.from({ length: height * rows }, (_, i) => down[i % rows]![Math.floor(i / rows)]!);
  const less = (zero: number) => (version === 1 ? (zero - 1) & (2 ** bits - 1) : zero);
  const along = range(groups).flatMap((g) => words([...zeros.subarray(g * rows, (g + 1) * rows)].map(less), bits));
  return [
    i32(`${module}.qweight`, [height, rows], qweight),
    i32(`${module}.qzeros`, [groups, (rows * bits) / 32], Int32Array.from(along)),
    { name: `${module}.scales`, dtype: "F16", shape: [groups, rows], bytes: scales },
    ...(order
      ? [
          i32(
            `${module}.g_idx`,
            [columns],
            Int32Array.from(range(columns), (i) => Math.floor(i / group)),
          ),
        ]
      : []),
  ];
}

/** As AutoAWQ saves a layer: eight rows' codes in a word, in the order that its kernels unpack. */
function awq(module: string, { rows, columns, group, codes, zeros, scales }: Layer): TensorSource[] {
  const order = [0, 2, 4, 6, 1, 3, 5, 7];
  const groups = columns / group;
  const packed = (at: (place: number, row: number) => number, count: number) =>
    Int32Array.from({ length: (count * rows) / 8 }, (_, i) => {
      const [place, word] = [Math.floor(i / (rows / 8)), i % (rows / 8)];
      return order.reduce((sum, row, nibble) => sum | (at(place, 8 * word + row) << (4 * nibble)), 0);
    });
  return [
    i32(
      `${module}.qweight`,
      [columns, rows / 8],
      packed((column, row) => codes[row * columns + column]!, columns),
    ),
    i32(
      `${module}.qzeros`,
      [groups, rows / 8],
      packed((g, row) => zeros[g * rows + row]!, groups),
    ),
    { name: `${module}.scales`, dtype: "F16", shape: [groups, rows], bytes: scales },
  ];
}

async function model(quantization: object, tensors: readonly TensorSource[], beside: TensorSource[] = []) {
  const folder = fresh();
  mkdirSync(folder);
  await writeSafetensors(join(folder, "model.safetensors"), [...tensors, ...beside]);
  const config = { model_type: "llama", architectures: ["LlamaForCausalLM"], quantization_config: quantization };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  return folder;
}

const module = "model.layers.0.mlp.up_proj";
const name = `${module}.weight`;

function expectExact(folder: string, of: Layer): void {
  using opened = openCheckpoint(folder);
  using w = checkpoint.loadWeight(opened, name) as QuantizedTensor;
  expect(w).toBeInstanceOf(QuantizedTensor);
  expect(w.shape).toEqual([of.rows, of.columns]);
  using dense = dequantizeBlockwise(w, { dtype: "float32" });
  const expected = valuesOf(of);
  expect(dense.readFloat32().filter((value, i) => value !== expected[i]).length).toBe(0);
}

describe("GPTQ", () => {
  test.each([2, 3, 4, 8])("%d bits, every value to the bit", async (bits) => {
    const of = layer(bits);
    for (const [version, format] of [
      [1, {}],
      [1, { checkpoint_format: "gptq" }],
      [2, { checkpoint_format: "gptq_v2" }],
    ] as const) {
      const said = { quant_method: "gptq", bits, group_size: of.group, desc_act: false, ...format };
      expectExact(await model(said, gptq(module, of, { version })), of);
    }
  });

  test("symmetric, in one group a row, of which no block could be as large", async () => {
    const of = layer(4, { columns: 3 * 4096, group: 3 * 4096, zero: 8, rows: 32 });
    const said = { quant_method: "gptq", bits: 4, group_size: -1, desc_act: true, sym: true };
    const folder = await model(said, gptq(module, of));
    expectExact(folder, of);
    using opened = openCheckpoint(folder);
    using w = checkpoint.loadWeight(opened, name) as QuantizedTensor;
    expect([w.blocksize, w.bits]).toEqual([4096, 4]);
  });

  test("scales in other dtypes, and groups that are no power of two", async () => {
    const of = layer(4, { columns: 192, group: 96 });
    const said = { quant_method: "gptq", bits: 4, group_size: 96 };
    const tensors = gptq(module, of, { order: false }).map((tensor) =>
      tensor.dtype === "F16" ? { ...tensor, dtype: "F32" as const, bytes: Float32Array.from(of.scales) } : tensor,
    );
    expectExact(await model(said, tensors), of);
  });

  test("a product is that of the values", async () => {
    const of = layer(4);
    const folder = await model({ quant_method: "gptq", bits: 4, group_size: of.group }, gptq(module, of));
    using opened = openCheckpoint(folder);
    using w = checkpoint.loadWeight(opened, name);
    const row = Float32Array.from({ length: of.columns }, (_, i) => Math.sin(i));
    using x = Tensor.from(row, [1, of.columns]);
    using y = matmul(x, w);
    const values = valuesOf(of);
    const got = y.read() as Float32Array;
    for (let r = 0; r < of.rows; r++) {
      const sum = row.reduce((all, value, i) => all + value * values[r * of.columns + i]!, 0);
      expect(Math.abs(got[r]! - sum)).toBeLessThan(1e-5);
    }
  });

  test("act-order is refused by name, with the next step", async () => {
    const of = layer(4);
    const said = { quant_method: "gptq", bits: 4, group_size: of.group, desc_act: true };
    const tensors = gptq(module, of);
    const order = tensors.find((tensor) => tensor.name.endsWith("g_idx"))!;
    const shuffled = i32(order.name, [of.columns], (order.bytes as Int32Array).toReversed());
    const act = [...tensors.filter((tensor) => tensor !== order), shuffled];
    const message = /act-order \(desc_act, g_idx\) gives each column a group of its own.*take a model without it/;
    for (const some of [act, gptq(module, of, { order: false })]) {
      using opened = openCheckpoint(await model(said, some));
      expect(errorOf(() => opened.quantized).message).toMatch(message);
    }
  });
});

describe("AWQ", () => {
  test("every value to the bit, and what the commands make of it", async () => {
    const of = layer(4, { group: 128 });
    const said = { quant_method: "awq", bits: 4, group_size: 128, zero_point: true, version: "gemm" };
    const norm: TensorSource = { name: "model.norm.weight", dtype: "F16", shape: [2], bytes: Float16Array.of(1, 2) };
    const folder = await model(said, awq(module, of), [norm]);
    expectExact(folder, of);
    const [first] = (await inspectCheckpoint(folder)).filter((report) => report.name === name);
    expect(first).toMatchObject({ format: "awq 4-bit/128", shape: [64, 256], bitsPerWeight: 4 + 16 / 128 + 4 / 128 });
    expect(await verifyCheckpoint(folder)).toMatchObject({ tensors: 2, quantized: { awq: 1 }, problems: [] });
    await expect(quantizeCheckpoint(folder, { output: fresh() })).rejects.toThrow(/quantised already \(awq\)/);
    const output = fresh();
    const report = await dequantizeCheckpoint(folder, { output, dtype: "float32" });
    expect([report.weights, report.kept]).toEqual([1, 1]);
    using dense = openCheckpoint(output);
    expect([...dense.tensors.keys()].sort()).toEqual([name, "model.norm.weight"]);
    expect(dense.tensors.get(name)!.values as Float32Array).toEqual(Float32Array.from(valuesOf(of)));
    const config = JSON.parse(readFileSync(join(output, "config.json"), "utf8"));
    expect(config.quantization_config).toBeUndefined();
    await expect(mergeAdapter(folder, folder, { output: fresh() })).rejects.toThrow(/adapter_config\.json/);
  });
});

test.each(["gptq", "awq"] as const)("a model of %s runs as its floats do", async (format) => {
  const original = join(import.meta.dir, "fixtures/models/llama");
  using opened = openCheckpoint(original);
  const tensors: TensorSource[] = [];
  for (const [key, tensor] of opened.tensors) {
    const [rows, columns] = tensor.shape as [number, number];
    if (/(?<!down)_proj\.weight$/.test(key)) {
      const of = layer(4, { rows, columns, group: 16 });
      tensors.push(...(format === "gptq" ? gptq : awq)(key.slice(0, -".weight".length), of));
    } else tensors.push({ name: key, dtype: tensor.dtype, shape: tensor.shape, bytes: tensor.bytes.slice() });
  }
  const folder = await model({ quant_method: format, bits: 4, group_size: 16 }, tensors);
  const config = JSON.parse(readFileSync(join(original, "config.json"), "utf8"));
  const quantization_config = { quant_method: format, bits: 4, group_size: 16 };
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, quantization_config }));
  for (const file of ["tokenizer.json", "tokenizer_config.json"]) cpSync(join(original, file), join(folder, file));
  const output = fresh();
  await dequantizeCheckpoint(folder, { output, dtype: "float32" });
  const logits = async (path: string) => {
    using loaded = await Model.load(path, { precision: "highest" });
    using session = loaded.session();
    return session.forward([1, 5, 9, 2]);
  };
  const [got, expected] = [await logits(folder), await logits(output)];
  const largest = Math.max(...expected.map(Math.abs));
  expect(largest).toBeGreaterThan(0.01);
  for (const [i, value] of got.entries()) expect(Math.abs(value - expected[i]!)).toBeLessThan(1e-5 * largest);
});

describe("what can't be read is refused by name", () => {
  const of = layer(4);
  const base = { quant_method: "gptq", bits: 4, group_size: 64 };
  const without = (part: string) => gptq(module, of).filter((tensor) => !tensor.name.endsWith(part));
  test.each<[object, TensorSource[], RegExp]>([
    [{ ...base, bits: 5 }, gptq(module, of), /up_proj: bits is 5; of gptq, 2, 3, 4, 8 can be read/],
    [{ ...base, bits: "x" }, gptq(module, of), /bits is NaN/],
    [
      { ...base, group_size: 0 },
      gptq(module, of),
      /groups of 0, which its scales \[4,64\] and qzeros \[4,8\] do not fit/,
    ],
    [{ ...base, group_size: 128 }, gptq(module, of), /in groups of 128, which its scales/],
    [{ ...base, checkpoint_format: "marlin" }, gptq(module, of), /checkpoint_format is "marlin"; of gptq, "gptq" or/],
    [{ ...base, dynamic: { "-:.*": {} } }, gptq(module, of), /dynamic is .*one width for all is read/],
    [{ ...base, pack_dtype: "int64" }, gptq(module, of), /pack_dtype is "int64"/],
    [base, without("scales"), /up_proj\.scales is missing beside .*qweight; fetch the model again/],
    [base, without("qzeros"), /up_proj\.qzeros is missing/],
    [{ quant_method: "awq", bits: 4, group_size: 64, version: "gemv" }, awq(module, of), /version is "gemv"/],
    [{ quant_method: "awq", bits: 8, group_size: 64 }, awq(module, of), /of awq, 4 can be read/],
  ])("%j", async (said, tensors, message) => {
    using opened = openCheckpoint(await model(said, tensors));
    expect(errorOf(() => opened.quantized).message).toMatch(message);
  });

  test("groups of fewer than 16", async () => {
    const small = layer(4, { columns: 64, group: 8 });
    using opened = openCheckpoint(await model({ ...base, group_size: 8 }, gptq(module, small)));
    expect(errorOf(() => opened.quantized).message).toMatch(/groups of 8; groups of a multiple of 16 can be read/);
  });
});
