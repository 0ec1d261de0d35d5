// Packages of Core ML's: the file of weights byte by byte, the program's text, and what is refused. That coremltools
// reads them, and what they compute, is in test/real/coreml.ts.
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { int4Of, quantizeInt4 } from "../src/coreml/int4.ts";
import { Codebook, checkpoint, dequantizeBlockwise, QuantizedTensor, Tensor } from "../src/index.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-coreml-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const fixture = (family: string) => join(import.meta.dir, "fixtures/models", family);

let made = 0;
const fresh = () => join(scratch, `${made++}.mlpackage`);
const inner = "Data/com.apple.CoreML";

interface Entry {
  readonly dtype: number;
  readonly data: Buffer;
}

/** The file of weights, read from Apple's description of it alone. */
function entriesOf(output: string): Entry[] {
  const file = readFileSync(join(output, inner, "weights/weight.bin"));
  expect([file.readUInt32LE(4), file.length % 64]).toEqual([2, 0]);
  const entries: Entry[] = [];
  for (let at = 64; at < file.length; ) {
    const [bytes, start] = [Number(file.readBigUInt64LE(at + 8)), Number(file.readBigUInt64LE(at + 16))];
    expect([file.readUInt32LE(at), start, file.subarray(at + 24, at + 64).every((byte) => byte === 0)]).toEqual([
      ...[0xdeadbeef, at + 64],
      true,
    ]);
    entries.push({ dtype: file.readUInt32LE(at + 4), data: file.subarray(start, start + bytes) });
    at = Math.ceil((start + bytes) / 64) * 64;
  }
  expect(entries.length).toBe(file.readUInt32LE(0));
  return entries;
}

const floats = ({ data }: Entry) => new Float32Array(Uint8Array.from(data).buffer);

