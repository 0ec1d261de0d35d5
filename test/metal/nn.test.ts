// The test of the kernels that layers and training need by themselves, on the simulator: gradients of products,
// embeddings, layer norm and sums at ragged sizes against float64, fast and with every access checked.
import { describe, expect, test } from "bun:test";
import type { FloatDType } from "../../src/index.ts";
import { floatDTypes, normal } from "../cases.ts";
import * as reference from "../reference.ts";
import { Store, shiftOf, wide } from "./arguments.ts";
import { launch, runs } from "./launch.ts";
import { bytesOf, load, offsetBuffers, randomCodes, store, unused, valuesOf, weightsOf } from "./memory.ts";
import type { View } from "./simulator.ts";

type Format = FloatDType | { bits: number; block: number; nestedBlock: number }; // block 0: a row

const formats: readonly { name: string; format: Format }[] = [
  ...floatDTypes.map((format) => ({ name: format as string, format })),
  { name: "4 bits, block 64", format: { bits: 4, block: 64, nestedBlock: 0 } },
  { name: "4 bits, block 32, nested 256", format: { bits: 4, block: 32, nestedBlock: 256 } },
  { name: "8 bits, block 100", format: { bits: 8, block: 100, nestedBlock: 0 } },
  { name: "8 bits, block a row", format: { bits: 8, block: 0, nestedBlock: 0 } },
  ...[2, 3, 5, 6, 7].map((bits) => ({ name: `${bits} bits`, format: { bits, block: 32, nestedBlock: 0 } })),
];

/** A weight [rows, columns] as kernels take it, and its numbers. */
function weight(format: Format, rows: number, columns: number) {
  const count = rows * columns;
  if (typeof format === "string") {
    const memory = store(normal(count, rows), format);
    const buffers = [memory, ...unused];
    const whole = columns % 8 === 0 ? 1 : 0;
    return {
      buffers,
      numbers: load(memory, format),
      stored: Store[format],
      nested: 0,
      whole,
      args: [0, 0, 0, 0, 0, 0],
      offsets: offsetBuffers(),
    };
  }
  const coded = randomCodes(count, valuesOf[format.bits]!, format.block || columns, format.nestedBlock, rows);
  const { buffers, offsets, nested, block, args } = coded;
  const fits = block >= 8 && shiftOf(block) < 32 ? 1 : 0;
  const whole = columns % 8 ? 0 : block === columns ? 2 : fits;
  return { buffers, numbers: weightsOf(coded), stored: Store.codes(format.bits), nested, whole, args, offsets };
}

/** Each element within the error of an fp32 sum of such a magnitude, and of one rounding to the dtype. */
function expectClose(y: View, dtype: FloatDType, want: ArrayLike<number>, magnitude: ArrayLike<number>): void {
  const rounding = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 }[dtype];
  const within = (i: number) => 1e-6 * magnitude[i]! + rounding * Math.abs(want[i]!) + 1e-7;
  const worst = load(y, dtype).map((got, i) => Math.abs(got - want[i]!) / within(i));
  expect(Math.max(...worst)).toBeLessThan(1);
}

describe.each(runs)("matmul_backward, $mode, seed $seed", (run) => {
  const shapes = [
    { side: 32, m: 9, n: 33, k: 64, split: 64 },
    { side: 32, m: 33, n: 64, k: 40, split: 64 },
    { side: 32, m: 5, n: 7, k: 19, split: 32 },
    { side: 32, m: 12, n: 80, k: 48, split: 32 }, // three parts, the last shorter
    { side: 64, m: 65, n: 35, k: 70, split: 64 },
    { side: 64, m: 72, n: 16, k: 128, split: 32 },
  ] as const;
  const cases = formats.flatMap((format) => [false, true].map((transposed) => ({ ...format, transposed })));
  test.each(cases)("by $name, transposed $transposed", ({ format, transposed }) => {
    for (const [i, { side, m, n, k, split }] of shapes.entries()) {
      const [of, to] = [floatDTypes[i % 3]!, floatDTypes[(i + 1) % 3]!];
      const w = weight(format, n, k);
      const a = store(normal(m * n, m), of);
      const numbers = transposed ? reference.transpose(load(a, of), n, m) : Float64Array.from(load(a, of));
      const turned = reference.transpose(w.numbers, n, k);
      const parts = Math.ceil(n / split);
      const y = store(new Float32Array(m * k), to);
      const result = parts === 1 ? y : new Float32Array(parts * m * k);
      const whole = (transposed ? m : n) % 8 === 0 ? 1 : 0;
      const constants = [Store[of], w.stored, w.nested, whole, w.whole, +transposed];
      launch({
        ...run,
        family: "matmul_backward",
        kernel: `matmul_backward_${side}`,
        constants: [...constants, parts === 1 ? Store[to] : Store.float32, 0],
        behind: w.offsets,
        args: [m, n, k, split, ...w.args],
        buffers: [a, ...w.buffers, result],
        grid: [Math.ceil(k / side), Math.ceil(m / side), parts],
        group: 128,
      });
      if (parts > 1)
        launch({
          ...run,
          family: "matmul_tile",
          kernel: "matmul_sum",
          constants: [Store[to], 0, 0, 0, 0],
          args: [m, k, parts],
          buffers: [result, result, y],
          grid: [Math.ceil(k / 256), m, 1],
          group: 256,
        });
      const want = reference.matmul(numbers, turned, undefined, m, k, n);
      expectClose(y, to, want, reference.matmul(numbers.map(Math.abs), turned.map(Math.abs), undefined, m, k, n));
    }
  });
});

