// Whole checkpoints: shards and index, quantising and back, the output directory, inspecting and verifying.
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint, shardBytesDefault } from "../src/checkpoint/checkpoint.ts";
import { inspectCheckpoint, verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { storedPieces } from "../src/checkpoint/pieces.ts";
import { isOurs } from "../src/checkpoint/state.ts";
import { fromStored } from "../src/checkpoint/steps.ts";
import { dequantizeCheckpoint, quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { BnbError, checkpoint, type Int8Weight, type QuantizedTensor, quantize4bit, Tensor } from "../src/index.ts";
import { llamaDirectory, llamaShapes, weights } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-checkpoint-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let folders = 0;
const fresh = () => join(scratch, `out-${folders++}`);

const model = join(scratch, "llama");
await llamaDirectory(model);

const bytesByName = (path: string) => {
  using opened = openCheckpoint(path);
  return new Map([...opened.tensors].map(([name, tensor]) => [name, Buffer.from(tensor.bytes).toString("base64")]));
};

describe("shards", () => {
  const sharded = join(scratch, "sharded");
  test("a checkpoint above the limit is split, with an index that transformers reads", async () => {
    await quantizeCheckpoint(model, { output: sharded, shardBytes: 40_000, doubleQuant: true });
    const files = readdirSync(sharded)
      .filter((name) => name.endsWith(".safetensors"))
      .sort();
    expect(files.length).toBeGreaterThan(1);
    expect(files[0]).toBe(`model-00001-of-0000${files.length}.safetensors`);
    const index = JSON.parse(readFileSync(join(sharded, "model.safetensors.index.json"), "utf8"));
    const elements = Object.values(llamaShapes).map((shape) => shape.reduce((a, b) => a * b, 1));
    expect(index.metadata.total_parameters).toBe(elements.reduce((a, b) => a + b));
    expect(Object.keys(index.weight_map)).toEqual(Object.keys(index.weight_map).sort());
    const whole = fresh();
    await quantizeCheckpoint(model, { output: whole, doubleQuant: true });
    expect(bytesByName(sharded)).toEqual(bytesByName(whole));
    expect(bytesByName(join(sharded, "model.safetensors.index.json"))).toEqual(bytesByName(whole));
  });

  test("another shard is begun above 50 GB, as transformers does", () => expect(shardBytesDefault).toBe(50e9));

  const damage: [string, RegExp, (index: Record<string, string>) => void][] = [
    [
      "a tensor that its file lacks",
      /"x.weight": model-00001\S+ does not have it/,
      (map) => (map["x.weight"] = Object.values(map)[0]!),
    ],
    [
      "a file that is missing",
      /its file "none.safetensors" is missing/,
      (map) => (map["x.weight"] = "none.safetensors"),
    ],
    [
      "a file of a name that no file can have",
      /its file "x+\.safetensors" is missing/,
      (map) => (map["x.weight"] = `${"x".repeat(300)}.safetensors`),
    ],
    ["a file of no text's name", /its file "\\u0000" is missing/, (map) => (map["x.weight"] = "\0")],
    [
      "a file elsewhere",
      /names the file "..\/llama\/model.safetensors"/,
      (map) => (map["x.weight"] = "../llama/model.safetensors"),
    ],
  ];
  test.each(damage.map((row) => [row[0], row] as const))("an index with %s is refused", (_, [, message, apply]) => {
    const path = join(sharded, "model.safetensors.index.json");
    const text = readFileSync(path, "utf8");
    const index = JSON.parse(text);
    apply(index.weight_map);
    writeFileSync(path, JSON.stringify(index));
    expect(() => openCheckpoint(sharded)).toThrow(message);
    writeFileSync(path, text);
  });

  test("a tensor in two files is refused", async () => {
    const folder = fresh();
    mkdirSync(folder);
    const x = { name: "x", dtype: "U8" as const, shape: [1], bytes: Uint8Array.of(1) };
    await writeSafetensors(join(folder, "a.safetensors"), [x]);
    await writeSafetensors(join(folder, "b.safetensors"), [x, { ...x, name: "y" }]);
    const map = { x: "a.safetensors", y: "b.safetensors" };
    writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify({ weight_map: map }));
    expect(() => openCheckpoint(folder)).toThrow(/"x": it stands in \S*a.safetensors too/);
  });

  test("a directory without weights says what it has instead", () => {
    const folder = fresh();
    mkdirSync(folder);
    expect(() => openCheckpoint(folder)).toThrow(/but no weights/);
    writeFileSync(join(folder, "model.gguf"), "");
    expect(() => openCheckpoint(folder)).toThrow(/convert the GGUF file first/);
    expect(() => openCheckpoint(join(folder, "none"))).toThrow(/does not exist/);
  });
});

describe("transforming", () => {
  test("quantise: names, dtypes, config, other files", async () => {
    const output = fresh();
    const seen: number[] = [];
    const onProgress = ({ inputBytes, inputBytesTotal }: { inputBytes: number; inputBytesTotal: number }) => {
      seen.push(inputBytes / inputBytesTotal);
    };
    const report = await quantizeCheckpoint(model, { output, dtype: "bfloat16", onProgress });
    expect(report).toMatchObject({ weights: 7, kept: 5, carried: ["onnx/README.md", "tokenizer.json"], notes: [] });
    expect(seen.at(-1)).toBe(1);
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    using opened = openCheckpoint(output);
    expect(opened.tensors.get("model.norm.weight")!.dtype).toBe("BF16");
    expect(opened.tensors.get("lm_head.weight")!.shape).toEqual([96, 64]);
    expect(opened.tensors.get("model.layers.0.mlp.up_proj.weight")!.shape).toEqual([4096, 1]);
    expect(opened.tensors.size).toBe(5 + 7 * 4);
    const config = readFileSync(join(output, "config.json"), "utf8");
    expect(config).toContain('"rope_theta": 10000.0,');
    expect(config).toContain('"torch_dtype": "bfloat16"');
  });

  test("dequantise: the original's names and shapes, within theory's error, and no quantization_config", async () => {
    const quantized = fresh();
    const output = fresh();
    await quantizeCheckpoint(model, { output: quantized });
    const report = await dequantizeCheckpoint(quantized, { output });
    expect(report.weights).toBe(7);
    using opened = openCheckpoint(output);
    expect(Object.fromEntries([...opened.tensors].map(([name, { shape }]) => [name, shape]))).toEqual(llamaShapes);
    expect(readFileSync(join(output, "config.json"), "utf8")).not.toContain("quantization_config");
    const [worst] = await inspectCheckpoint(output, { errorAgainst: quantized });
    expect(worst!.error!.relative).toBe(0);
  });

  test("what is quantised already, or never was, is refused", async () => {
    const quantized = fresh();
    await quantizeCheckpoint(model, { output: quantized });
    await expect(quantizeCheckpoint(quantized, { output: fresh() })).rejects.toThrow(/quantised already \(nf4\)/);
    const file = join(quantized, "model.safetensors");
    rmSync(join(quantized, "config.json"));
    await expect(quantizeCheckpoint(file, { output: fresh() })).rejects.toThrow(/quantised already \(nf4\)/);
    await expect(dequantizeCheckpoint(model, { output: fresh() })).rejects.toThrow(/holds no quantised weights/);
  });

  test("an error is told over the original's size", async () => {
    const [input, doubled, output] = [fresh(), fresh(), fresh()];
    for (const [folder, factor] of [
      [input, 1],
      [doubled, 2],
    ] as const) {
      mkdirSync(folder);
      const bytes = weights(64 * 64).map((value) => factor * value);
      await writeSafetensors(join(folder, "model.safetensors"), [
        { name: "fc.weight", dtype: "F32", shape: [64, 64], bytes },
      ]);
    }
    await quantizeCheckpoint(doubled, { output });
    const [report] = await inspectCheckpoint(output, { errorAgainst: input });
    expect(report!.error!.relative).toBeWithin(0.97, 1.03); // the wrong way round it would be a half
  });

  test("a NaN is found: the tensor and the place are named, and nothing is left", async () => {
    const input = fresh();
    const bad = weights(64 * 64);
    bad[64 * 3 + 5] = Number.NaN;
    mkdirSync(input);
    const tensors = [{ name: "fc.weight", dtype: "F32" as const, shape: [64, 64], bytes: bad }];
    await writeSafetensors(join(input, "model.safetensors"), tensors);
    const output = fresh();
    await expect(quantizeCheckpoint(input, { output })).rejects.toThrow(
      /fc.weight: quantizeBlockwise: x\[3, 5\] is -?nan/,
    );
    await quantizeCheckpoint(input, { output }).catch(() => {});
    expect(existsSync(output)).toBe(false);
    expect(readdirSync(scratch).filter((name) => name.startsWith("."))).toEqual([]);
    expect((await verifyCheckpoint(input)).problems).toEqual(["fc.weight has 1 values that are NaN or infinite."]);
  });
});

describe("int8", () => {
  test("a layer becomes bitsandbytes' own bytes, and its config transformers' own", async () => {
    const input = fresh();
    const output = fresh();
    mkdirSync(input);
    const values = Float16Array.from(
      { length: 64 * 128 },
      (_, i) => Math.sin(0.37 * i) * 0.05 + Math.cos(0.0011 * i * i) * 0.02,
    );
    const tensors = [{ name: "layer.weight", dtype: "F16" as const, shape: [64, 128], bytes: values }];
    await writeSafetensors(join(input, "model.safetensors"), tensors);
    writeFileSync(join(input, "config.json"), '{"model_type": "llama", "dtype": "float16"}');
    await quantizeCheckpoint(input, { output, quantType: "int8" });
    const { "layer.bias": _, ...golden } = Object.fromEntries(
      bytesByName(join(import.meta.dir, "golden/int8.safetensors")),
    );
    expect(Object.fromEntries(bytesByName(output))).toEqual(golden);
    const { quantization_config } = JSON.parse(readFileSync(join(output, "config.json"), "utf8"));
    expect(quantization_config).toMatchObject({
      load_in_8bit: true,
      load_in_4bit: false,
      bnb_4bit_compute_dtype: "float32",
    });
  });

  test("a model goes there and back: sound, near the original, in the model's dtype", async () => {
    const quantized = fresh();
    const output = fresh();
    expect(await quantizeCheckpoint(model, { output: quantized, quantType: "int8", dtype: "bfloat16" })).toMatchObject({
      weights: 7,
      kept: 5,
    });
    expect(await verifyCheckpoint(quantized)).toMatchObject({ problems: [], quantized: { int8: 7 } });
    const reports = await inspectCheckpoint(quantized, { errorAgainst: model });
    const compared = reports.filter(({ format }) => format === "int8");
    expect(compared.length).toBe(7);
    for (const { error, bitsPerWeight } of compared) {
      expect(bitsPerWeight).toBeWithin(8, 9);
      expect(error!.relative).toBeWithin(0.003, 0.02);
    }
    await dequantizeCheckpoint(quantized, { output });
    using opened = openCheckpoint(output);
    expect(opened.tensors.get("model.layers.0.mlp.up_proj.weight")!.dtype).toBe("BF16");
    expect(Object.fromEntries([...opened.tensors].map(([name, { shape }]) => [name, shape]))).toEqual(llamaShapes);

    using loaded = openCheckpoint(quantized);
    using up = checkpoint.loadWeight(loaded, "model.layers.0.mlp.up_proj.weight") as Int8Weight;
    expect([up.shape, up.SCB.shape]).toEqual([[128, 64], [128]]);
  });

  test("options of 4-bit weights are refused", async () => {
    for (const option of [{ doubleQuant: true }, { blocksize: 128 }, { quantStorage: "bfloat16" as const }])
      await expect(quantizeCheckpoint(model, { output: fresh(), quantType: "int8", ...option })).rejects.toThrow(
        /int8 weights have one scale a row/,
      );
  });
});

test("weights load as what they are", async () => {
  const output = fresh();
  await quantizeCheckpoint(model, { output, dtype: "bfloat16" });
  using opened = checkpoint.openCheckpoint(output);
  using up = checkpoint.loadWeight(opened, "model.layers.0.mlp.up_proj.weight") as QuantizedTensor;
  expect([up.quantType, up.shape, up.dtype]).toEqual(["nf4", [128, 64], "bfloat16"]);
  using norm = checkpoint.loadWeight(opened, "model.norm.weight") as Tensor;
  expect([norm.dtype, norm.shape]).toEqual(["bfloat16", [64]]);
  expect(() => checkpoint.loadWeight(opened, "norm")).toThrow(/has no weight "norm"/);
});

describe("the output directory", () => {
  test("is not overwritten unless forced; forced, old shards go and other files stay", async () => {
    const output = fresh();
    await quantizeCheckpoint(model, { output, shardBytes: 40_000 });
    writeFileSync(join(output, "notes.txt"), "mine");
    await expect(quantizeCheckpoint(model, { output })).rejects.toThrow(/is not empty; .*--force/);
    await quantizeCheckpoint(model, { output, force: true });
    const weightsFiles = readdirSync(output).filter((name) => name.startsWith("model"));
    expect(weightsFiles).toEqual(["model.safetensors"]);
    expect(readFileSync(join(output, "notes.txt"), "utf8")).toBe("mine");
  });

  test("is never the input, nor a file", async () => {
    await expect(quantizeCheckpoint(model, { output: model, force: true })).rejects.toThrow(/is where the input is/);
    const file = join(model, "model.safetensors");
    await expect(quantizeCheckpoint(file, { output: model, force: true })).rejects.toThrow(/is where the input is/);
    await expect(quantizeCheckpoint(model, { output: file })).rejects.toThrow(/is a file, expected a directory/);
  });

  test("may be empty, and its parents are made", async () => {
    const output = join(fresh(), "a/b");
    mkdirSync(output, { recursive: true });
    await quantizeCheckpoint(model, { output });
    expect(existsSync(join(output, "model.safetensors"))).toBe(true);
  });
});

describe("inspecting", () => {
  test("counts all that belongs to a weight, and sorts errors with the worst first", async () => {
    const output = fresh();
    await quantizeCheckpoint(model, { output, doubleQuant: true, blocksize: 128, skip: ["down_proj"] });
    const reports = await inspectCheckpoint(output);
    const up = reports.find(({ name }) => name.endsWith("up_proj.weight"))!;
    expect(up).toMatchObject({ format: "nf4/128+dq", shape: [128, 64] });
    using opened = openCheckpoint(output);
    const parts = [...opened.tensors.values()].filter(({ name }) => name.startsWith(up.name));
    expect(up.bytes).toBe(parts.reduce((sum, part) => sum + part.byteLength, 0));
    expect(up.bitsPerWeight).toBe((8 * up.bytes) / (128 * 64));
    const compared = (await inspectCheckpoint(output, { errorAgainst: model })).filter(({ error }) => error);
    expect(compared.length).toBe(6);
    const errors = compared.map(({ error }) => error!.relative);
    expect(errors).toEqual(errors.toSorted((a, b) => b - a));
    // NF4's error for such weights: about a tenth.
    for (const error of errors) expect(error).toBeWithin(0.05, 0.15);
  });

  test("models that have nothing in common are refused", async () => {
    await expect(inspectCheckpoint(model, { errorAgainst: model })).rejects.toThrow(/nothing to compare/);
  });
});

describe("verifying", () => {
  test("a sound checkpoint has no problems; one that its config.json contradicts has", async () => {
    const output = fresh();
    await quantizeCheckpoint(model, { output, quantType: "fp4" });
    expect(await verifyCheckpoint(output)).toEqual({ tensors: 12, quantized: { fp4: 7 }, problems: [] });
    const path = join(output, "config.json");
    const config = readFileSync(path, "utf8");
    writeFileSync(path, config.replace('"fp4"', '"nf4"'));
    expect((await verifyCheckpoint(output)).problems).toEqual([
      "config.json says that weights are nf4, but fp4 are stored.",
    ]);
    writeFileSync(path, "{}");
    expect((await verifyCheckpoint(output)).problems[0]).toMatch(/has no quantization_config/);
  });

  /** A 4-bit weight of 64 elements, of which one part may be another. */
  async function fourBit(parts: Record<string, ArrayBufferView> = {}): Promise<string> {
    const path = `${fresh()}.safetensors`;
    using w = quantize4bit(Tensor.from(weights(64), [8, 8]));
    const tensors = checkpoint.toStateDict("w", w);
    await writeSafetensors(
      path,
      tensors.map((tensor) => ({ ...tensor, bytes: parts[tensor.name.slice(2)] ?? tensor.bytes })),
    );
    return path;
  }

  test("a codebook that is not its type's, which bitsandbytes would not look at, is a problem, and refused", async () => {
    expect((await verifyCheckpoint(await fourBit())).problems).toEqual([]);
    const path = await fourBit({ quant_map: Float32Array.from({ length: 16 }, (_, i) => i / 16) });
    expect((await verifyCheckpoint(path)).problems).toEqual([
      expect.stringMatching(/^w.quant_map is not the codebook of nf4/),
    ]);
    using opened = openCheckpoint(path);
    expect(() => checkpoint.loadWeight(opened, "w")).toThrow(
      /w.quant_map is not the codebook of nf4; bitsandbytes would/,
    );
  });

  test.each([-1, Number.NEGATIVE_INFINITY, Number.POSITIVE_INFINITY, Number.NaN])(
    "a scale of %p is a problem",
    async (scale) => {
      const { problems } = await verifyCheckpoint(await fourBit({ absmax: Float32Array.of(scale) }));
      expect(problems.at(-1)).toBe("w has 1 scales in w.absmax that are negative, NaN or infinite.");
    },
  );

  test("weights of every format come in pieces to the same verdict as whole", async () => {
    const large = fresh(); // beyond one block of nested scales, 256 blocks of 64
    await llamaDirectory(large, { ...llamaShapes, "model.layers.0.mlp.up_proj.weight": [600, 64] });
    for (const quantType of ["nf4", "int8", "nf3"] as const)
      for (const doubleQuant of quantType === "int8" ? [false] : [false, true]) {
        const output = fresh();
        await quantizeCheckpoint(large, { output, quantType, doubleQuant });
        using opened = openCheckpoint(output);
        for (const stored of opened.quantized.values()) {
          if (!isOurs(stored)) throw new Error("expected a format of bitsandbytes");
          const pieces = storedPieces(stored, "float32");
          const values = [...pieces.runs(pieces.unit)].flatMap((piece) => [...piece.read()]);
          using whole = fromStored(stored, "float32").load();
          expect(values).toEqual([...whole.read()]);
        }
      }
  });

  test("damage is an error that names the file", async () => {
    const output = fresh();
    await quantizeCheckpoint(model, { output });
    const path = join(output, "model.safetensors");
    writeFileSync(path, readFileSync(path).subarray(0, -1));
    const verifying = verifyCheckpoint(output);
    await expect(verifying).rejects.toThrow(path);
    await verifying.catch((error) => expect(error).toBeInstanceOf(BnbError));
  });
});

describe("blocks of 16, which bitsandbytes has not", () => {
  test("are stored under this library's key, and read again", async () => {
    const path = join(scratch, "sixteen.safetensors");
    using w = Tensor.from(weights(64 * 64), [64, 64]);
    using q = quantize4bit(w, { blocksize: 16 });
    await writeSafetensors(path, checkpoint.toStateDict("a.weight", q));
    using opened = openCheckpoint(path);
    using again = checkpoint.fromStateDict(opened.quantized.get("a.weight")!) as QuantizedTensor;
    expect([again.blocksize, again.codes.read()]).toEqual([16, q.codes.read()]);
  });

  test("are refused for a model that transformers is to load, before any work", async () => {
    const input = join(scratch, "sixteen");
    await llamaDirectory(input);
    const output = join(scratch, "sixteen-nf4");
    await expect(quantizeCheckpoint(input, { output, blocksize: 16 })).rejects.toThrow(
      /blocksize is 16, and bitsandbytes has blocks of 32 to 4096 for nf4/,
    );
    const report = await quantizeCheckpoint(input, { output, blocksize: 16, quantType: "af4" });
    expect([report.weights, (await verifyCheckpoint(output)).problems]).toEqual([7, []]);
  });
});
