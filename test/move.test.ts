// The tests of moving between devices: every handle, parameter, layer and optimizer state, there and back, to the bit.
import { describe, expect, test } from "bun:test";
import { deviceNames } from "../src/device.ts";
import {
  createLinearMap,
  Device,
  Int8Weight,
  nn,
  optim,
  Parameter,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { floatDTypes, testDevices, wave } from "./cases.ts";

// The CPU too, where BNB_DEVICE names another: between the two, memory is copied.
const devices = [...new Set([...testDevices.map(([, device]) => device), Device.open("cpu")])];
const pairs = devices.flatMap((from) => devices.map((to) => [`${from} → ${to}`, from, to] as const));

const bytesOf = (q: QuantizedTensor) => [
  q.codes.read(),
  q.absmax.read(),
  q.code,
  q.state2?.absmax.read(),
  q.state2?.code,
];

describe.each(pairs)("%s", (_, from: Device, to: Device) => {
  test("tensors of every dtype", () => {
    for (const dtype of floatDTypes) {
      using x = Tensor.from(wave(35), [5, 7], { device: from, dtype });
      using moved = x.to(to);
      expect(moved.device).toBe(to);
      expect(moved.shape).toEqual([5, 7]);
      expect(moved.to(from).read()).toEqual(x.read());
    }
    if (!(deviceNames as readonly string[]).includes(to.kind)) return; // a driver of the tests' own
    expect(Tensor.zeros([1], { device: from }).to(to.kind).device).toBe(to);
  });

  test("quantised tensors of every width, with plain and nested scales", () => {
    using w = Tensor.from(wave(64 * 48), [64, 48], { device: from, dtype: "bfloat16" });
    const made = [
      quantize4bit(w),
      quantize4bit(w, { compressStatistics: true, quantType: "fp4" }),
      quantizeBlockwise(w, { code: createLinearMap(true, 3), nested: true }),
      quantizeBlockwise(w),
    ];
    for (const q of made) {
      const moved = q.to(to);
      const { device, quantType, dtype, blocksize, nestedBlocksize, offset, bits } = moved;
      expect(device).toBe(to);
      expect({ quantType, dtype, blocksize, nestedBlocksize, offset, bits }).toEqual({
        quantType: q.quantType,
        dtype: q.dtype,
        blocksize: q.blocksize,
        nestedBlocksize: q.nestedBlocksize,
        offset: q.offset,
        bits: q.bits,
      });
      expect(bytesOf(moved.to(from))).toEqual(bytesOf(q));
    }
    const eight = Int8Weight.quantize(w);
    const back = eight.to(to).to(from);
    expect([back.CB.read(), back.SCB.read()] as unknown).toEqual([eight.CB.read(), eight.SCB.read()]);
  });

  test("layers, which stay what they are, and free what they leave", () => {
    using weight = Tensor.from(wave(32 * 64), [32, 64], { device: from });
    const bias = () => Tensor.from(wave(32), [32], { device: from });
    const layers = [
      new nn.Linear4bit(weight, { bias: bias() }),
      new nn.Linear8bitLt(weight, { bias: bias() }),
      nn.Lora.init(new nn.Linear4bit(weight), { r: 2 }),
    ];
    using x = Tensor.from(wave(2 * 64), [2, 64], { device: from });
    for (const layer of layers) {
      const before = layer.forward(x).read();
      const parameters = layer.parameters();
      const bytes = from.counters.bytes;
      expect(layer.to(to)).toBe(layer);
      if (from !== to) expect(from.counters.bytes).toBeLessThan(bytes);
      expect(layer.parameters()).toEqual(parameters);
      expect(layer.forward(x.to(to)).read().length).toBe(before.length);
      expect(layer.to(from).forward(x).read()).toEqual(before);
      layer.dispose();
    }
    using indices = Tensor.from([1, 9], [2], { dtype: "int32", device: from });
    for (const kind of [nn.StableEmbedding, nn.Embedding4bit, nn.Embedding8bit]) {
      using table = kind.init(10, 64, { device: from });
      const before = table.forward(indices).read();
      expect(table.to(to).to(from).forward(indices).read()).toEqual(before);
    }
  });

  test("an optimizer goes on after its parameters have moved, as if they had not", () => {
    for (const optimBits of [8, 32] as const) {
      const run = (move: boolean) => {
        using parameter = new Parameter(Tensor.from(wave(5000), [5000], { device: from }));
        using optimizer = new optim.AdamW([parameter], { lr: 0.01, optimBits, min8bitSize: 0 });
        for (let step = 0; step < 4; step++) {
          if (move) parameter.to(step % 2 ? to : from);
          if (move && step === 2) optimizer.to(from);
          parameter.grad = Tensor.from(wave(5000, step + 2), [5000], { device: parameter.data.device });
          optimizer.step();
        }
        return parameter.data.read() as Float32Array;
      };
      const [moved, stayed] = [run(true), run(false)];
      if (from === to) expect(moved).toEqual(stayed);
      else for (const [i, value] of moved.entries()) expect(Math.abs(value - stayed[i]!)).toBeLessThan(2e-3);
    }
  });
});