describe.each(runs)("embedding, $mode, seed $seed", (run) => {
  const indices = Int32Array.of(4, 0, 2, 2, 4, 1);
  test.each(formats)("rows of $name", ({ format }) => {
    for (const [i, columns] of [64, 77, 1, 520].entries()) {
      const to = floatDTypes[i % 3]!;
      const w = weight(format, 5, columns);
      const y = store(new Float32Array(6 * columns), to);
      launch({
        ...run,
        family: "embedding",
        kernel: "embedding",
        constants: [w.stored, w.nested, w.whole, Store[to], 0],
        behind: w.offsets,
        args: [...wide(6), columns, 5, ...w.args],
        buffers: [indices, ...w.buffers, y],
        grid: [2, 1, 1],
        group: 256,
      });
      const want = [...indices].flatMap((row) => [...w.numbers.subarray(row * columns, (row + 1) * columns)]);
      expect(bytesOf(y)).toEqual(bytesOf(store(want, to)));
    }
  });

  test.each(floatDTypes)("sums of rows of %s", (of) => {
    for (const [i, columns] of [64, 77, 1].entries()) {
      const to = floatDTypes[i]!;
      const dy = store(normal(6 * columns, 3), of);
      const dw = store(new Float32Array(6 * columns), to);
      const starts = Uint32Array.of(0, 1, 2, 4, 4, 6, 6); // rows 3 and 5 have no index
      const sorted = Uint32Array.from([1, 5, 2, 3, 0, 4].flatMap((token) => [indices[token]!, token]));
      launch({
        ...run,
        family: "embedding",
        kernel: "embedding_backward",
        constants: [Store[of], 0, +(columns % 8 === 0), Store[to]],
        args: [...wide(6), columns, 0, 0, 0, 0, 0, 0, 0, 0],
        buffers: [dy, starts, sorted, dw],
        grid: [2, 1, 1],
        group: 256,
      });
      const want = new Float32Array(6 * columns);
      for (const [token, row] of indices.entries())
        for (let c = 0; c < columns; c++) want[row * columns + c]! += load(dy, of)[token * columns + c]!;
      expect(bytesOf(dw)).toEqual(bytesOf(store(want, to)));
    }
  });
});

