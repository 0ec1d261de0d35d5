// LoRA over frozen weights: the scaled product beside the base's, its gradients against slopes, and PEFT's keys.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkpoint, type FloatDType, linear, nn, optim, type Parameter, Tensor } from "../src/index.ts";
import { normal, normalTensors, testDevices } from "./cases.ts";
import { errorOf, relativeError } from "./reference.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-lora-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe.each(testDevices)("on %s", (_, device) => {
  const on = { device };
  const random = normalTensors(device);
  const weight = () => random([24, 64], 1, 0.1);

  const layerOf = (dtype: FloatDType = "float32") => {
    const layer = nn.Lora.init(new nn.Linear4bit(weight()), { r: 4, alpha: 6, seed: 5, dtype });
    layer.B.data.dispose();
    layer.B.data = random([24, 4], 6).cast(dtype);
    return layer;
  };

  test("a new adapter changes nothing", () => {
    using layer = nn.Lora.init(new nn.Linear4bit(weight()), { r: 4 });
    using x = random([3, 64], 5);
    expect(layer.forward(x).read()).toEqual(layer.base.forward(x).read());
    expect(layer.scaling).toBe(1);
  });

  test.each(["float32", "float16", "bfloat16"] as const)("is the base and the scaled product, %s", (dtype) => {
    using layer = layerOf();
    using x = random([2, 3, 64], 5).cast(dtype);
    using y = layer.forward(x);
    expect([y.dtype, y.shape] as unknown).toEqual([dtype, [2, 3, 24]]);
    const base = layer.base.forward(x).readFloat32();
    const h = linear(linear(x.cast("float32"), layer.A.data), layer.B.data).read();
    const want = base.map((value, i) => value + 1.5 * h[i]!);
    expect(relativeError(y.readFloat32(), want)).toBeLessThan({ float32: 1e-6, float16: 1e-3, bfloat16: 8e-3 }[dtype]);
  });

  test("its gradients are the slopes of a loss", () => {
    using layer = layerOf();
    const values = normal(3 * 64, 5);
    const gradient = normal(3 * 24, 7);
    const loss = () =>
      layer
        .forward(Tensor.from(values, [3, 64], on))
        .read()
        .reduce((sum, value, i) => sum + value * gradient[i]!, 0);
    using dx = layer.backward(Tensor.from(gradient, [3, 24], on), Tensor.from(values, [3, 64], on));
    for (const [parameter, places] of [[layer.A, [0, 70, 255]] as const, [layer.B, [0, 50, 95]] as const])
      for (const at of places) expect(slopeOf(loss, parameter, at)).toBeCloseTo(parameter.grad!.readFloat32()[at]!, 1);
    for (const at of [0, 100, 191]) {
      const value = values[at]!;
      values[at] = value + 0.5;
      const up = loss();
      values[at] = value - 0.5;
      const down = loss();
      values[at] = value;
      expect(up - down).toBeCloseTo(dx.read()[at]!, 3);
    }
  });

  test("gradients add up over passes until they are taken away", () => {
    using layer = layerOf();
    using x = random([3, 64], 5);
    using dy = random([3, 24], 7);
    layer.backward(dy, x);
    const once = layer.A.grad!.readFloat32();
    layer.backward(dy, x);
    expect(layer.A.grad!.readFloat32()).toEqual(once.map((value) => 2 * value));
    using optimizer = new optim.Adam32bit(layer.parameters());
    optimizer.zeroGrad();
    layer.backward(dy, x);
    expect(layer.A.grad!.readFloat32()).toEqual(once);
  });

  test("is saved under PEFT's keys and loaded again", async () => {
    using layer = layerOf("bfloat16");
    const path = join(folder, `${device}.safetensors`);
    await checkpoint.writeSafetensors(path, layer.stateDict("base_model.model.up"));
    using model = checkpoint.openCheckpoint(path);
    expect([...model.tensors.keys()].sort()).toEqual([
      "base_model.model.up.lora_A.weight",
      "base_model.model.up.lora_B.weight",
    ]);
    using again = nn.Lora.load(new nn.Linear4bit(weight()), model, "base_model.model.up", { alpha: 6 });
    using x = random([3, 64], 5);
    expect(again.forward(x).read()).toEqual(layer.forward(x).read());
  });

  test("what does not fit is refused, and dispose frees the base too", () => {
    const base = new nn.Linear4bit(weight());
    expect(errorOf(() => new nn.Lora(base, random([4, 63]), random([24, 4]))).message).toContain("expected [4, 64]");
    expect(errorOf(() => new nn.Lora(base, random([4, 64]), random([24, 3]))).message).toContain("expected [24, 4]");
    expect(errorOf(() => nn.Lora.init(base, { alpha: Number.NaN })).message).toContain("alpha is NaN");
    nn.Lora.init(base).dispose();
    expect(base.weight.disposed).toBe(true);
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
