// What LLM.int8() refuses: numbers that are none, thresholds, shapes and dtypes that do not fit, and no handle at all.
import { describe, expect, test } from "bun:test";
import {
  type FloatDType,
  Int8Weight,
  int8DoubleQuant,
  int8LinearMatmul,
  int8MixedScaledMm,
  int8MmDequant,
  int8ScaledMm,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  matmul8bit,
  Tensor,
} from "../src/index.ts";
import { native } from "../src/native.ts";
import { Signature } from "../src/signature.ts";
import { floatDTypes, testDevices, wave } from "./cases.ts";
import { errorOf } from "./reference.ts";

/** For what is said without a public function between. */
const inC = new Signature("C");

describe.each(testDevices)("on %s", (_, device) => {
  const from = (values: Float32Array, shape: readonly number[], dtype: FloatDType = "float32") =>
    Tensor.from(values, shape, { device }).cast(dtype);

  const w = () => Int8Weight.quantize(from(wave(6 * 8), [6, 8]));
  const x = () => from(wave(2 * 8), [2, 8]);

  /** By its own stats, without a threshold. */
  const codesOf = (A: Tensor, byColumn: number) => {
    const stats = inC.made(native.bnb_int8_stats(A.pointer, 0, byColumn));
    try {
      return inC.made(native.bnb_int8_vectorwise_quant(A.pointer, stats, 0, null, byColumn));
    } finally {
      native.bnb_tensor_free(stats);
    }
  };

  test("a NaN or an infinity, wherever it is", () => {
    for (const dtype of floatDTypes)
      for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])
        for (const at of [0, 37, 76, 99, 149]) {
          const values = wave(150);
          values[at] = bad;
          using A = from(values, [2, 75], dtype);
          const place = `A[${Math.floor(at / 75)}, ${at % 75}] is `;
          expect(errorOf(() => int8VectorwiseQuant(A)).message).toContain(place);
          expect(errorOf(() => codesOf(A, 1)).message).toContain(`x${place.slice(1)}`);
          if (Number.isNaN(bad)) expect(errorOf(() => int8DoubleQuant(A, { threshold: 6 })).message).toContain(place);
        }
  });

  test("a NaN of whatever bits, also where converting changes them", () => {
    const patterns = { float16: [0x7c01, 0xfdff, 0x7e00], bfloat16: [0x7f81, 0xffbf, 0x7fc0] } as const;
    for (const dtype of ["float16", "bfloat16"] as const)
      for (const pattern of patterns[dtype])
        for (const byColumn of [0, 1]) {
          const bits = new Uint16Array(3 * 70).fill(0x3c00);
          bits[100] = pattern;
          using A = Tensor.from(dtype === "float16" ? new Float16Array(bits.buffer) : bits, [3, 70], { dtype });
          expect(errorOf(() => codesOf(A, byColumn)).message).toMatch(/x\[1, 30\] is -?nan/);
        }
  });

  test("stats that are no numbers, of what is", () => {
    using A = from(wave(6 * 70), [6, 70]);
    using stats = from(wave(6).with(4, Number.NEGATIVE_INFINITY), [1, 6]);
    const action = () => inC.made(native.bnb_int8_vectorwise_quant(A.pointer, stats.pointer, 0, null, 0));
    expect(errorOf(action).message).toContain("stats[4] is -inf, expected a finite number");
  });

  test("thresholds that are none", () => {
    for (const threshold of [-1, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(errorOf(() => int8VectorwiseQuant(x(), { threshold })).message).toContain("expected a finite number");
      expect(errorOf(() => matmul8bit(x(), w(), { threshold })).message).toContain("expected a finite number");
    }
    expect(native.bnb_int8_outliers(x().pointer, 0)).toBeNull();
  });

  test("shapes and dtypes that do not fit", () => {
    const codes = (shape: number[]) => Tensor.zeros(shape, { device, dtype: "int8" });
    const floats = (shape: number[]) => Tensor.zeros(shape, { device });
    const sums = Tensor.zeros([2, 6], { device, dtype: "int32" });
    const cases: [() => unknown, string][] = [
      [() => int8VectorwiseQuant(codes([2, 8])), "A is int8, expected float32"],
      [
        () => int8VectorwiseDequant(x() as unknown as Tensor<"int8">, floats([2])),
        "A is float32 [2, 8], expected int8",
      ],
      [() => int8VectorwiseDequant(codes([2, 8]), floats([3])), "stats is float32 [1, 3], expected float32 [1, 2]"],
      [
        () => int8LinearMatmul(codes([2, 8]), codes([6, 9])),
        "A is [2, 8] and B is [6, 9]: the last dimensions must match",
      ],
      [() => int8LinearMatmul(codes([2, 8]), codes([2, 3, 8])), "B is [2, 3, 8], expected two dimensions"],
      [() => int8LinearMatmul(x() as unknown as Tensor<"int8">, codes([6, 8])), "A is float32 [2, 8], expected int8"],
      [() => int8MmDequant(sums, floats([3]), floats([6])), "rowStats is float32 [1, 3], expected float32 [1, 2]"],
      [() => int8MmDequant(sums, floats([2]), floats([2])), "colStats is float32 [1, 2], expected float32 [1, 6]"],
      [() => int8MmDequant(sums, floats([2]), floats([6]), { bias: floats([2]) }), "bias is float32 [1, 2], expected"],
      [() => int8MmDequant(sums, floats([2]), floats([6]), { dtype: "int8" as "float32" }), 'dtype is "int8"'],
      [() => int8ScaledMm(codes([2, 8]), codes([6, 8]), floats([6]), floats([2])), "rowStats is float32 [1, 6]"],
      [() => int8MixedScaledMm(x(), codes([2, 9]), w().CB, floats([2]), w().SCB), "CA is [2, 9] and CB is [6, 8]"],
      [() => int8MixedScaledMm(x(), codes([3, 8]), w().CB, floats([3]), w().SCB), "A is float32 [2, 8], expected"],
      [() => matmul8bit(from(wave(9), [1, 9]), w()), "x is [1, 9] and w is [6, 8]: the last dimensions must match"],
      [() => matmul8bit(codes([1, 8]) as unknown as Tensor<"float32">, w()), "x is int8, expected float32"],
      [() => matmul8bit(x(), w(), { bias: floats([5]) }), "bias is [5], expected [6]"],
      [
        () => matmul8bit(from(wave(131_072), [1, 131_072]), new Int8Weight(codes([1, 131_072]), floats([1]))),
        "x has 131072 columns",
      ],
    ];
    for (const [action, sentence] of cases) expect(errorOf(action).message).toContain(sentence);
  });

  test("NULL and freed handles", () => {
    const tensor = x();
    const [p, null_] = [tensor.pointer, null];
    expect(native.bnb_int8_outliers(null_, 1)).toBeNull();
    expect(native.bnb_int8_stats(null_, 0, 0)).toBeNull();
    expect(native.bnb_int8_vectorwise_quant(p, null_, 0, null_, 0)).toBeNull();
    expect(native.bnb_int8_vectorwise_dequant(null_, null_, 0)).toBeNull();
    expect(native.bnb_int8_linear_matmul(null_, null_)).toBeNull();
    expect(native.bnb_int8_mm_dequant(null_, null_, null_, null_, 0)).toBeNull();
    expect(native.bnb_int8_scaled_mm(null_, null_, null_, null_, null_, 0)).toBeNull();
    expect(native.bnb_int8_mixed_scaled_mm(p, null_, null_, null_, null_, null_, null_)).toBeNull();
    expect(native.bnb_int8_matmul(p, null_, null_, 0, null_)).toBeNull();
  });
});