describe.each(runs)("layer_norm, $mode, seed $seed", (run) => {
  const pairs = floatDTypes.flatMap((of) => floatDTypes.map((to) => ({ of, to })));
  test.each(pairs)("$of and $to", ({ of, to }) => {
    for (const [rows, columns] of [
      [1, 1],
      [3, 37],
      [2, 600],
    ] as const) {
      const eps = 1e-3;
      const x = store(normal(rows * columns, 3), of);
      const dy = store(normal(rows * columns, 4), to);
      const [weights, bias] = [normal(columns, 5), normal(columns, 6)];
      const [numbers, gradient] = [load(x, of), load(dy, to)];
      const stats = new Float32Array(2 * rows);
      const epsBits = new Uint32Array(Float32Array.of(eps).buffer)[0]!;
      const pass = (kernel: string, result: View, store: FloatDType, grid: number, last = false, parts = 1) =>
        launch({
          ...run,
          ...{ family: "layer_norm", kernel, constants: [Store[of], Store[to], Store[store]] },
          args: [rows, columns, epsBits],
          buffers: last ? [x, dy, weights, bias, result] : [x, dy, weights, bias, stats, result],
          grid: [grid, parts, 1],
          group: 256,
        });
      const y = store(new Float32Array(rows * columns), of);
      const dx = store(new Float32Array(rows * columns), to);
      const dWeight = new Float32Array(columns);
      pass("layer_norm", y, of, rows);
      pass("layer_norm_backward", dx, to, rows);
      pass("layer_norm_stats", stats, of, rows, true);
      pass("layer_norm_backward_weight", dWeight, "float32", Math.ceil(columns / 256));
      const parts = 3; // which the rows need not be a multiple of, and may be fewer than
      const sums = new Float32Array(parts * columns);
      pass("layer_norm_backward_weight", sums, "float32", Math.ceil(columns / 256), false, parts);
      const added = Float32Array.from(
        { length: columns },
        (_, c) => sums[c]! + sums[columns + c]! + sums[2 * columns + c]!,
      );

      const want = reference.layerNorm(numbers, gradient, weights, bias, columns, eps);
      const size = (length: number) => new Float32Array(length).fill(10);
      expectClose(y, of, want.y, size(rows * columns));
      expectClose(dx, to, want.dx, size(rows * columns));
      expectClose(dWeight, "float32", want.dWeight, size(columns));
      expectClose(added, "float32", want.dWeight, size(columns));
    }
  });
});

describe.each(runs)("element by element, $mode, seed $seed", (run) => {
  const factor = Math.fround(-0.3);
  const bits = new Uint32Array(Float32Array.of(factor).buffer)[0]!;
  const grid = { grid: [2, 1, 1] as [number, number, number], group: 256 };
  const pairs = floatDTypes.flatMap((a) => floatDTypes.map((b) => ({ a, b })));

  test.each(pairs)("$a and $b: sums and products", ({ a, b }) => {
    for (const count of [1, 8, 4099])
      for (const kind of [0, 1]) {
        const [left, right] = [store(normal(count, 1), a), store(normal(count, 2), b)];
        const y = store(new Float32Array(count), a);
        const constants = [kind, Store[a], Store[b]];
        const buffers = [left, right, y];
        launch({
          ...run,
          family: "elementwise",
          kernel: "binary",
          constants,
          args: [...wide(count), bits],
          buffers,
          ...grid,
        });
        const [first, second] = [load(left, a), load(right, b)];
        const scaled = second.map((value) => factor * value);
        const want = first.map((value, i) => (kind === 0 ? value + scaled[i]! : value * second[i]!));
        expect(bytesOf(y)).toEqual(bytesOf(store(want, a)));
      }
  });

  test.each(floatDTypes)("%s: multiples, and powers of e", (dtype) => {
    for (const count of [1, 8, 4099])
      for (const kind of [1, 2]) {
        const x = store(normal(count, 3), dtype);
        const y = store(new Float32Array(count), dtype);
        const constants = [kind, Store[dtype], Store[dtype]];
        const args = [...wide(count), bits];
        launch({ ...run, family: "elementwise", kernel: "unary", constants, args, buffers: [x, y], ...grid });
        const want = load(x, dtype).map((value) => (kind === 1 ? factor * value : Math.exp(value)));
        if (kind === 1) expect(bytesOf(y)).toEqual(bytesOf(store(want, dtype)));
        else expectClose(y, dtype, want, want);
      }
  });

  test.each(floatDTypes)("%s: softmax", (dtype) => {
    for (const [rows, columns] of [
      [1, 1],
      [3, 31],
      [2, 256],
      [2, 1000],
    ] as const) {
      const x = store(normal(rows * columns, 4, 5), dtype);
      const y = store(new Float32Array(rows * columns), dtype);
      const shape = { grid: [rows, 1, 1] as [number, number, number], group: 256 };
      launch({
        ...run,
        family: "softmax",
        kernel: "softmax",
        constants: [Store[dtype]],
        args: [columns],
        buffers: [x, y],
        ...shape,
      });
      const values = load(x, dtype);
      const want = values.map((_, i) => {
        const row = values.subarray(i - (i % columns), i - (i % columns) + columns);
        const top = Math.max(...row);
        return Math.exp(values[i]! - top) / row.reduce((sum, value) => sum + Math.exp(value - top), 0);
      });
      expectClose(y, dtype, want, want);
    }
  });
});
