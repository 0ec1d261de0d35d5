// The tests of tensors as things: values in and out, casts, views, ownership, the collector, waiting, bad input.
import { describe, expect, spyOn, test } from "bun:test";
import {
  add,
  currentDevice,
  Device,
  devices,
  type FloatDType,
  matmul4bit,
  quantize4bit,
  setDevice,
  Tensor,
} from "../src/index.ts";
import { native } from "../src/native.ts";
import { floatDTypes, testDevices, wave } from "./cases.ts";
import { errorOf, round } from "./reference.ts";
import { settled } from "./settled.ts";

describe.each(testDevices)("on %s", (_, device) => {
  test("every dtype goes in and comes out", () => {
    const arrays = [
      new Float32Array([1.5, -2]),
      new Float16Array([1.5, -2]),
      new Int8Array([-128, 127]),
      new Uint8Array([0, 255]),
      new Int32Array([-(2 ** 31), 2 ** 31 - 1]),
    ];
    for (const values of arrays) {
      using tensor = Tensor.from(values, [2, 1], { device });
      expect(tensor.read() as unknown).toEqual(values);
      expect(tensor.byteLength).toBe(values.byteLength);
    }
    using bits = Tensor.from(Uint16Array.of(0x3f80, 0xc000), [2], { dtype: "bfloat16", device });
    expect(bits.readFloat32()).toEqual(new Float32Array([1, -2]));
    expect(Tensor.from([1, 2, 3], undefined, { device }).shape).toEqual([3]);
    expect(Tensor.zeros([2, 3], { dtype: "int32", device }).read()).toEqual(new Int32Array(6));
    expect(Tensor.from([7], [], { device }).read()).toEqual(new Float32Array([7]));
  });

  test("a view that starts inside its buffer gives its own values", () => {
    const all = Float32Array.from({ length: 10 }, (_, i) => i);
    expect(Tensor.from(all.subarray(3, 7), [4], { device }).read()).toEqual(new Float32Array([3, 4, 5, 6]));
  });

  test("write replaces the values", () => {
    using tensor = Tensor.zeros([3], { device });
    tensor.write(new Float32Array([1, 2, 3]));
    expect(tensor.read()).toEqual(new Float32Array([1, 2, 3]));
    expect(errorOf(() => tensor.write(new Float32Array(2))).message).toContain("values has 2 elements, expected 3");
    expect(errorOf(() => tensor.write(new Int8Array(12) as unknown as Float32Array)).message).toContain(
      "Int8Array, expected a Float32Array",
    );
  });

  test("casts round to nearest even, and keep infinities, NaN, zeros and subnormals", () => {
    const special = [
      0,
      -0,
      1,
      65504,
      65520,
      70000,
      2 ** -24,
      2 ** -25,
      2 ** -26 * 1.5,
      5.9e-8,
      1e-40,
      3.4e38,
      1 + 2 ** -8,
      1 + 3 * 2 ** -8,
      1 + 2 ** -11,
      Number.POSITIVE_INFINITY,
      Number.NEGATIVE_INFINITY,
    ];
    const values = Float32Array.from([...special, ...special.map((value) => -value), ...wave(1000, 3, 100)]);
    using x = Tensor.from(values, undefined, { device });
    for (const dtype of floatDTypes) {
      using half = x.cast(dtype);
      const want = Float32Array.from(values, (value) => round(value, dtype));
      expect(half.readFloat32()).toEqual(want);
      for (const other of floatDTypes)
        expect(half.cast(other).readFloat32()).toEqual(want.map((value) => round(value, other)));
    }
    using nan = Tensor.from(new Float32Array([Number.NaN]), [1], { device });
    for (const dtype of floatDTypes) expect(nan.cast(dtype).readFloat32()[0]).toBeNaN();
    // A NaN whose payload would carry into an infinity when rounded.
    using odd = Tensor.from(new Float32Array(Uint32Array.of(0x7fffffff).buffer), [1], { device });
    for (const dtype of floatDTypes) expect(odd.cast(dtype).readFloat32()[0]).toBeNaN();
    using integers = Tensor.from(new Int8Array(4), [4], { device });
    expect(errorOf(() => integers.cast("float32")).message).toContain("the tensor is int8");
    expect(errorOf(() => x.cast("int8" as FloatDType)).message).toContain('dtype is "int8"');
  });

  test("reshape shares the memory", () => {
    using x = Tensor.from(wave(12), [3, 4], { device });
    using y = x.reshape([2, -1]);
    expect(y.shape).toEqual([2, 6]);
    x.write(new Float32Array(12).fill(5));
    expect(y.read()).toEqual(new Float32Array(12).fill(5));
    expect(errorOf(() => x.reshape([5, 2])).message).toContain("does not have the 12 elements");
    expect(errorOf(() => x.reshape([5, -1])).message).toContain("shape is [5, -1], but the 12 elements of [3, 4]");
  });

  const discrete = ["cuda", "discrete", "null"].includes(device.kind); // memory of its own

  describe.skipIf(discrete)("view", () => {
    test("is the tensor's own memory, of every dtype, after the work that was asked for", () => {
      using x = Tensor.from(wave(64), [4, 16], { device });
      using half = x.cast("float16");
      expect(half.view((values) => [...values])).toEqual([...half.read()]);
      using part = x.slice(1, 3);
      part.view((values) => values.fill(7));
      expect(x.read().slice(16, 48)).toEqual(new Float32Array(32).fill(7));
      using sum = add(x, x); // sees what the view wrote
      expect(sum.view((values) => values[16])).toBe(14);
      using codes = Tensor.from(new Uint8Array([1, 2]), [2], { device });
      expect(codes.view(([first]) => first)).toBe(1);
      using none = Tensor.zeros([0, 4], { device });
      expect(none.view((values) => values.length)).toBe(0);
    });

    test("ends with the call: no array outlives it, and none is of memory that was freed", () => {
      const before = settled(device).bytes;
      const x = Tensor.from(wave(100_000), [100_000], { device });
      const [kept, sum] = x.view((values) => {
        x.dispose();
        const others = Tensor.zeros([100_000], { device }); // would get the memory if it were free
        expect(values).toEqual(wave(100_000));
        others.dispose();
        return [values, values.length] as const;
      });
      expect([kept.length, sum]).toEqual([0, 100_000]);
      expect(device.counters.bytes).toBe(before);
      using y = Tensor.from(wave(4), [4], { device });
      const escaped: Float32Array[] = [];
      const failing = () =>
        y.view((values) => {
          escaped.push(values);
          throw new RangeError("the caller's own");
        });
      expect(failing).toThrow(new RangeError("the caller's own"));
      expect(escaped[0]!.length).toBe(0);
      expect(y.view((values) => structuredClone(values, { transfer: [values.buffer as ArrayBuffer] })).length).toBe(4);
      expect(y.read()).toEqual(wave(4));
    });

    test("what can't be done is refused", () => {
      using x = Tensor.from(wave(4), [4], { device });
      expect(errorOf(() => x.view(async (values) => values[0])).message).toContain("use returned a promise");
      expect(errorOf(() => x.view(undefined as never)).message).toContain("use is undefined, expected a function");
      x.dispose();
      expect(() => x.view(() => 0)).toThrow("used after dispose()");
    });
  });

  test.if(discrete)("a view of memory that is not shared is refused, with what to do", () => {
    using x = Tensor.from(wave(4), [4], { device });
    expect(errorOf(() => x.view(() => 0))).toEqual({
      code: "unsupported",
      message: expect.stringContaining("take a copy with read()"),
    });
  });

  describe("ownership", () => {
    test("using and dispose free at once; what was made of it lives on", () => {
      quantize4bit(Tensor.zeros([1, 64], { device })).dispose(); // the codebook's copy on a GPU stays
      const before = settled(device).bytes;
      {
        using x = Tensor.from(wave(1 << 16), [256, 256], { device });
        using q = quantize4bit(x);
        expect(device.counters.bytes).toBe(before + x.byteLength + q.byteLength);
        const codes = q.codes;
        q.dispose();
        expect(codes.read().length).toBe(1 << 15);
        codes.dispose();
      }
      expect(device.counters.bytes).toBe(before);
    });

    test("use after dispose is a TypeError, and disposing twice is not", () => {
      const x = Tensor.from([1], [1], { device });
      x.dispose();
      x.dispose();
      expect(x.disposed).toBe(true);
      for (const use of [() => x.read(), () => x.cast("float16"), () => x.reshape([1]), () => quantize4bit(x)])
        expect(use).toThrow(new TypeError("Tensor used after dispose()"));
      const q = quantize4bit(Tensor.from(wave(64), [1, 64], { device }));
      q.dispose();
      expect(() => q.codes).toThrow("QuantizedTensor used after dispose()");
      expect(x.ready()).rejects.toThrow(TypeError);
    });

    test("a hot loop that never disposes stays bounded", () => {
      const bytes = 1 << 20;
      const values = new Float32Array(bytes / 4).fill(1);
      let most = 0;
      for (let i = 0; i < 2000; i++) {
        Tensor.from(values, [512, 512], { device });
        most = Math.max(most, device.counters.bytes);
      }
      expect(most).toBeLessThan(700 * bytes); // 2,000 tensors would be 2.2 GB
    });

    test("reads are fresh however hot the loop (bun#32054)", () => {
      let stale = 0;
      for (let i = 0; i < 50_000; i++) {
        using x = Tensor.from(new Float32Array([i % 1000, 1]), [1, 2], { device });
        if (x.read()[0] !== i % 1000) stale++;
      }
      expect(stale).toBe(0);
    });
  });

  test("ready() resolves to the tensor and leaves the event loop running", async () => {
    using x = Tensor.from(wave(64 * 64), [64, 64], { device });
    using w = quantize4bit(x);
    const y = matmul4bit(x, w);
    expect(await y.ready()).toBe(y);
    expect(await w.ready()).toBe(w);
    await device.ready();
  });

  test("ready() gives the event loop its turns for as long as the device is at work, and only then waits", async () => {
    const seen: string[] = [];
    let [asked, isOver] = [0, false];
    const idle = spyOn(native, "bnb_device_idle").mockImplementation((() => Number(++asked > 3)) as never);
    const wait = spyOn(native, "bnb_device_wait").mockImplementation((() => seen.push("wait") * 0) as never);
    const turn = (): unknown => seen.push("turn") && !isOver && setImmediate(turn);
    setImmediate(turn); // not by a timer: a GPU is asked without one for a while
    try {
      await device.ready();
    } finally {
      isOver = true;
      idle.mockRestore();
      wait.mockRestore();
    }
    expect(asked).toBe(4);
    expect([seen[0], ...seen.filter((event) => event === "wait")]).toEqual(["turn", "wait"]);
  });

  test("what was asked of the device is counted", () => {
    const before = device.counters.operations;
    using x = Tensor.from(wave(64), [1, 64], { device });
    using q = quantize4bit(x);
    matmul4bit(x, q).dispose();
    expect(device.counters.operations - before).toBe(2);
    expect(device.counters.peak).toBeGreaterThanOrEqual(device.counters.bytes);
  });

  describe("is refused, with a sentence", () => {
    test.each([
      [[2, -1], "shape is [2, -1]"],
      [[1.5], "shape is [1.5]"],
      [[Number.NaN], "shape is [NaN]"],
      [[2 ** 40, 2 ** 40], "more elements than can be counted"],
      [[2 ** 25, 2 ** 25], "more than 2^48 elements"],
      [[3], "shape [3] has 3 elements, but values has 2"],
    ])("shape %j", (shape, message) => {
      const action = () =>
        message.includes("2^48") ? Tensor.zeros(shape, { device }) : Tensor.from([1, 2], shape, { device });
      expect(errorOf(action)).toEqual({ code: "invalid", message: expect.stringContaining(message) });
    });

    test("more memory than there is", () => {
      const { code, message } = errorOf(() => Tensor.zeros([2 ** 22, 2 ** 24], { device }));
      expect(code).toBe("out_of_memory");
      expect(message).toContain("281474976710656 bytes");
    });

    test("values that fit no dtype", () => {
      const from = Tensor.from as (...args: unknown[]) => unknown;
      expect(errorOf(() => from(new Float64Array(2), [2])).message).toContain("values is a Float64Array, expected");
      expect(errorOf(() => from("ab", [2])).message).toContain('values is "ab"');
      expect(errorOf(() => from(undefined, [2])).message).toContain("values is undefined");
      expect(errorOf(() => from(new Uint16Array(2), [2])).message).toContain("bfloat16");
      expect(errorOf(() => from(new Int8Array(2), [2], { dtype: "float16" })).message).toContain(
        "can't become float16: give a Float16Array",
      );
      expect(errorOf(() => from(new Float32Array(2), [2], { dtype: "int8" })).message).toContain("can't become int8");
      expect(errorOf(() => from([], [2])).message).toContain("values has 0");
    });
  });
});

