// The tests of layers that are made by sizes, and of the layer that fits a checkpoint's weight.
import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  checkpoint,
  createLinearMap,
  Int8Weight,
  linear,
  nn,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { testDevices, wave } from "./cases.ts";
import { errorOf } from "./reference.ts";

describe.each(testDevices)("on %s", (_, device) => {
  test("linear layers by their sizes: what torch's spread is, the same from the same seed", () => {
    const classes = {
      Linear4bit: nn.Linear4bit,
      LinearNF4: nn.LinearNF4,
      LinearFP4: nn.LinearFP4,
      Linear8bitLt: nn.Linear8bitLt,
    };
    for (const [name, Class] of Object.entries(classes)) {
      using layer = Class.init(64, 32, { device, seed: 3 });
      expect([layer.constructor.name, layer.inFeatures, layer.outFeatures]).toEqual([name, 64, 32]);
      expect(layer.device).toBe(device);
      using x = Tensor.from(wave(2 * 64), [2, 64], { device });
      const y = layer.forward(x).read();
      using again = Class.init(64, 32, { device, seed: 3 });
      using other = Class.init(64, 32, { device, seed: 4 });
      expect(again.forward(x).read()).toEqual(y);
      expect(other.forward(x).read()).not.toEqual(y);
    }
    using fp4 = nn.LinearFP4.init(64, 32, { device });
    expect(fp4.weight.quantType).toBe("fp4");
    using eight = nn.Linear8bitLt.init(64, 48, { device });
    const values = eight.weight.dequantize({ dtype: "float32" }).read();
    expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(1 / 8 + 1e-3); // 1 / √64
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const variance = values.reduce((sum, value) => sum + value * value, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan(0.005);
    expect(variance * 3 * 64).toBeCloseTo(1, 1); // of an even spread over ± 1/8
  });

  test("tables by their sizes: normal numbers", () => {
    const classes = { Embedding4bit: nn.Embedding4bit, EmbeddingFP4: nn.EmbeddingFP4, Embedding8bit: nn.Embedding8bit };
    using indices = Tensor.from(
      Array.from({ length: 100 }, (_, i) => i),
      undefined,
      { dtype: "int32", device },
    );
    for (const [name, Class] of Object.entries(classes)) {
      using layer = Class.init(100, 64, { device, dtype: "float32", seed: 1 });
      expect([layer.constructor.name, layer.numEmbeddings, layer.embeddingDim, layer.dtype]).toEqual([
        name,
        100,
        64,
        "float32",
      ]);
      const values = layer.forward(indices).readFloat32();
      const variance = values.reduce((sum, value) => sum + value * value, 0) / values.length;
      expect(variance).toBeCloseTo(1, 1);
    }
  });
});

test.each([
  ["Embedding", undefined],
  ["StableEmbedding", 7],
] as const)("%s by its sizes: as far as Glorot's spread goes, its padding zeros", (name, paddingIdx) => {
  using layer = nn[name].init(96, 32, { seed: 5, ...(paddingIdx !== undefined && { paddingIdx }) });
  const values = layer.weight.data.readFloat32();
  const bound = Math.sqrt(6 / (96 + 32));
  const most = Math.max(...values.map(Math.abs));
  expect(most).toBeLessThanOrEqual(bound);
  expect(most).toBeGreaterThan(0.99 * bound);
  const zeros = [...values.keys()].filter((i) => values[i] === 0);
  expect(zeros).toEqual(paddingIdx === undefined ? [] : Array.from({ length: 32 }, (_, i) => paddingIdx * 32 + i));
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + value * value, 0) / (values.length - zeros.length);
  expect(Math.abs(mean)).toBeLessThan(0.05 * bound);
  expect((3 * squares) / bound ** 2).toBeCloseTo(1, 1);
});

test("sizes that are none are refused, in the caller's words", () => {
  expect(errorOf(() => nn.Linear4bit.init(64, 0)).message).toBe(
    "Linear4bit.init: outFeatures is 0, expected a whole number of at least 1.",
  );
  expect(errorOf(() => nn.Embedding8bit.init(2 ** 20, 2 ** 20)).message).toContain("more than 2^32 numbers");
});

test("loadLinear gives the layer that fits the weight", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-load-"));
  const path = join(folder, "model.safetensors");
  using dense = Tensor.from(wave(32 * 64), [32, 64]);
  const bias = wave(32);
  const shape = { dtype: "F32" as const };
  await checkpoint.writeSafetensors(path, [
    ...checkpoint.toStateDict("four.weight", quantize4bit(dense)),
    { ...shape, name: "four.bias", shape: [32], bytes: bias },
    ...checkpoint.toStateDict("eight.weight", Int8Weight.quantize(dense)),
    ...checkpoint.toStateDict("three.weight", quantizeBlockwise(dense, { code: createLinearMap(true, 3) })),
    { ...shape, name: "dense.weight", shape: [32, 64], bytes: dense.read() },
  ]);
  using model = checkpoint.openCheckpoint(path);
  const classes = { four: nn.Linear4bit, eight: nn.Linear8bitLt, three: nn.Linear, dense: nn.Linear };
  using x = Tensor.from(wave(64, 2), [1, 64]);
  for (const [name, Class] of Object.entries(classes)) {
    using layer = nn.loadLinear(model, name, { threshold: 6 });
    expect(layer.constructor).toBe(Class);
    expect(layer.bias?.read()).toEqual(name === "four" ? bias : undefined);
    const want = linear(x, dense).readFloat32();
    for (const [i, y] of layer.forward(x).readFloat32().entries())
      expect(Math.abs(y - want[i]! - (name === "four" ? bias[i]! : 0))).toBeLessThan(name === "three" ? 4 : 1.2);
    const saved = layer.stateDict(name).map((tensor) => tensor.name);
    expect(saved.filter((key) => !model.tensors.has(key))).toEqual([]);
    await checkpoint.writeSafetensors(join(folder, "again.safetensors"), layer.stateDict(name));
    using written = checkpoint.openCheckpoint(join(folder, "again.safetensors"));
    using again = nn.loadLinear(written, name, { threshold: 6 });
    expect(again.forward(x).read()).toEqual(layer.forward(x).read());
    expect(String(layer)).toStartWith(`${Class.name}(64 → 32, `);
  }
  expect(errorOf(() => nn.loadLinear(model, "none")).message).toContain('loadLinear: name leads to "none.weight"');
  rmSync(folder, { recursive: true });
});
