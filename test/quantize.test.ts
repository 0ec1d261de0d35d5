// The tests of blockwise quantisation and its inverse: upstream's bytes, the definition, and what must be refused.
import { describe, expect, test } from "bun:test";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import {
  Codebook,
  createDynamicMap,
  dequantize4bit,
  dequantizeBlockwise,
  type FloatDType,
  QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import {
  blocksizes4,
  blocksizes8,
  codebooks4,
  codebooks8,
  codebooksOfOtherBits,
  floatDTypes,
  normal,
  quantizeShapes,
  testDevices,
  wave,
} from "./cases.ts";
import { errorOf, meanOfScales, pack, quantize, relativeError, round, unpack } from "./reference.ts";

const golden = openSafetensors(`${import.meta.dir}/golden/ops_cpu.safetensors`);
const bytesOf = (name: string) => golden.tensor(name).bytes;
const floatsOf = (name: string) => golden.tensor(name).values as Float32Array;
const short = { float32: "f32", float16: "f16", bfloat16: "bf16" } as const;
const bytesOfTensor = (tensor: Tensor) => {
  const values = tensor.read();
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
};

describe.each(testDevices)("on %s", (_, device) => {
  describe("upstream's bytes", () => {
    const cases = (["nf4", "fp4"] as const).flatMap((type) =>
      [32, 64, 128, 4096].flatMap((block) => floatDTypes.map((dtype) => [type, block, dtype] as const)),
    );
    test.each(cases)("%s, block %d, %s", (quantType, blocksize, dtype) => {
      using x = Tensor.from(floatsOf("A"), [1, 4096], { device }).cast(dtype);
      using q = quantize4bit(x, { quantType, blocksize });
      using back = dequantize4bit(q);
      const name = `q4.${quantType}.${blocksize}.${short[dtype]}`;
      expect(q.codes.read()).toEqual(bytesOf(`${name}.packed`));
      expect(q.absmax.read() as Float32Array).toEqual(floatsOf(`${name}.absmax`));
      expect(bytesOfTensor(back)).toEqual(bytesOf(`${name}.dq`));
    });

    test.each([
      ["s", 64],
      ["s", 256],
      ["s", 4096],
      ["u", 64],
      ["u", 256],
      ["u", 4096],
    ] as const)("8-bit, dynamic map %s, block %d: the nearest code", (sign, blocksize) => {
      // Upstream's unsigned vectors are of |A|.
      const a = sign === "u" ? floatsOf("A").map(Math.abs) : floatsOf("A");
      using x = Tensor.from(a, [4096], { device });
      using q = quantizeBlockwise(x, { code: createDynamicMap(sign === "s"), blocksize });
      expect(q.codes.read()).toEqual(bytesOf(`q8.${sign}.${blocksize}.q_exact_midpoint`));
      expect(q.absmax.read() as Float32Array).toEqual(floatsOf(`q8.${sign}.${blocksize}.absmax`));
    });

    test.each([
      ["nf4_nodouble", "nf4", "bfloat16", false],
      ["nf4_double", "nf4", "bfloat16", true],
      ["fp4_nodouble", "fp4", "float16", false],
    ] as const)("of the serialised layer %s", (file, quantType, dtype, compressStatistics) => {
      using layer = openSafetensors(`${import.meta.dir}/golden/${file}.safetensors`);
      using source = openSafetensors(`${import.meta.dir}/golden/${file}.source.safetensors`);
      const values = source.tensor("weight").values as Uint16Array & Float16Array;
      using w = Tensor.from<FloatDType>(values, [64, 128], { dtype, device });
      using q = quantize4bit(w, { quantType, compressStatistics });
      expect(q.codes.read()).toEqual(layer.tensor("layer.weight").bytes);
      expect(q.code).toEqual(layer.tensor("layer.weight.quant_map").values as Float32Array);
      expect(bytesOfTensor(q.absmax)).toEqual(layer.tensor("layer.weight.absmax").bytes);
      const part = (name: string) => layer.tensor(`layer.weight${name}`);
      const state = JSON.parse(new TextDecoder().decode(part(`.quant_state.bitsandbytes__${quantType}`).bytes));
      if (compressStatistics) {
        // Upstream's mean shows the order of its fp32 sum; ours is the double-precision mean, rounded once.
        expect(Math.abs(q.offset - state.nested_offset) / state.nested_offset).toBeLessThan(4e-7);
        const nested = layer.tensor("layer.weight.nested_absmax").values as Float32Array;
        expect(relativeError(q.state2!.absmax.read(), nested)).toBeLessThan(1e-5);
        expect(q.state2!.code).toEqual(layer.tensor("layer.weight.nested_quant_map").values as Float32Array);
      }

      // Upstream's own parts dequantise to upstream's own bytes.
      using theirs = QuantizedTensor.fromParts({
        codes: Tensor.from(part("").bytes, [4096], { device }),
        absmax: compressStatistics
          ? Tensor.from(part(".absmax").bytes, [128], { device })
          : Tensor.from(part(".absmax").values as Float32Array, [128], { device }),
        code: Codebook.named(quantType),
        blocksize: state.blocksize,
        shape: state.shape,
        dtype: state.dtype,
        nested: compressStatistics
          ? {
              absmax: Tensor.from(part(".nested_absmax").values as Float32Array, [1], { device }),
              code: Codebook.from(part(".nested_quant_map").values as Float32Array),
              blocksize: state.nested_blocksize,
              offset: state.nested_offset,
            }
          : undefined,
      });
      using back = dequantize4bit(theirs);
      expect(bytesOfTensor(back)).toEqual(source.tensor("dequant").bytes);
    });
  });

  describe("the definition", () => {
    const formats = [
      ...Object.entries(codebooks4).flatMap(([name, code]) =>
        blocksizes4.map((block) => [name, 4, block, code] as const),
      ),
      ...Object.entries(codebooks8).flatMap(([name, code]) =>
        blocksizes8.map((block) => [name, 8, block, code] as const),
      ),
      ...Object.entries(codebooksOfOtherBits).flatMap(([name, code]) =>
        [32, 256].map((block) => [name, code.bits, block, code] as const),
      ),
    ];
    test.each(formats)(
      "%s, %d bits, block %d: codes, scales and values of every shape and dtype",
      (_, bits, blocksize, code) => {
        for (const shape of quantizeShapes)
          for (const dtype of floatDTypes) {
            const size = shape.reduce((a, b) => a * b, 1);
            using x = Tensor.from(wave(size, size % 7, 3), shape, { device }).cast(dtype);
            using q =
              bits === 4 ? quantize4bit(x, { quantType: code, blocksize }) : quantizeBlockwise(x, { code, blocksize });
            const values = code.values;
            const want = quantize(x.readFloat32(), values, blocksize);
            expect(q.absmax.read() as Float32Array).toEqual(want.absmax);
            expect(q.codes.read()).toEqual(pack(want.codes, values));

            for (const to of floatDTypes) {
              using back = bits === 4 ? dequantize4bit(q, { dtype: to }) : dequantizeBlockwise(q, { dtype: to });
              expect(back.shape).toEqual(shape);
              const dense = Float32Array.from(want.codes, (c, i) =>
                round(Math.fround(values[c]! * want.absmax[Math.floor(i / blocksize)]!), to),
              );
              expect(back.readFloat32()).toEqual(dense);
            }
          }
      },
    );

    test.each([
      ["4-bit", 4, 64],
      ["4-bit", 4, 32],
      ["8-bit", 8, 256],
      ["3-bit", 3, 64],
    ])("double quantisation, %s, block %d", (_, bits, blocksize) => {
      const code = Codebook.named(bits === 3 ? "nf3" : "dynamic");
      for (const [rows, columns] of [
        [1, 64],
        [64, 640],
        [33, 4099],
      ] as const) {
        using x = Tensor.from(normal(rows * columns, rows), [rows, columns], { device });
        using plain = bits === 4 ? quantize4bit(x, { blocksize }) : quantizeBlockwise(x, { code, blocksize });
        using nested =
          bits === 4
            ? quantize4bit(x, { blocksize, compressStatistics: true })
            : quantizeBlockwise(x, { code, blocksize, nested: true });
        const scales = plain.absmax.read() as Float32Array;
        const mean = Math.fround(scales.reduce((sum, scale) => sum + scale, 0) / scales.length);
        expect(nested.offset).toBe(mean);
        const dynamic = Codebook.named("dynamic").values;
        const want = quantize(
          scales.map((scale) => scale - mean),
          dynamic,
          256,
        );
        expect(nested.absmax.read() as Uint8Array).toEqual(want.codes);
        expect(nested.state2!.absmax.read()).toEqual(want.absmax);
        expect(nested.codes.read()).toEqual(plain.codes.read());

        using back = bits === 4 ? dequantize4bit(nested) : dequantizeBlockwise(nested);
        const codes = nested.codes.read();
        const dense = Float32Array.from({ length: rows * columns }, (_, i) => {
          const block = Math.floor(i / blocksize);
          const scale = Math.fround(Math.fround(dynamic[want.codes[block]!]! * want.absmax[block >> 8]!) + mean);
          return nested.code[unpack(codes, bits, i)]! * scale;
        });
        expect(relativeError(back.readFloat32(), dense)).toBeLessThan(1e-7);
      }
    });

    test.each([
      ["a tie", [1, 1 + 2 ** -23]],
      ["one far above the rest", [3e38, ...Array(300).fill(1e-3)]],
      ["small and large ones", Array.from({ length: 300 }, (_, i) => 1.7 * 2 ** ((i % 250) - 126))],
    ])("the mean of scales is rounded once: %s", (_, list) => {
      const scales = Float32Array.from(list);
      const x = Float32Array.from({ length: 64 * list.length }, (_, i) => (i % 64 === 7 ? -scales[i >> 6]! : 0));
      using tensor = Tensor.from(x, [x.length], { device });
      using q = quantize4bit(tensor, { compressStatistics: true });
      expect(q.offset).toBe(meanOfScales(scales));
    });

    test("thresholds are exact: every float about them falls on its side", () => {
      for (const code of Object.values({ ...codebooks4, ...codebooks8, ...codebooksOfOtherBits })) {
        const values = code.values;
        const sorted = [...values].sort((a, b) => a - b);
        // The 1 in front makes every block's scale 1, so that the others are compared as they are.
        const near: number[] = [];
        for (let i = 0; i + 1 < sorted.length; i++) {
          const middle = Math.fround(Math.fround(sorted[i]! + sorted[i + 1]!) / 2);
          if (Math.abs(middle) >= 1 || Math.abs(middle) < 1e-30) continue;
          const bits = new Int32Array(new Float32Array([middle]).buffer)[0]!;
          for (let step = -3; step <= 3; step++) near.push(new Float32Array(Int32Array.of(bits + step).buffer)[0]!);
        }
        near.push(0, -0, 1, -1, 1e-20, -1e-20);
        const x = new Float32Array(Math.ceil(near.length / 63) * 64);
        for (const [i, value] of near.entries()) x[Math.floor(i / 63) * 64 + 1 + (i % 63)] = value;
        for (let i = 0; i < x.length; i += 64) x[i] = 1;
        using tensor = Tensor.from(x, [x.length], { device });
        using q =
          values.length === 16
            ? quantize4bit(tensor, { quantType: code })
            : quantizeBlockwise(tensor, { code, blocksize: 64 });
        expect(q.codes.read()).toEqual(pack(quantize(x, values, 64).codes, values));
      }
    });
  });

  describe("upstream's defects are not here", () => {
    test("rows that are a multiple of 16 but not of the block dequantise right", () => {
      for (const shape of [
        [64, 96],
        [4, 48],
        [2, 3, 96],
      ]) {
        const x = normal(
          shape.reduce((a, b) => a * b, 1),
          5,
        );
        using tensor = Tensor.from(x, shape, { device });
        using q = quantize4bit(tensor);
        using back = dequantize4bit(q);
        const error = relativeError(back.readFloat32(), x);
        expect(error).toBeGreaterThan(0.05);
        expect(error).toBeLessThan(0.12);
      }
    });

    test("0 stays 0 in 8 bits, and a block of zeros is one", () => {
      const x = new Float32Array(512);
      x[3] = 1;
      x[4] = -1;
      using tensor = Tensor.from(x, [512], { device });
      using q = quantizeBlockwise(tensor, { blocksize: 256 });
      using back = dequantizeBlockwise(q);
      expect([...back.readFloat32()].filter((value) => value === 0).length).toBe(510);
      expect(q.codes.read()[0]).toBe(127);
    });

    test("a zero block's 4-bit codes are upstream's", () => {
      using x = Tensor.zeros([64], { device });
      expect(quantize4bit(x, { quantType: "nf4" }).codes.read()).toEqual(new Uint8Array(32).fill(0x77));
      expect(quantize4bit(x, { quantType: "fp4" }).codes.read()).toEqual(new Uint8Array(32).fill(0));
      expect(dequantize4bit(quantize4bit(x)).readFloat32()).toEqual(new Float32Array(64));
    });
  });

  test("errors are those of theory: NF4 0.09, FP4 more, 8 bits under 0.01 for normal weights", () => {
    const x = normal(1 << 16, 3, 0.02);
    using tensor = Tensor.from(x, [256, 256], { device });
    const error = (q: QuantizedTensor) =>
      relativeError((q.bits === 4 ? dequantize4bit(q) : dequantizeBlockwise(q)).readFloat32(), x);
    const nf4 = error(quantize4bit(tensor));
    const fp4 = error(quantize4bit(tensor, { quantType: "fp4" }));
    expect(nf4).toBeGreaterThan(0.085);
    expect(nf4).toBeLessThan(0.097);
    expect(fp4).toBeGreaterThan(nf4);
    expect(error(quantize4bit(tensor, { compressStatistics: true }))).toBeLessThan(nf4 * 1.01);
    expect(error(quantizeBlockwise(tensor, { blocksize: 256 }))).toBeLessThan(0.012);
  });

  describe("is refused, with a sentence", () => {
    test.each([8, 48, 8192, 0, -64, 1.5, Number.NaN])("4-bit block %d", (blocksize) => {
      using w = Tensor.from(wave(128), [2, 64], { device });
      const { code, message } = errorOf(() => quantize4bit(w, { blocksize }));
      expect(code).toBe("invalid");
      expect(message).toContain(`blocksize is ${blocksize}, expected`);
    });

    test.each([
      [Number.NaN, "nan"],
      [Number.POSITIVE_INFINITY, "inf"],
      [Number.NEGATIVE_INFINITY, "-inf"],
    ])("%d in the input, wherever it is", (value, name) => {
      for (const at of [0, 63, 64, 200, 255, 256])
        for (const dtype of floatDTypes)
          for (const bits of [4, 8]) {
            const values = wave(257);
            values[at] = value;
            using w = Tensor.from(values, [1, 257], { device }).cast(dtype);
            const { code, message } = errorOf(() =>
              bits === 4 ? quantize4bit(w) : quantizeBlockwise(w, { blocksize: 64 }),
            );
            expect(code).toBe("invalid");
            expect(message).toMatch(new RegExp(`x\\[0, ${at}\\] is (${name}|-nan), expected finite`));
          }
    });

    test("an integer tensor", () => {
      using w = Tensor.from(new Int8Array(64), [64], { device });
      expect(errorOf(() => quantize4bit(w)).message).toContain("x is int8, expected float32, float16 or bfloat16");
    });

    test("a codebook of the other width, codes of the other width, an unknown type or dtype", () => {
      using w = Tensor.from(wave(128), [2, 64], { device });
      using q = quantize4bit(w);
      for (const [name, size] of [
        ["dynamic", 256],
        ["nf3", 8],
      ] as const) {
        const code = Codebook.named(name);
        expect(errorOf(() => quantize4bit(w, { quantType: code })).message).toContain(`${size} values, expected 16`);
        using wide = quantizeBlockwise(w, { code });
        expect(errorOf(() => dequantize4bit(wide)).message).toBe(
          `dequantize4bit: q holds ${code.bits}-bit codes: use dequantizeBlockwise.`,
        );
      }
      expect(errorOf(() => quantize4bit(w, { quantType: "nf5" as "nf4" })).message).toContain('quantType is "nf5"');
      expect(errorOf(() => dequantize4bit(q, { dtype: "float64" as "float32" })).message).toContain(
        'dtype is "float64"',
      );
      expect(errorOf(() => dequantize4bit(q, { dtype: "int8" as "float32" })).message).toContain('dtype is "int8"');
    });

    test("parts that do not fit", () => {
      const parts = {
        codes: Tensor.from(new Uint8Array(64), [64], { device }),
        absmax: Tensor.from(new Float32Array(2), [2], { device }),
        code: Codebook.named("nf4"),
        blocksize: 64,
        shape: [2, 64],
      };
      QuantizedTensor.fromParts(parts).dispose();
      const message = (change: object) => errorOf(() => QuantizedTensor.fromParts({ ...parts, ...change })).message;
      expect(message({ codes: Tensor.from(new Uint8Array(63), [63], { device }) })).toContain(
        "codes is uint8 [1, 63], expected uint8 with 64 elements",
      );
      expect(message({ codes: parts.absmax })).toContain("codes is float32");
      expect(message({ absmax: Tensor.from(new Float32Array(3), [3], { device }) })).toContain(
        "absmax is float32 [1, 3], expected float32 with 2",
      );
      expect(message({ blocksize: 48 })).toContain("blocksize is 48");
      expect(message({ blocksize: 0.5 })).toContain("blocksize is 0.5");
      expect(message({ shape: [2, -64] })).toContain("shape is [2, -64]");
      const nested = { absmax: parts.absmax, code: Codebook.named("dynamic"), blocksize: 256, offset: 0 };
      expect(message({ nested })).toContain("absmax is float32 [1, 2], expected uint8");
      const codes = Tensor.from(new Uint8Array(2), [2], { device });
      expect(message({ absmax: codes, nested })).toContain("nested.absmax is float32 [1, 2], expected float32 with 1");
      expect(message({ absmax: codes, nested: { ...nested, offset: Number.NaN } })).toContain("offset is NaN");
      expect(message({ absmax: codes, nested: { ...nested, code: Codebook.named("nf4") } })).toContain(
        "absmax is uint8 [1, 2], expected uint8 with 1 elements",
      );
    });
  });
});