describe("the file of weights", () => {
  test("of a dense model has its tensors", async () => {
    const output = fresh();
    const report = await checkpoint.exportCoreml(fixture("bert"), { output, dtype: "float32", tokens: 16 });
    const entries = entriesOf(output);
    using model = checkpoint.openCheckpoint(fixture("bert"));
    using words = checkpoint.loadWeight(model, "embeddings.word_embeddings.weight") as Tensor<"bfloat16">;
    expect(floats(entries[0]!)).toEqual(words.readFloat32().slice());
    using positions = checkpoint.loadWeight(model, "embeddings.position_embeddings.weight") as Tensor<"bfloat16">;
    expect(floats(entries[1]!)).toEqual(positions.readFloat32().slice(0, 16 * 32));
    expect(entries.every(({ dtype }) => dtype === 2)).toBe(true);
    expect(report).toMatchObject({ weights: 0, kept: entries.length, notes: [expect.stringMatching(/^For macOS 15/)] });
    const text = readFileSync(join(output, inner, "model.mlmodel")).toString("latin1");
    for (const word of ["CoreML8", "input_ids", "attention_mask", "last_hidden_state", "embedding", "layer_norm"])
      expect(text).toContain(word);
    const manifest = JSON.parse(readFileSync(join(output, "Manifest.json"), "utf8"));
    expect(manifest.itemInfoEntries[manifest.rootModelIdentifier].path).toBe("com.apple.CoreML/model.mlmodel");
  });

  test.each([{}, { doubleQuant: true }])("of a quantised one, %j, gives what dequantising gives", async (options) => {
    const model = join(scratch, `nf4-${made}`);
    await checkpoint.quantizeCheckpoint(fixture("bert"), { output: model, blocksize: 32, ...options });
    const output = fresh();
    const report = await checkpoint.exportCoreml(model, { output, dtype: "float32" });
    expect([report.weights, report.notes[0]]).toEqual([10, expect.stringMatching(/macOS 26 .* 40 tokens/)]);
    const entries = entriesOf(output);
    using opened = checkpoint.openCheckpoint(model);
    using weight = checkpoint.loadWeight(opened, "encoder.layer.0.attention.self.query.weight") as QuantizedTensor;
    using dense = dequantizeBlockwise(weight, { dtype: "float32" });
    const first = entries.findIndex(({ dtype }) => dtype === 11);
    const [codes, table, scales] = [entries[first]!.data, floats(entries[first + 1]!), floats(entries[first + 2]!)];
    const got = Float32Array.from({ length: 32 * 32 }, (_, i) =>
      Math.fround(table[nibble(codes, i)]! * scales[i >> 5]!),
    );
    expect(got).toEqual(dense.readFloat32().slice());
  });

  const nibble = (bytes: Uint8Array, i: number) => (bytes[i >> 1]! >> (4 * (i & 1))) & 15; // the first is the lower one
  /** What coremltools computes of integers: scale × (code - zero). */
  const integersOf = (entries: readonly Entry[], from: number, count: number, block: number) => {
    const [codes, scale, zero] = entries.slice(from) as [Entry, Entry, Entry];
    const [scales, zeros] = [floats(scale), zero.dtype === 11 ? undefined : floats(zero)];
    const zeroAt = (b: number) => zeros?.[b] ?? nibble(zero.data, b);
    return Float32Array.from({ length: count }, (_, i) => {
      const b = Math.floor(i / block);
      return Math.fround(scales[b]! * Math.fround(nibble(codes.data, i) - zeroAt(b)));
    });
  };

  test.each([
    ["a dense one", undefined],
    ["one in NF4", { blocksize: 64 }],
  ] as const)("of %s as int4 has integers, for macOS 15", async (_, options) => {
    const model = options ? join(scratch, `nf4-int4-${made}`) : fixture("bert");
    if (options) await checkpoint.quantizeCheckpoint(fixture("bert"), { output: model, ...options });
    const output = fresh();
    const report = await checkpoint.exportCoreml(model, { output, dtype: "float32", quantType: "int4" });
    expect(report.weights).toBe(10); // two have rows of 48
    expect(report.notes.slice(0, 2)).toEqual([
      expect.stringMatching(/^For macOS 15 and iOS 18/),
      "10 weights were quantised to int4, in blocks of 32.",
    ]);
    const entries = entriesOf(output);
    const first = entries.findIndex(({ dtype }) => dtype === 11);
    expect(entries.slice(first, first + 3).map(({ dtype }) => dtype)).toEqual([11, 2, 11]);
    using opened = checkpoint.openCheckpoint(model);
    using weight = checkpoint.loadWeight(opened, "encoder.layer.0.attention.self.query.weight");
    using dense =
      weight instanceof QuantizedTensor
        ? dequantizeBlockwise(weight, { dtype: "float32" })
        : (weight as Tensor<"float32">);
    using q = quantizeInt4(dense);
    const want = dequantizeBlockwise(q, { dtype: "float32" }).readFloat32().slice();
    expect(integersOf(entries, first, 32 * 32, 32)).toEqual(want);
    // As near as 4 bits get: half a step of a sixteenth of a block's range.
    const x = dense.readFloat32();
    for (let b = 0; b < 32; b++) {
      const block = [...x.subarray(32 * b, 32 * b + 32), 0];
      const step = (Math.max(...block) - Math.min(...block)) / 15;
      for (let i = 32 * b; i < 32 * b + 32; i++) expect(Math.abs(want[i]! - x[i]!)).toBeLessThan(1.02 * step);
    }
  });

  test("of MLX's integers has their codes, and floats for zero points that are none", async () => {
    const model = join(scratch, "mlx");
    await checkpoint.quantizeToMlx(fixture("bert"), { output: model, blocksize: 32 });
    const output = fresh();
    const report = await checkpoint.exportCoreml(model, { output, dtype: "float32" });
    expect(report.notes[0]).toMatch(/^For macOS 15 and iOS 18/);
    const entries = entriesOf(output);
    using opened = checkpoint.openCheckpoint(model);
    using weight = checkpoint.loadWeight(opened, "encoder.layer.0.attention.self.query.weight") as QuantizedTensor;
    const want = dequantizeBlockwise(weight, { dtype: "float32" }).read();
    const first = entries.findIndex(({ dtype }) => dtype === 11);
    const got = integersOf(entries, first, 32 * 32, 32);
    const largest = Math.max(...want.map(Math.abs));
    expect(Math.max(...got.map((value, i) => Math.abs(value - want[i]!)))).toBeLessThan(2e-6 * largest);
  });

  test.each([
    ["whole numbers from -8 on", Array.from({ length: 16 }, (_, i) => i - 8), undefined, Array(6).fill(8)],
    ["zero points", Array.from({ length: 16 }, (_, i) => i), [-3, 0, -15, -7, -1, -2], [3, 0, 15, 7, 1, 2]],
    [
      "a zero point beyond the codes",
      Array.from({ length: 16 }, (_, i) => i),
      [-16, 0, 0, 0, 0, 0],
      [16, 0, 0, 0, 0, 0],
    ],
    ["no integers", [...Codebook.named("nf4").values], undefined, undefined],
  ])("%s", (_, values, zeros, want) => {
    const scales = Float32Array.of(0.5, 0.25, 3, 1, 0.125, 2);
    const codes = Uint8Array.from({ length: 48 }, (_, i) => i * 41);
    using q = QuantizedTensor.fromParts({
      ...{ codes: Tensor.from(codes) as Tensor<"uint8">, absmax: Tensor.from(scales), code: Codebook.from(values) },
      ...{ blocksize: 16, shape: [3, 32], offsets: zeros && Tensor.from(zeros.map((zero, b) => zero * scales[b]!)) },
    });
    const int4 = int4Of(q, q.absmax as Tensor<"float32">);
    const found =
      int4 &&
      Array.from(
        { length: 6 },
        (_, b) => 0 + (int4.zeros instanceof Uint8Array ? nibble(int4.zeros, b) : int4.zeros[b]!),
      );
    expect(found).toEqual(want);
    if (int4) expect(nibble(int4.codes, 0)).toBe(codes[0]! >> 4);
  });

  test("has floats for codes that Core ML has no blocks for, and says so", async () => {
    const model = join(scratch, "nf4-across");
    await checkpoint.quantizeCheckpoint(fixture("bert"), { output: model, blocksize: 64 });
    const output = fresh();
    const { weights, notes } = await checkpoint.exportCoreml(model, { output });
    expect([weights, notes[1]]).toEqual([0, expect.stringMatching(/^12 quantised weights, such as encoder\.layer\.0/)]);
    expect(entriesOf(output).every(({ dtype }) => dtype === 1)).toBe(true);
  });

  test("is the same every time", async () => {
    const [one, two] = [fresh(), fresh()];
    for (const output of [one, two]) await checkpoint.exportCoreml(fixture("roberta"), { output });
    for (const file of ["weights/weight.bin", "model.mlmodel"])
      expect(Buffer.compare(readFileSync(join(one, inner, file)), readFileSync(join(two, inner, file)))).toBe(0);
  });
});

