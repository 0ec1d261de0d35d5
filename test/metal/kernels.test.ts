// The test of the kernels in metal/ by themselves, on the simulator: every variant at ragged sizes against answers
// worked out in float64 (or in fp32 where bytes must match), fast and with every access checked.
import { describe, expect, test } from "bun:test";
import type { FloatDType } from "../../src/index.ts";
import { codebooks4, codebooks8, codebooksOfOtherBits, floatDTypes, normal } from "../cases.ts";
import * as reference from "../reference.ts";
import { kernelCodes, nextBelow, Store, searchOrder, shiftOf, wide } from "./arguments.ts";
import { launch, type Run, runs } from "./launch.ts";
import { bytesOf, dynamic, load, offsetBuffers, randomCodes, store, unused, valuesOf, weightsOf } from "./memory.ts";
import type { View } from "./simulator.ts";

// ── Casts ───────────────────────────────────────────────────────────────────────────────────────────────────────────

describe.each(runs)("cast, $mode, seed $seed", (run) => {
  const pairs = floatDTypes.flatMap((from) => floatDTypes.map((to) => ({ from, to })));
  test.each(pairs)("$from to $to", ({ from, to }) => {
    for (const count of [1, 7, 8, 9, 4099]) {
      const special = [0, -0, 65504, -65520, 1e-7, 3e38, 1.00390625, Number.POSITIVE_INFINITY];
      const x = store([...special, ...normal(count, count)].slice(-count), from);
      const y = store(new Float32Array(count), to);
      const constants = [0, Store[from], Store[to]]; // UNARY_COPY
      launch({
        ...run,
        ...{
          family: "elementwise",
          kernel: "unary",
          constants,
          args: [...wide(count), 0],
          buffers: [x, y],
          grid: [2, 1, 1],
        },
        group: 256,
      });
      expect(bytesOf(y)).toEqual(bytesOf(store(load(x, from), to)));
    }
  });

  test("a NaN stays a NaN", () => {
    const x = Uint32Array.of(0x7fc00000, 0xff800001, 0x7fffffff);
    const y = new Uint16Array(3);
    const constants = [0, Store.float32, Store.bfloat16];
    launch({
      ...run,
      ...{
        family: "elementwise",
        kernel: "unary",
        constants,
        args: [...wide(3), 0],
        buffers: [x, y],
        grid: [1, 1, 1],
        group: 256,
      },
    });
    expect([...load(y, "bfloat16")].every(Number.isNaN)).toBe(true);
  });
});

// ── Quantisation ────────────────────────────────────────────────────────────────────────────────────────────────────

function quantize(run: Run, x: View, dtype: FloatDType, values: Float32Array, block: number) {
  const count = x.length;
  const bits = Math.log2(values.length);
  const codes = new Uint8Array(Math.ceil((count * bits) / 8));
  const absmax = new Float32Array(Math.ceil(count / block));
  const tiled = block >= 8 && block <= 4096 && shiftOf(block) < 32;
  launch(
    {
      ...run,
      family: "quantize",
      kernel: tiled ? "quantize" : "quantize_odd",
      constants: [Store[dtype], Store.codes(bits), 0],
      args: [...wide(count), block, shiftOf(block)],
      buffers: [x, kernelCodes(values), codes, absmax],
      grid: [2, 1, 1],
      group: 512,
    },
    2,
  );
  return { codes, absmax };
}

/** Or a small number in the place of one that a GPU which flushes subnormals would not tell from zero. */
const normalised = (x: number) => (x === 0 || Math.abs(x) >= 2 ** -126 ? x : Math.sign(x) * 2 ** -120);

function expectQuantized(run: Run, x: View, dtype: FloatDType, values: Float32Array, block: number): void {
  const got = quantize(run, x, dtype, values, block);
  const want = reference.quantize(load(x, dtype), values, block);
  expect<Float32Array>(got.absmax).toEqual(want.absmax);
  expect(Buffer.from(got.codes).equals(reference.pack(want.codes, values))).toBe(true);
}

