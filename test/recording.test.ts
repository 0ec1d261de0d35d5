// Operations that are recorded once and run again: what they compute, what memory they take, and what can't be
// recorded.
import { describe, expect, test } from "bun:test";
import {
  add,
  dequantize4bit,
  embedding,
  embeddingBackward,
  int8VectorwiseQuant,
  linear,
  matmul4bit,
  quantize4bit,
  quantizeAffine,
  scale,
  Tensor,
} from "../src/index.ts";
import { layerNorm } from "../src/layer_norm.ts";
import { Recording } from "../src/recording.ts";
import { testDevices, wave } from "./cases.ts";
import { errorOf } from "./reference.ts";
import { settled } from "./settled.ts";

describe.each(testDevices)("on %s", (_, device) => {
  const tensor = (values: Float32Array, shape: number[]) => Tensor.from(values, shape, { device });

  test("runs again on what its tensors hold then", () => {
    using table = tensor(wave(10 * 64, 1), [10, 64]);
    using w = quantize4bit(tensor(wave(64 * 64, 2), [64, 64]));
    using dense = tensor(wave(32 * 64, 3), [32, 64]);
    using bias = tensor(wave(32, 4), [32]).cast("float16");
    using ones = tensor(new Float32Array(64).fill(1), [64]);
    using zeros = tensor(new Float32Array(64), [64]);
    using ids = Tensor.from(Int32Array.of(3, 4), [2], { device });
    const step = () => {
      using x = embedding(ids, table);
      using normal = layerNorm(x, ones, zeros);
      using y = matmul4bit(normal, w);
      using sum = add(x, y);
      return linear(sum, dense, { bias });
    };
    let out: Tensor | undefined;
    using recording = Recording.of(() => {
      out = step();
    }, device);
    using first = step();
    expect([...out!.read()]).toEqual([...first.read()]);
    for (const pair of [
      [9, 0],
      [1, 1],
      [3, 4],
    ]) {
      ids.write(Int32Array.from(pair));
      const { operations } = device.counters;
      recording.run();
      expect(device.counters.operations).toBe(operations + 1);
      using eager = step();
      expect([...out!.read()]).toEqual([...eager.read()]);
    }
    table.write(wave(10 * 64, 7)); // a weight may change too
    recording.run();
    using eager = step();
    expect([...out!.read()]).toEqual([...eager.read()]);
    out!.dispose();
    recording.run(); // nobody looks at it
  });

  test("layers share the memory of what lives no longer, and all of it is given back", () => {
    const bytes = 4 * 64 * 64;
    using x = tensor(wave(64 * 64), [64, 64]);
    scale(x, 1).dispose();
    const before = settled(device).bytes;
    const layers = (count: number) =>
      Recording.of(() => {
        let now = scale(x, 0.5);
        for (let i = 0; i < count; i++) {
          const next = add(now, x, { scale: -0.25 });
          now.dispose();
          now = next;
        }
        now.dispose();
      }, device);
    using few = layers(2);
    const some = device.counters.bytes - before;
    expect(some).toBe(2 * bytes);
    using many = layers(40);
    expect(device.counters.bytes - before).toBe(2 * some);
    const { bytes: made } = device.counters;
    for (const recording of [many, few, many]) recording.run();
    device.wait();
    expect(device.counters.bytes).toBe(made);
    few.dispose();
    many.dispose();
    expect(device.counters.bytes).toBe(before);
  });

  test("what the host wrote while it was recorded stays, whatever comes after", () => {
    using x = tensor(Float32Array.of(1, 2, 3, 4), [4]);
    let y: Tensor | undefined;
    using recording = Recording.of(() => {
      const constant = tensor(Float32Array.of(10, 20, 30, 40), [4]);
      using sum = add(x, constant);
      constant.dispose();
      using more = add(sum, sum); // as large as the constant was, and not in its place
      y = scale(more, 1);
    }, device);
    x.write(Float32Array.of(0, 0, 0, 1));
    recording.run();
    expect([...y!.read()]).toEqual([20, 40, 60, 82]);
  });

  test("what the host wrote stays, whatever came before in memory as large", () => {
    using x = tensor(Float32Array.of(1, 2, 3, 4), [4]);
    let y: Tensor | undefined;
    using recording = Recording.of(() => {
      scale(x, 7).dispose();
      using constant = tensor(Float32Array.of(10, 20, 30, 40), [4]);
      using zeros = Tensor.zeros([4], { device });
      using sum = add(constant, zeros);
      y = add(sum, x);
    }, device);
    x.write(Float32Array.of(0, 0, 0, 1));
    recording.run();
    expect([...y!.read()]).toEqual([10, 20, 30, 41]);
  });

  test("what looks at its results on the CPU is refused, and so is what fails", () => {
    using x = tensor(wave(128), [2, 64]);
    using other = tensor(wave(64), [1, 64]);
    const looks = () => (device.kind === "cpu" ? quantize4bit(x) : quantizeAffine(x));
    expect(errorOf(() => Recording.of(() => looks().dispose(), device)).message).toContain("can't be recorded");
    expect(errorOf(() => Recording.of(() => void add(x, other), device)).message).toContain("the shapes must match");
    expect(errorOf(() => Recording.of(() => Recording.of(() => {}, device).dispose(), device)).message).toContain(
      "this thread records already",
    );
    expect(errorOf(() => Recording.of(() => add(other, add(x, x)), device)).code).toBe("invalid");
    using recording = Recording.of(() => add(x, x).dispose(), device); // and nothing of that is left
    recording.run();
    expect(errorOf(() => Recording.of(() => recording.run(), device)).message).toContain("this thread is recording");
    recording.dispose();
    expect(() => recording.run()).toThrow(TypeError);
  });

  /** The CPU looks at what it quantises. */
  const onGpu = device.kind === "cpu" ? test.skip : test;

  onGpu.each([
    ["plain scales", {}],
    ["nested scales", { compressStatistics: true }],
    ["nested scales of least squares", { compressStatistics: true, scales: "leastSquares" }],
    ["scales of least squares, weighed", { scales: "leastSquares", importance: true }],
  ] as const)("what a GPU quantises is recorded, with %s", (_, given) => {
    const [rows, columns] = [10, 64 * 27]; // two groups of nested scales, of which one is ragged
    using weights = tensor(wave(columns, 8).map(Math.abs), [columns]);
    const options = { ...given, importance: "importance" in given ? weights : undefined };
    using x = tensor(wave(rows * columns, 3), [rows, columns]);
    using row = tensor(wave(columns, 5), [1, columns]);
    const step = () => {
      const q = quantize4bit(x, options);
      const { quantized, rowStats } = int8VectorwiseQuant(x);
      return { q, y: String(device) === "null" ? undefined : matmul4bit(row, q), quantized, rowStats };
    };
    type Step = ReturnType<typeof step>;
    const numbers = ({ q, y, quantized, rowStats }: Step) =>
      [q.codes, q.absmax, q.state2?.absmax, y, quantized, rowStats].map((part) => part && [...part.read()]);
    let out: Step | undefined;
    using recording = Recording.of(() => {
      out = step();
    }, device);
    for (const seed of [3, 9, 4]) {
      x.write(wave(rows * columns, seed).map((value) => value * seed));
      recording.run();
      const eager = step();
      expect(numbers(out!)).toEqual(numbers(eager));
      expect(out!.q.offset).toBe(eager.q.offset);
    }
    // What isn't finite can't be refused any more; it stays so.
    x.write(wave(rows * columns, 1).with(5 * columns + 7, Number.NaN));
    recording.run();
    expect(dequantize4bit(out!.q).readFloat32()[5 * columns + 7]).toBeNaN();
    expect(out!.rowStats.read()[5]).toBeNaN();
  });

  test.skipIf(String(device) !== "null")("the CPU can't use nested scales that a recording makes", () => {
    using x = tensor(wave(128), [2, 64]);
    const use = () => matmul4bit(x, quantize4bit(x, { compressStatistics: true })).dispose();
    expect(errorOf(() => Recording.of(use, device)).message).toContain("before the recording that finds it has run");
  });

  test("the gradient of a table is recorded, of indices and rows that change", () => {
    const [rows, count] = [700, 2500]; // two tiles, and keys of two digits
    const indicesBy = (by: number) => Int32Array.from({ length: count }, (_, i) => (i * by) % rows);
    using dy = tensor(wave(count * 8), [count, 8]);
    using few = tensor(wave(3 * 8, 2), [3, 8]);
    using indices = Tensor.from(indicesBy(7), [count], { device });
    using fewIndices = Tensor.from(Int32Array.of(699, 0, 699), [3], { device });
    const step = () => {
      using dense = embeddingBackward(dy, indices, rows, { paddingIdx: 14 });
      using sparse = embeddingBackward(few, fewIndices, rows); // in memory that the first has left
      return add(dense, sparse);
    };
    let out: Tensor | undefined;
    using recording = Recording.of(() => {
      out = step();
    }, device);
    for (const by of [7, 13, 0]) {
      indices.write(indicesBy(by));
      fewIndices.write(Int32Array.of(by, 14, 255));
      dy.write(wave(count * 8, by + 1));
      recording.run();
      using eager = step();
      expect(out!.read()).toEqual(eager.read());
    }
    out!.dispose();
  });

  test("an index that is no row is an error on a CPU and NaNs on a GPU, never memory of somebody else", () => {
    using table = tensor(wave(3 * 8), [3, 8]);
    using ids = Tensor.from(Int32Array.of(0, 2), [2], { device });
    let y: Tensor | undefined;
    using recording = Recording.of(() => {
      y = embedding(ids, table);
    }, device);
    ids.write(Int32Array.of(-1, 3));
    if (device.kind === "cpu" || String(device) === "null") {
      expect(errorOf(() => recording.run()).message).toContain("indices[0, 0] is -1, expected 0 to 2");
    } else {
      recording.run();
      expect(y!.read().every(Number.isNaN)).toBe(true);
    }
  });

  test("for the gradient it is an error on a CPU, and left out on a GPU", () => {
    using dy = tensor(wave(4 * 8), [4, 8]);
    using ids = Tensor.from(Int32Array.of(0, 2, 0, 1), [4], { device });
    let dw: Tensor | undefined;
    using recording = Recording.of(() => {
      dw = embeddingBackward(dy, ids, 3);
    }, device);
    ids.write(Int32Array.of(-1, 2, 3, 1));
    if (device.kind === "cpu" || String(device) === "null") {
      expect(errorOf(() => recording.run()).message).toContain("indices[0, 0] is -1, expected 0 to 2");
    } else {
      recording.run();
      const row = (i: number) => [...dy.read().slice(i * 8, (i + 1) * 8)];
      expect([...dw!.read()]).toEqual([...new Float32Array(8), ...row(3), ...row(1)]);
    }
  });
});
