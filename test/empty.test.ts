// The tests of batches without rows: every function of a batch gives one without rows, and gradients of weights are
// zeros.
import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  add,
  checkpoint,
  embedding,
  embeddingBackward,
  Int8Weight,
  layerNorm,
  layerNormBackward,
  linear,
  linearBackward,
  linearBackwardBias,
  linearBackwardWeight,
  matmul,
  matmul4bit,
  matmul4bitBackward,
  matmul8bit,
  matmul8bitFp,
  nn,
  quantize4bit,
  scale,
  Tensor,
} from "../src/index.ts";
import { floatDTypes, testDevices, wave } from "./cases.ts";
import { llamaDirectory, llamaShapes } from "./models.ts";
import { errorOf } from "./reference.ts";

const [n, k] = [32, 64];

describe.each(testDevices)("on %s", (_, device) => {
  const dense = Tensor.from(wave(n * k), [n, k], { device });
  const four = quantize4bit(dense);
  const eight = Int8Weight.quantize(dense);
  const vector = (length: number) => Tensor.from(wave(length), [length], { device });

  test("products and their gradients", () => {
    for (const dtype of floatDTypes) {
      const x = Tensor.zeros([0, k], { dtype, device });
      const dy = Tensor.zeros([2, 0, n], { dtype, device });
      const bias = vector(n);
      const products = [
        linear(x, dense, { bias }),
        matmul4bit(x, four, { bias }),
        matmul8bit(x, eight, { threshold: 6, bias }),
        matmul8bitFp(x, eight),
        matmul(x, eight),
        new nn.Linear4bit(dense, { computeDtype: "bfloat16" }).forward(x),
        nn.Lora.init(new nn.Linear8bitLt(dense)).forward(x),
      ];
      for (const y of products)
        expect([y.shape, y.dtype, y.device, y.read().length]).toEqual([[0, n], dtype, device, 0]);
      for (const dx of [linearBackward(dy, dense), matmul4bitBackward(dy, four)])
        expect([dx.shape, dx.dtype, dx.size]).toEqual([[2, 0, k], dtype, 0]);
      expect(linearBackwardWeight(dy.reshape([0, n]), x, { dtype: "float32" }).read()).toEqual(new Float32Array(n * k));
      expect(linearBackwardBias(dy, { dtype: "float32" }).read()).toEqual(new Float32Array(n));
    }
  });

  test("embeddings, norms, sums, casts and moves", () => {
    const x = Tensor.zeros([0, k], { device });
    const none = Tensor.zeros([0], { dtype: "int32", device });
    expect(embedding(none, four).shape).toEqual([0, k]);
    expect(embeddingBackward(x, none, 5).read()).toEqual(new Float32Array(5 * k));
    expect(layerNorm(x, vector(k), vector(k)).shape).toEqual([0, k]);
    const { dx, dWeight, dBias } = layerNormBackward(x, x, vector(k));
    expect([dx.shape, dWeight.read(), dBias.read()]).toEqual([[0, k], new Float32Array(k), new Float32Array(k)]);
    for (const y of [add(x, x), scale(x, 2), x.to(device), x.cast("float16").cast("float32")])
      expect([y.shape, y.size, y.read()]).toEqual([[0, k], 0, new Float32Array(0)]);
    expect(x.reshape([k, 0]).shape).toEqual([k, 0]);
    x.write(new Float32Array(0));
    expect(Tensor.from([], undefined, { device }).shape).toEqual([0]);
    expect(Bun.inspect(x)).toBe(`Tensor(float32 [0, ${k}] on ${device}) []`);
  });

  test("what does not fit is refused all the same, and nothing is quantised", () => {
    const x = Tensor.zeros([0, k + 1], { device });
    expect(errorOf(() => linear(x, dense)).message).toContain("the last dimensions must match");
    expect(errorOf(() => linear(Tensor.zeros([0, k], { device, dtype: "int8" }) as never, dense)).message).toContain(
      "int8",
    );
    expect(errorOf(() => linear(Tensor.zeros([0, k], { device }), dense, { bias: vector(3) })).message).toContain(
      "bias",
    );
    expect(errorOf(() => quantize4bit(x)).message).toContain("expected at least one element");
    expect(errorOf(() => linear(Tensor.zeros([1, 0], { device }), Tensor.zeros([n, 0], { device }))).message).toContain(
      "w is Tensor(float32 [32, 0]",
    );
    expect(errorOf(() => x.reshape([0, -1])).message).toContain("no whole number for the -1");
    expect(errorOf(() => x.write(new Float32Array(1))).message).toContain("expected");
  });
});

test("a weight without elements is carried over, and the rest of the model is quantised", async () => {
  const folder = mkdtempSync(join(tmpdir(), "bnb-empty-"));
  const [from, to] = [join(folder, "model"), join(folder, "nf4")];
  const empty = "model.layers.0.mlp.unused_proj.weight";
  await llamaDirectory(from, { ...llamaShapes, [empty]: [0, 64] });
  const report = await checkpoint.quantizeCheckpoint(from, { output: to });
  using model = checkpoint.openCheckpoint(to);
  expect(model.tensors.get(empty)?.shape).toEqual([0, 64]);
  expect(model.quantized.has("model.layers.0.mlp.up_proj.weight")).toBe(true);
  expect(report).toBeDefined();
  rmSync(folder, { recursive: true });
});