describe.each(runs)("quantize, $mode, seed $seed", (run) => {
  const cases4 = Object.keys(codebooks4).flatMap((name) => floatDTypes.map((dtype) => ({ name, dtype })));
  test.each(cases4)("4-bit $name from $dtype", ({ name, dtype }) => {
    for (const block of [32, 64, 128, 256, 512, 4096]) {
      for (const count of [1, 31, 64, 4097, 9001]) {
        const x = normal(count, block + count);
        x.fill(0, Math.floor(count / 3), Math.floor(count / 2)); // whole blocks of zeros among them
        expectQuantized(run, store(x, dtype), dtype, codebooks4[name]!.values, block);
      }
    }
  });

  const cases8 = Object.keys(codebooks8).flatMap((name) =>
    [8, 64, 256, 4096, 1, 37, 5000].map((block) => ({ name, block })),
  );
  test.each(cases8)("8-bit $name, block $block", ({ name, block }) => {
    for (const [i, count] of [1, 63, 4500].entries()) {
      const dtype = floatDTypes[i]!;
      expectQuantized(run, store(normal(count, block + i), dtype), dtype, codebooks8[name]!.values, block);
    }
  });

  test.each(Object.entries(codebooksOfOtherBits))("%s", (_, { values }) => {
    for (const [i, block] of [32, 64, 4096].entries())
      for (const count of [1, 7, 31, 4097])
        expectQuantized(run, store(normal(count, block + count), floatDTypes[i]!), floatDTypes[i]!, values, block);
  });

  test.each(Object.entries({ ...codebooks4, ...codebooks8, ...codebooksOfOtherBits }))(
    "%s at every threshold and beside it",
    (_, codebook) => {
      const { values } = codebook;
      const { thresholds } = searchOrder(values);
      const around = [...thresholds].flatMap((x) => [x, nextBelow(x), -nextBelow(-x)].map(normalised));
      // Each block holds a 1, so that it is searched as it stands.
      const blocks = Math.ceil(around.length / 31);
      const x = new Float32Array(blocks * 32).fill(1);
      for (const [i, value] of around.entries()) x[i + Math.floor(i / 31) + 1] = value;
      expectQuantized(run, x, "float32", values, 32);
    },
  );

  test.each([
    { name: "nf4", values: codebooks4.nf4!.values, block: 64 },
    { name: "nf4", values: codebooks4.nf4!.values, block: 2048 },
    { name: "dynamic", values: dynamic, block: 256 },
    { name: "dynamic", values: dynamic, block: 37 },
  ])("$name in blocks of $block whose reciprocal is subnormal", ({ values, block }) => {
    const magnitudes = [2 ** 126, 2 ** 126 * 1.0000001, 1.3e38, 2 ** 127, 2.2e38, 3.4028234e38].map(Math.fround);
    for (const [seed, most] of magnitudes.entries()) {
      const x = normal(3 * block, seed).map((value) => Math.max(-1, Math.min(1, value / 3)) * most);
      for (let at = 0; at < x.length; at += block) x[at] = most;
      expectQuantized(run, x, "float32", values, block);
    }
  });

  test.skipIf(process.env.BNB_SIM_FLUSH === "0")(
    "blocks of subnormal numbers count as zeros, and keep their absmax",
    () => {
      const x = normal(256, 3).map((value) => value * 2 ** -131);
      const largest = x.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      for (const [values, block] of [[codebooks4.nf4!.values, 256] as const, [dynamic, 256] as const]) {
        const { codes, absmax } = quantize(run, x, "float32", values, block);
        expect([...absmax]).toEqual([largest]);
        const zeros = reference.quantize(new Float32Array(256), values, block).codes;
        expect(Buffer.from(codes).equals(reference.pack(zeros, values))).toBe(true);
      }
    },
  );

  test.each([
    { kernel: "quantize", values: codebooks4.nf4!.values, block: 64 },
    { kernel: "quantize over simdgroups", values: codebooks4.nf4!.values, block: 1024 },
    { kernel: "quantize_odd", values: dynamic, block: 100 },
  ])("$kernel: a NaN or an infinity shows in its block's absmax, and only there", ({ values, block }) => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
      const x = normal(3 * block, 5);
      x[block + 17] = bad;
      const { absmax } = quantize(run, x, "float32", values, block);
      expect([...absmax].map(Number.isFinite)).toEqual([true, false, true]);
    }
  });
});

// ── Scales, and what codes stand for ────────────────────────────────────────────────────────────────────────────────

describe.each(runs)("dequantize, $mode, seed $seed", (run) => {
  const cases = floatDTypes.flatMap((dtype) =>
    [0, 256, 100].flatMap((nestedBlock) => [
      ...[32, 64, 4096].map((block) => ({ dtype, nestedBlock, bits: 4, block })),
      ...[1, 4, 7, 8, 64, 100].map((block) => ({ dtype, nestedBlock, bits: 8, block })),
      ...[2, 3, 5, 6, 7].map((bits) => ({ dtype, nestedBlock, bits, block: 32 })),
    ]),
  );
  test.each(cases)("$bits bits to $dtype, block $block, nested $nestedBlock", ({ dtype, nestedBlock, bits, block }) => {
    const values = valuesOf[bits]!;
    for (const count of [1, 31, 4097, 4160]) {
      const coded = randomCodes(count, values, block, nestedBlock, count);
      const y = store(new Float32Array(count), dtype);
      launch({
        ...run,
        family: "dequantize",
        kernel: "dequantize",
        constants: [Store.codes(bits), Store[dtype], coded.nested, 0],
        behind: coded.offsets,
        args: [...wide(count), ...coded.args],
        buffers: [...coded.buffers, y],
        grid: [2, 1, 1],
        group: 256,
      });
      expect(Buffer.from(bytesOf(y)).equals(bytesOf(store(weightsOf(coded), dtype)))).toBe(true);
    }
  });
});

