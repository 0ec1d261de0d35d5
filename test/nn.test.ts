// The tests of the layers: each against the same built of tested operations, its gradients against slopes, and its
// state dict there and back, upstream's own layers too.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  checkpoint,
  dequantize4bit,
  linear,
  linearBackward,
  matmul4bit,
  matmul4bitBackward,
  matmul8bit,
  nn,
  optim,
  Parameter,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { normal, normalTensors, testDevices } from "./cases.ts";
import { errorOf, relativeError } from "./reference.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-nn-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;

/** A layer's state dict in a file, opened again. */
async function saved(layer: nn.Layer, name: string): Promise<checkpoint.Checkpoint> {
  const path = join(folder, `${files++}.safetensors`);
  await checkpoint.writeSafetensors(path, layer.stateDict(name));
  return checkpoint.openCheckpoint(path);
}

const golden = (name: string) => checkpoint.openCheckpoint(`${import.meta.dir}/golden/${name}.safetensors`);

describe.each(testDevices)("on %s", (_, device) => {
  const on = { device };
  const random = normalTensors(device);
  const weight = () => random([24, 64], 1, 0.1);
  const indices = () => Tensor.from(Int32Array.of(3, 0, 23, 3), [2, 2], on);

  describe("Linear4bit", () => {
    test("is matmul4bit with its weight and bias, and its backward pass the product's", () => {
      using bias = random([24], 3);
      using layer = new nn.Linear4bit(weight(), { bias });
      expect([layer.inFeatures, layer.outFeatures]).toEqual([64, 24]);
      expect([layer.weight.quantType, layer.weight.nested, layer.weight.blocksize] as unknown).toEqual([
        "nf4",
        true,
        64,
      ]);
      using x = random([2, 3, 64], 5);
      using y = layer.forward(x);
      expect(y.shape).toEqual([2, 3, 24]);
      expect(y.read()).toEqual(matmul4bit(x, layer.weight, { bias }).read());
      using dx = layer.backward(y);
      expect(dx.read()).toEqual(matmul4bitBackward(y, layer.weight).read());
      expect(layer.parameters()).toEqual([]);
    });

    test("computes in computeDtype, and gives back the input's dtype", () => {
      using bias = random([24], 3);
      using layer = new nn.Linear4bit(weight(), { bias, computeDtype: "bfloat16" });
      for (const dtype of ["float32", "float16", "bfloat16"] as const) {
        using x = random([5, 64], 5).cast(dtype);
        using y = layer.forward(x);
        expect(y.dtype).toBe(dtype);
        const want = matmul4bit(x.cast("bfloat16"), layer.weight, { bias }).cast(dtype);
        expect(y.read() as unknown).toEqual(want.read());
        using dx = layer.backward(y);
        const wantX = matmul4bitBackward(y.cast("bfloat16"), layer.weight).cast(dtype);
        expect(dx.read() as unknown).toEqual(wantX.read());
      }
    });

    test("LinearNF4 and LinearFP4 are of their type; options are passed on", () => {
      using fp4 = new nn.LinearFP4(weight(), { blocksize: 128, compressStatistics: false });
      expect([fp4.weight.quantType, fp4.weight.nested, fp4.weight.blocksize] as unknown).toEqual(["fp4", false, 128]);
      expect(new nn.LinearNF4(weight()).weight.quantType).toBe("nf4");
      const q = quantize4bit(weight(), { quantType: "fp4" });
      expect(errorOf(() => new nn.LinearNF4(q)).message).toContain("expected NF4");
    });

    test.each(["nf4_double", "nf4_nodouble", "fp4_nodouble", "nf4_double_bf16storage"])(
      "upstream's %s goes in, multiplies as upstream's own dequantised weight, and comes out byte for byte",
      async (name) => {
        using model = golden(name);
        using layer = nn.Linear4bit.load(model, "layer", {
          ...on,
          quantStorage: name.endsWith("bf16storage") ? "bfloat16" : "uint8",
        });
        using source = golden(`${name}.source`);
        using dense = checkpoint.loadWeight(source, "dequant", device) as Tensor;
        using x = random([3, 128], 5);
        const want = linear(x, dense, { bias: layer.bias });
        const coarse = dense.dtype === "bfloat16" ? 3e-3 : 4e-4; // the dense weight is rounded
        expect(relativeError(layer.forward(x).read(), want.read())).toBeLessThan(coarse);
        using again = await saved(layer, "layer");
        expect([...again.tensors.keys()].sort()).toEqual([...model.tensors.keys()].sort());
        for (const [key, tensor] of model.tensors) {
          expect([again.tensors.get(key)!.dtype, again.tensors.get(key)!.shape]).toEqual([tensor.dtype, tensor.shape]);
          expect(again.tensors.get(key)!.bytes).toEqual(tensor.bytes);
        }
      },
    );

    test("a dense layer of a checkpoint is quantised as it is loaded", async () => {
      const path = join(folder, "dense.safetensors");
      const bytes = normal(24 * 64);
      await checkpoint.writeSafetensors(path, [{ name: "up.weight", dtype: "F32", shape: [24, 64], bytes }]);
      using model = checkpoint.openCheckpoint(path);
      using layer = nn.Linear4bit.load(model, "up", { ...on, compressStatistics: false });
      const want = quantize4bit(Tensor.from(bytes, [24, 64], on));
      expect(layer.weight.codes.read()).toEqual(want.codes.read());
      expect(layer.bias).toBeUndefined();
    });

    test("frees what it is made of, and leaves a dense weight to its owner", () => {
      using dense = weight();
      const bias = random([24]);
      const layer = new nn.Linear4bit(dense, { bias });
      layer.dispose();
      layer.dispose();
      expect([layer.weight.disposed, bias.disposed, dense.disposed]).toEqual([true, true, false]);
      expect(() => layer.forward(random([1, 64]))).toThrow(TypeError);
    });

    test("what makes no layer is refused, with a sentence", () => {
      expect(errorOf(() => new nn.Linear4bit(random([64]))).message).toContain(
        "weight is [64], expected two dimensions",
      );
      expect(errorOf(() => new nn.Linear4bit(weight(), { bias: random([64]) })).message).toContain("expected [24]");
      expect(errorOf(() => new nn.Linear4bit(quantizeBlockwise(weight()))).message).toContain("expected 4-bit codes");
      using model = golden("nf4_double");
      expect(errorOf(() => nn.Linear4bit.load(model, "other", on)).message).toContain('name leads to "other.weight"');
    });
  });

  describe("Linear8bitLt", () => {
    test("is matmul8bit with its weight, bias and threshold; its gradient is that of the dequantised weight", () => {
      using bias = random([24], 3);
      using layer = new nn.Linear8bitLt(weight(), { bias, threshold: 2 });
      expect([layer.inFeatures, layer.outFeatures, layer.parameters().length]).toEqual([64, 24, 0]);
      for (const dtype of ["float32", "float16", "bfloat16"] as const) {
        using x = random([2, 3, 64], 5).cast(dtype);
        using y = layer.forward(x);
        expect([y.dtype, y.shape] as unknown).toEqual([dtype, [2, 3, 24]]);
        expect(y.read() as unknown).toEqual(matmul8bit(x, layer.weight, { bias, threshold: 2 }).read());
        using dx = layer.backward(y);
        const want = linearBackward(y, layer.weight.dequantize({ dtype: "float32" }));
        expect([dx.dtype, dx.shape] as unknown).toEqual([dtype, [2, 3, 64]]);
        const rounding = { float32: 1e-6, float16: 5e-4, bfloat16: 4e-3 }[dtype];
        expect(relativeError(dx.readFloat32(), want.readFloat32())).toBeLessThan(rounding);
      }
    });

    test("carries an adapter", () => {
      using layer = nn.Lora.init(new nn.Linear8bitLt(weight()), { r: 4 });
      using x = random([3, 64], 5);
      expect(layer.forward(x).read()).toEqual(layer.base.forward(x).read());
      expect(layer.backward(layer.forward(x), x).shape).toEqual([3, 64]);
      expect(layer.B.grad!.read()).not.toEqual(new Float32Array(24 * 4));
    });

    test("upstream's layer goes in, and comes out byte for byte", async () => {
      using model = golden("int8");
      using layer = nn.Linear8bitLt.load(model, "layer", on);
      using x = random([3, 128], 5);
      const want = linear(x, layer.weight.dequantize({ dtype: "float32" }), { bias: layer.bias });
      expect(relativeError(layer.forward(x).read(), want.read())).toBeLessThan(1e-2); // x is rounded to int8
      using again = await saved(layer, "layer");
      expect([...again.tensors.keys()].sort()).toEqual([...model.tensors.keys()].sort());
      for (const [key, tensor] of model.tensors) {
        expect([again.tensors.get(key)!.dtype, again.tensors.get(key)!.shape]).toEqual([tensor.dtype, tensor.shape]);
        expect(again.tensors.get(key)!.bytes).toEqual(tensor.bytes);
      }
    });

    test("frees what it is made of; what makes no layer is refused, with a sentence", () => {
      const layer = new nn.Linear8bitLt(weight());
      layer.dispose();
      expect(layer.weight.CB.disposed).toBe(true);
      expect(errorOf(() => new nn.Linear8bitLt(weight(), { bias: random([64]) })).message).toContain("expected [24]");
      expect(errorOf(() => new nn.Linear8bitLt(weight(), { threshold: -1 })).message).toContain("threshold is -1");
      using int8 = golden("int8");
      expect(errorOf(() => nn.Linear4bit.load(int8, "layer", on)).message).toContain(
        "which is Int8Weight([64, 128] on",
      );
      using nf4 = golden("nf4_double");
      expect(errorOf(() => nn.Linear8bitLt.load(nf4, "layer", on)).message).toContain("expected Int8Weight or Tensor");
    });
  });

  describe("Embedding8bit", () => {
    test.each([80, 77])("gives rows of the dequantised table, %d columns", (columns) => {
      using table = random([24, columns]);
      for (const dtype of [undefined, "bfloat16"] as const) {
        using layer = new nn.Embedding8bit(table, { dtype });
        using y = layer.forward(indices());
        expect([y.dtype, y.shape] as unknown).toEqual([dtype ?? "float32", [2, 2, columns]]);
        const whole = layer.weight.dequantize({ dtype: "float32" }).read();
        const rows = [3, 0, 23, 3].flatMap((row) => [...whole.subarray(row * columns, (row + 1) * columns)]);
        expect(relativeError(y.readFloat32(), rows)).toBeLessThan(dtype ? 4e-3 : 1e-6);
      }
    });

    test("is saved and loaded again", async () => {
      using layer = new nn.Embedding8bit(random([24, 80]));
      using model = await saved(layer, "wte");
      expect([...model.tensors.keys()].sort()).toEqual(["wte.SCB", "wte.weight", "wte.weight_format"]);
      using again = nn.Embedding8bit.load(model, "wte", { ...on, dtype: "float32" });
      expect(again.forward(indices()).read()).toEqual(layer.forward(indices()).read());
      expect([again.numEmbeddings, again.embeddingDim]).toEqual([24, 80]);
    });
  });

  describe("Embedding4bit", () => {
    test("gives the rows of the dequantised table, in the weight's dtype or the one asked for", () => {
      using table = random([24, 80]).cast("bfloat16");
      for (const dtype of [undefined, "float32"] as const) {
        using layer = new nn.Embedding4bit(table, { dtype });
        const whole = dequantize4bit(layer.weight, { dtype: dtype ?? "bfloat16" });
        using y = layer.forward(indices());
        expect([y.dtype, y.shape] as unknown).toEqual([dtype ?? "bfloat16", [2, 2, 80]]);
        const rows = [3, 0, 23, 3].flatMap((row) => [...whole.readFloat32().subarray(row * 80, (row + 1) * 80)]);
        expect([...y.readFloat32()]).toEqual(rows);
      }
      expect(new nn.EmbeddingFP4(table).weight.quantType).toBe("fp4");
      expect(new nn.EmbeddingNF4(table).weight.nested).toBe(false);
    });

    test("is saved and loaded again", async () => {
      using layer = new nn.Embedding4bit(random([24, 80]));
      using model = await saved(layer, "wte");
      using again = nn.Embedding4bit.load(model, "wte", on);
      expect(again.forward(indices()).read()).toEqual(layer.forward(indices()).read());
      expect(errorOf(() => layer.forward(Tensor.from(Int32Array.of(24), [1], on))).message).toContain(
        "indices[0, 0] is 24",
      );
    });
  });

  describe("Embedding", () => {
    test("gives rows, sums gradients over passes, and leaves paddingIdx alone", () => {
      using layer = nn.Embedding.init(24, 16, { ...on, paddingIdx: 0, seed: 4 });
      const table = layer.weight.data.readFloat32();
      expect(table.subarray(0, 16)).toEqual(new Float32Array(16));
      const bound = Math.sqrt(6 / 40);
      const most = table.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      expect(most).toBeGreaterThan(0.9 * bound);
      expect(most).toBeLessThanOrEqual(bound);
      using y = layer.forward(indices());
      expect(y.readFloat32().subarray(0, 16)).toEqual(table.subarray(48, 64));
      using dy = random([2, 2, 16], 7);
      layer.backward(dy, indices());
      const once = layer.weight.grad!.readFloat32();
      const gradient = dy.read();
      expect(once.subarray(48, 64)).toEqual(gradient.slice(0, 16).map((value, i) => value + gradient[48 + i]!));
      expect(once.subarray(0, 16)).toEqual(new Float32Array(16));
      layer.backward(dy, indices());
      expect(layer.weight.grad!.readFloat32()).toEqual(once.map((value) => 2 * value));
      layer.weight.requiresGrad = false;
      layer.backward(dy, indices());
      expect(layer.weight.grad!.readFloat32()).toEqual(once.map((value) => 2 * value));
    });

    test("has 32-bit optimizer states, whatever the optimizer's bits", () => {
      using layer = nn.Embedding.init(64, 128, on);
      const other = new Parameter(random([64, 128]));
      using optimizer = new optim.Adam8bit([layer.weight, other]);
      layer.weight.grad = random([64, 128]);
      other.grad = random([64, 128]);
      optimizer.step();
      const { state } = optimizer.stateDict();
      const dtypes = [0, 1].map((i) => state[i]!.__bnb_optimizer_quant_state__!.state1!.dtype);
      expect(dtypes).toEqual(["float32", "uint8"]);
    });

    test("is saved and loaded again; a row that is not there is refused", async () => {
      using layer = nn.Embedding.init(24, 16, { ...on, dtype: "bfloat16" });
      using model = await saved(layer, "wte");
      expect([...model.tensors.keys()]).toEqual(["wte.weight"]);
      using again = nn.Embedding.load(model, "wte", on);
      expect(again.weight.data.dtype).toBe("bfloat16");
      expect(again.weight.data.read()).toEqual(layer.weight.data.read());
      expect(errorOf(() => new nn.Embedding(weight(), { paddingIdx: 24 })).message).toContain("0 to 23");
    });
  });

  describe("StableEmbedding", () => {
    test("is an embedding and a LayerNorm, with the gradients of both", async () => {
      using layer = nn.StableEmbedding.init(24, 16, { ...on, seed: 2 });
      layer.norm.weight.data.write(normal(16, 8));
      layer.norm.bias.data.write(normal(16, 9));
      using rows = nn.Embedding.prototype.forward.call(layer, indices()) as Tensor<"float32">;
      expect(layer.forward(indices()).readFloat32()).toEqual(layer.norm.forward(rows).read());
      expect(layer.parameters()).toEqual([layer.weight, layer.norm.weight, layer.norm.bias]);

      const gradient = normal(64, 3);
      layer.backward(Tensor.from(gradient, [2, 2, 16], on), indices());
      const loss = () =>
        layer
          .forward(indices())
          .readFloat32()
          .reduce((sum, value, i) => sum + value * gradient[i]!, 0);
      for (const [parameter, at] of [
        [layer.weight, 3 * 16 + 5],
        [layer.weight, 23 * 16 + 1],
        [layer.norm.weight, 7],
        [layer.norm.bias, 0],
      ] as const)
        expect(slopeOf(loss, parameter, at)).toBeCloseTo(parameter.grad!.readFloat32()[at]!, 1);

      using model = await saved(layer, "wte");
      expect([...model.tensors.keys()].sort()).toEqual(["wte.norm.bias", "wte.norm.weight", "wte.weight"]);
      using again = nn.StableEmbedding.load(model, "wte", on);
      expect(again.forward(indices()).read()).toEqual(layer.forward(indices()).read());
    });

    test("normalises in fp32 and rounds once to the weight's dtype", () => {
      using wide = nn.StableEmbedding.init(24, 16, { ...on, seed: 2 });
      using half = new nn.StableEmbedding(wide.weight.data.cast("float16"));
      using y = half.forward(indices());
      expect(y.dtype).toBe("float16");
      expect(relativeError(y.readFloat32(), wide.forward(indices()).readFloat32())).toBeLessThan(2e-3);
      half.dispose();
      expect(half.norm.weight.data.disposed).toBe(true);
    });
  });

  /** The slope of a loss along one element of a float32 parameter. */
  function slopeOf(loss: () => number, parameter: Parameter, at: number): number {
    const values = parameter.data.read() as Float32Array;
    const lossAt = (by: number) => {
      parameter.data.write(values.map((value, i) => (i === at ? value + by : value)));
      return loss();
    };
    const step = 1e-2;
    const slope = (lossAt(step) - lossAt(-step)) / (2 * step);
    parameter.data.write(values);
    return slope;
  }
});