// Byte by byte, as coremltools read them and computed what transformers does (test/real/coreml.ts): to be renewed only
// with that test run.
test.each([
  ["bert", undefined, { dtype: "float32", tokens: 16 }, ["9ffabc10758a6a20", "9969e08a7872595c"]],
  ["bert", { blocksize: 32 }, { dtype: "float16" }, ["6ec3709c2ea8461b", "e99297f114d8f8c1"]],
  ["bert", { blocksize: 32, doubleQuant: true }, { dtype: "float32" }, ["dc87eaf3fe2359f1", "dbb04812b1e2366f"]],
  ["roberta", undefined, {}, ["c18533e406867087", "3540d0f4ff98772b"]],
  ["xlm-roberta", undefined, { tokens: 8 }, ["954463a57be9ad09", "a671a85cc9c2654a"]],
] as const)(
  "the package of %s, %j, %j is the one that Core ML's own tools read",
  async (family, quantized, options, want) => {
    let model = fixture(family);
    if (quantized) {
      model = join(scratch, `${family}-${made++}`);
      await checkpoint.quantizeCheckpoint(fixture(family), { output: model, ...quantized });
    }
    const output = fresh();
    await checkpoint.exportCoreml(model, { output, ...options });
    const digest = (file: string) =>
      new Bun.CryptoHasher("sha256").update(readFileSync(join(output, file))).digest("hex");
    expect(["weights/weight.bin", "model.mlmodel"].map((file) => digest(`${inner}/${file}`).slice(0, 16))).toEqual([
      ...want,
    ]);
  },
);

describe("what is refused, and leaves nothing", () => {
  test.each([
    ["llama", {}, /llama is not written for Core ML; bert, roberta and xlm-roberta are/],
    ["nomic_bert", {}, /nomic_bert is not written/],
    ["mpnet", {}, /mpnet is not written/],
    ["bert", { tokens: 41 }, /tokens is 41; the model reads 40 at most/],
    ["bert", { tokens: 0 }, /tokens is 0/],
    ["bert", { dtype: "bfloat16" }, /dtype is "bfloat16"/],
    ["bert", { quantType: "nf4" }, /quantType is "nf4"/],
    ["bert", { output: "./model" }, /must end with \.mlpackage/],
  ])("%s %j", async (family, options, message) => {
    const output = fresh();
    await expect(checkpoint.exportCoreml(fixture(family), { output, ...options } as never)).rejects.toThrow(message);
    expect(existsSync(output)).toBe(false);
  });
});