describe("devices", () => {
  test("are listed best first, with a description or the reason", () => {
    const reports = devices();
    expect(reports.map((report) => report.kind)).toEqual(["metal", "cuda", "cpu"]);
    for (const report of reports) expect(report.available ? report.description : report.reason).not.toBe("");
    expect(reports.find((report) => report.kind === "cpu")!.available).toBe(true);
  });

  test("opening twice gives the same one; an unknown or absent one says why", () => {
    expect(Device.open("cpu")).toBe(Device.open("cpu"));
    expect(errorOf(() => Device.open("tpu" as "cpu"))).toEqual({
      code: "invalid",
      message: expect.stringContaining('kind is "tpu", expected'),
    });
    for (const report of devices())
      if (!report.available)
        expect(errorOf(() => Device.open(report.kind))).toEqual({
          code: "unsupported",
          message: expect.stringContaining(report.reason),
        });
  });

  test("setDevice changes where tensors go", () => {
    const before = currentDevice();
    expect(setDevice("cpu").kind).toBe("cpu");
    expect(Tensor.zeros([1]).device.kind).toBe("cpu");
    setDevice(before);
  });

  test.each([
    ["tpu", 'kind is "tpu" (from BNB_DEVICE)'],
    ["cuda", "CUDA is absent: "],
  ])("BNB_DEVICE=%s is an error when first used, not a silent fallback", (kind, message) => {
    const script = 'import { Tensor } from "./src/index.ts"; Tensor.zeros([1]);';
    const run = Bun.spawnSync([process.execPath, "-e", script], {
      cwd: `${import.meta.dir}/..`,
      env: { ...process.env, BNB_DEVICE: kind, BNB_CUDA_LIBRARY: "/nowhere.so" },
    });
    expect(run.exitCode).toBe(1);
    expect(run.stderr.toString()).toContain(message);
  });
});