// ── Products ────────────────────────────────────────────────────────────────────────────────────────────────────────

interface Product {
  m: number;
  n: number;
  k: number;
  dtype: FloatDType; // of x and y
  w: FloatDType | { bits: number; block: number; nestedBlock: number }; // block 0: a row
  bias: boolean;
}

/** A product's memory and its answer. */
function product({ m, n, k, dtype, w, bias }: Product) {
  const x = store(normal(m * k, m), dtype);
  const offsets = normal(n, 3);
  const y = store(new Float32Array(m * n), dtype);
  const dense = typeof w === "string" ? store(normal(n * k, n), w) : undefined;
  const coded =
    typeof w === "string" ? undefined : randomCodes(n * k, valuesOf[w.bits]!, w.block || k, w.nestedBlock, n);
  const weights = typeof w === "string" ? load(dense!, w) : weightsOf(coded!);
  const numbers = load(x, dtype);
  const blocks = !coded || (coded.block >= 16 && shiftOf(coded.block) < 32);
  const whole = k % 16 !== 0 ? 0 : blocks ? 1 : coded.block === k ? 2 : 0;
  const scales = coded?.args ?? [0, 0, 0, 0, 0, 0];
  return {
    ...{ x, y, offsets, scales: whole === 2 ? scales.with(1, 31) : scales },
    weight: coded?.buffers ?? [dense!, ...unused],
    behind: coded?.offsets ?? offsetBuffers(),
    constants: [Store[dtype], typeof w === "string" ? Store[w] : Store.codes(w.bits), coded?.nested ?? 0, whole, +bias],
    want: reference.matmul(numbers, weights, bias ? offsets : undefined, m, n, k),
    magnitude: reference.matmul(numbers.map(Math.abs), weights.map(Math.abs), undefined, m, n, k),
  };
}

/** Each element within the error of an fp32 sum, and of one rounding to the dtype. */
function expectProduct(y: View, dtype: FloatDType, { want, magnitude }: ReturnType<typeof product>): void {
  const rounding = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
  const got = load(y, dtype);
  const worst = got.map(
    (value, i) => Math.abs(value - want[i]!) / (1e-6 * magnitude[i]! + rounding * Math.abs(want[i]!) + 1e-7),
  );
  expect(Math.max(...worst)).toBeLessThan(1);
}

const weightFormats: readonly Product["w"][] = [
  ...floatDTypes,
  { bits: 4, block: 64, nestedBlock: 0 },
  { bits: 4, block: 32, nestedBlock: 256 },
  { bits: 4, block: 4096, nestedBlock: 0 },
  { bits: 8, block: 64, nestedBlock: 100 },
  { bits: 8, block: 100, nestedBlock: 0 },
  { bits: 8, block: 0, nestedBlock: 0 },
];

const nameOf = (w: Product["w"]) =>
  typeof w === "string"
    ? w
    : `${w.bits} bits, block ${w.block || "a row"}${w.nestedBlock ? `, nested ${w.nestedBlock}` : ""}`;

const products = [
  ...floatDTypes.flatMap((dtype) => weightFormats.map((w) => ({ dtype, w, name: nameOf(w) }))),
  ...[2, 3, 5, 6, 7].map((bits, i) => {
    const w = { bits, block: i % 2 ? 32 : 64, nestedBlock: i % 2 ? 256 : 0 };
    return { dtype: floatDTypes[i % 3]!, w, name: nameOf(w) };
  }),
];

describe.each(runs)("matmul_vector, $mode, seed $seed", (run) => {
  test.each(products)("$dtype by $name", ({ dtype, w }) => {
    const shapes = [
      [1, 5, 64],
      [1, 17, 528], // a second turn over k, and rows that straddle blocks
      [2, 16, 512],
      [3, 33, 48],
      [5, 18, 100],
      [1, 3, 1],
      [4, 7, 19],
      [8, 21, 96],
      [7, 6, 35],
      [11, 5, 48], // a second group of vectors, not full
    ] as const;
    for (const [m, n, k] of shapes) {
      const bias = (m + n) % 2 === 0;
      const p = product({ m, n, k, dtype, w, bias });
      const vectors = [1, 2, 4, 8].find((most) => m <= most) ?? 8;
      const [, stored, , whole] = p.constants;
      for (const pairs of stored === Store.codes(4) && whole ? [0, 1] : [0])
        for (const wide of vectors === 1 ? [false, true] : [false]) {
          bytesOf(p.y).fill(0);
          launch({
            ...run,
            family: "matmul_vector",
            kernel: wide ? "matmul_vector_1_wide" : `matmul_vector_${vectors}`,
            constants: [...p.constants, pairs, 0],
            behind: p.behind,
            args: [m, n, k, k, ...p.scales],
            buffers: [p.x, ...p.weight, p.offsets, p.y],
            grid: [Math.ceil(n / (wide ? 32 : 16)), Math.ceil(m / vectors), 1],
            group: 128,
          });
          expectProduct(p.y, dtype, p);
        }
    }
  });
});