describe("the C ABI refuses", () => {
  const device = Device.open("cpu").pointer;
  const last = () => String(native.bnb_last_error());

  test("NULL, whatever the entry", () => {
    const calls: [name: string, result: unknown][] = [
      ["device", native.bnb_tensor_zeros(null, 0, null, null)],
      ["tensor", native.bnb_cast(null, 0)],
      ["tensor", native.bnb_quantize(null, null, null, null, 0, null)],
      ["quantised", native.bnb_dequantize(null, 0)],
      ["tensor", native.bnb_matmul(null, null, null, 0)],
      ["tensor", native.bnb_matmul_quantized(null, null, null, 0)],
      ["quantised", native.bnb_quantized_part(null, 0)],
      ["codebook", native.bnb_codebook_from(null, null)],
      ["codebook", native.bnb_codebook_named(null as unknown as string)],
      ["device", native.bnb_device_open(null as unknown as string)],
      ["tensor", native.bnb_tensor_to(null, device)],
      ["tensor", native.bnb_tensor_reshape(null, null, null)],
    ];
    for (const [, result] of calls) expect(result).toBeNull();
    expect(native.bnb_tensor_read(null, null, null)).toBe(1);
    expect(native.bnb_tensor_write(null, null, null)).toBe(1);
    expect(native.bnb_codebook_read(null, null, null)).toBe(1);
    expect(native.bnb_device_wait(null)).toBe(1);
    native.bnb_tensor_free(null);
    native.bnb_quantized_free(null);
    native.bnb_codebook_free(null);
  });

  test("a handle of another kind", () => {
    using x = Tensor.from(wave(64), [1, 64], { device: Device.open("cpu") });
    expect(native.bnb_dequantize(x.pointer, 0)).toBeNull();
    expect(last()).toBe("dequantize: q is not a quantised matrix, or was freed");
    expect(native.bnb_quantize(x.pointer, x.pointer, null, null, 0, null)).toBeNull();
    expect(last()).toContain("code is not a codebook");
  });

  test("numbers that are no enum member, and sizes that wrap", () => {
    const one = 1 as never;
    expect(native.bnb_tensor_zeros(device, 9, one, one)).toBeNull();
    expect(last()).toContain("dtype is 9, expected 0 to 5");
    expect(native.bnb_tensor_zeros(device, -1, one, one)).toBeNull();
    expect(native.bnb_tensor_zeros(device, 0, (2 ** 52) as never, (2 ** 52) as never)).toBeNull();
    expect(last()).toContain("more than 2^48 elements");
    expect(native.bnb_tensor_zeros(device, 0, -1 as never, one)).toBeNull();
    expect(Number.isNaN(native.bnb_device_counter(device, 99))).toBe(false);
    expect(native.bnb_device_counter(device, 99)).toBe(-1);
  });

  test("a bias that is no element for each row of w", () => {
    const on = { device: Device.open("cpu") };
    using x = Tensor.from(wave(64), [1, 64], on);
    using w = Tensor.from(wave(8 * 64), [8, 64], on);
    using q = quantize4bit(w);
    for (const shape of [
      [1, 7],
      [1, 9],
      [8, 1],
    ] as [number, number][]) {
      using bias = Tensor.from(wave(shape[0] * shape[1]), shape, on);
      expect(native.bnb_matmul(x.pointer, w.pointer, bias.pointer, 0)).toBeNull();
      expect(last()).toBe(`matmul: bias is [${shape.join(", ")}], expected [1, 8], an element for each row of w`);
      expect(native.bnb_matmul_quantized(x.pointer, q.pointer, bias.pointer, 0)).toBeNull();
      expect(last()).toContain("bias is [");
    }
  });

  test("a target of the wrong size", () => {
    using x = Tensor.from([1, 2], [2], { device: Device.open("cpu") });
    expect(native.bnb_tensor_read(x.pointer, new Float32Array(1), 4 as never)).toBe(1);
    expect(last()).toBe("tensor_read: data has 4 bytes, expected 8 for float32 [1, 2]");
  });
});