describe.each(runs)("matmul_tile, $mode, seed $seed", (run) => {
  const tiles = [
    { side: 32, m: 9, n: 33, k: 64, split: 64 },
    { side: 32, m: 33, n: 31, k: 144, split: 144 }, // a ragged step, and rows that straddle blocks
    { side: 32, m: 10, n: 5, k: 19, split: 19 },
    { side: 32, m: 12, n: 20, k: 208, split: 96 }, // three parts, the last shorter
    { side: 64, m: 65, n: 70, k: 80, split: 80 },
    { side: 64, m: 34, n: 66, k: 35, split: 35 },
    { side: 16, m: 9, n: 70, k: 80, split: 80 },
    { side: 16, m: 17, n: 60, k: 35, split: 32 },
  ] as const;
  test.each(products)("$dtype by $name", ({ dtype, w }) => {
    for (const { side, m, n, k, split } of tiles) {
      const bias = (m + n) % 2 === 0;
      const p = product({ m, n, k, dtype, w, bias });
      const parts = Math.ceil(k / split);
      const y = parts === 1 ? p.y : new Float32Array(parts * m * n);
      const [x, weight, nested, whole] = p.constants;
      launch({
        ...run,
        family: "matmul_tile",
        kernel: `matmul_tile_${side}`,
        constants: [x!, weight!, nested!, whole!, parts === 1 ? +bias : 0, parts === 1 ? x! : Store.float32, 0],
        behind: p.behind,
        args: [m, n, k, split, ...p.scales],
        buffers: [p.x, ...p.weight, p.offsets, y],
        grid: [Math.ceil(n / (side === 16 ? 64 : side)), Math.ceil(m / side), parts],
        group: 128,
      });
      if (parts > 1)
        launch({
          ...run,
          family: "matmul_tile",
          kernel: "matmul_sum",
          constants: [...p.constants, x!],
          args: [m, n, parts],
          buffers: [y, p.offsets, p.y],
          grid: [Math.ceil(n / 256), m, 1],
          group: 256,
        });
      expectProduct(p.y, dtype, p);
    }
  });
});

// ── Comparison ──────────────────────────────────────────────────────────────────────────────────────────────────────

describe.each(runs)("compare, $mode, seed $seed", (run) => {
  const pairs = floatDTypes.flatMap((a) => floatDTypes.map((b) => ({ a, b })));
  test.each(pairs)("$a with $b", ({ a, b }) => {
    for (const count of [1, 9, 4099, 9000]) {
      const groups = 3;
      const numbers = normal(count, count);
      const [first, second] = [
        store(numbers, a),
        store(
          numbers.map((x) => x * 1.01 + 0.001),
          b,
        ),
      ];
      if (count > 9) {
        first[3] = a === "bfloat16" ? 0x7fc0 : Number.NaN;
        second[4097] = b === "bfloat16" ? 0xff80 : Number.NEGATIVE_INFINITY;
      }
      const [as, bs] = [load(first, a), load(second, b)];
      const finite = [...as.keys()].filter((i) => Number.isFinite(as[i]) && Number.isFinite(bs[i]));
      const mean = (of: (i: number) => number) => finite.reduce((sum, i) => sum + of(i) ** 2, 0) / finite.length;
      const error = (i: number) => Math.abs(as[i]! - bs[i]!);
      const want = [Math.sqrt(mean((i) => as[i]!)), Math.sqrt(mean(error)), Math.max(...finite.map(error))];

      const parts = new Uint8Array(16 * groups);
      const y = new Float32Array(4);
      const shared = { ...run, family: "compare", constants: [Store[a], Store[b]], group: 256 };
      const args = [...wide(count), groups];
      launch({ ...shared, kernel: "compare", args, buffers: [first, second, parts], grid: [groups, 1, 1] });
      launch({ ...shared, kernel: "compare_finish", args, buffers: [parts, y], grid: [1, 1, 1] });
      for (const [i, value] of want.entries()) expect(Math.abs(y[i]! / value - 1)).toBeLessThan(1e-5);
      expect(y[3]).toBe(count - finite.length);
    }
  });
});
