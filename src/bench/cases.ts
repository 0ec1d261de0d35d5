// The cases of `bunsandbytes bench`: each operation on the size of a language model's layer.
import { Int8Weight, matmul8bit } from "../int8_weight.ts";
import { linear, matmul4bit } from "../matmul.ts";
import type { Precision } from "../native.ts";
import * as optim from "../optim/index.ts";
import { Parameter } from "../parameter.ts";
import { dequantize4bit, dequantizeBlockwise, quantize4bit, quantizeBlockwise } from "../quantize.ts";
import { Tensor } from "../tensor.ts";
import type { Work } from "./limits.ts";

/** Something to time: its name, and how to make what it runs, with the work that takes at least. */
export interface BenchCase {
  readonly name: string;
  /** Called once, just before the case is timed. What `run` returns is freed within the time. */
  make(): Work & { run(): Disposable | undefined };
}

/** Rows and columns of a layer's weight. */
export interface LayerSize {
  readonly n: number;
  readonly k: number;
}

/** What is timed unless another size is asked for. */
export const layerSize: LayerSize = { n: 4096, k: 4096 };

const uniform = (length: number, scale: number) => Float32Array.from({ length }, () => scale * (2 * Math.random() - 1));

/** Makes a value when it is first asked for. */
function lazy<T>(make: () => T): () => T {
  let made: { value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}

/** The weight of the layer, in every form that cases share. */
function layer({ n, k }: LayerSize) {
  const w = lazy(() => Tensor.from(uniform(n * k, 0.02), [n, k]));
  return {
    n,
    k,
    w,
    q4: lazy(() => quantize4bit(w())),
    nested: lazy(() => quantize4bit(w(), { compressStatistics: true })),
    q8: lazy(() => quantizeBlockwise(w(), { blocksize: 256 })),
    int8: lazy(() => Int8Weight.quantize(w())),
  };
}

type Layer = ReturnType<typeof layer>;

function quantizeCases({ w, q4, q8, int8 }: Layer): BenchCase[] {
  const moving = (coded: () => { byteLength: number }, run: () => Disposable, floatBytes = 4) => ({
    make: () => ({ bytes: floatBytes * w().size + coded().byteLength, run }),
  });
  return [
    { name: "quantize4bit", ...moving(q4, () => quantize4bit(w())) },
    { name: "quantize4bit, nested scales", ...moving(q4, () => quantize4bit(w(), { compressStatistics: true })) },
    { name: "dequantize4bit to float32", ...moving(q4, () => dequantize4bit(q4())) },
    { name: "dequantize4bit to bfloat16", ...moving(q4, () => dequantize4bit(q4(), { dtype: "bfloat16" }), 2) },
    { name: "quantizeBlockwise", ...moving(q8, () => quantizeBlockwise(w(), { blocksize: 256 })) },
    { name: "dequantizeBlockwise", ...moving(q8, () => dequantizeBlockwise(q8())) },
    { name: "Int8Weight.quantize", ...moving(int8, () => Int8Weight.quantize(w())) },
  ];
}

function matmulCases(m: number, { n, k, w, q4, nested, int8 }: Layer): BenchCase[] {
  const x = lazy(() => Tensor.from(uniform(m * k, 1), [m, k]));
  const half = lazy(() => x().cast("float16"));
  const rows = `${m} ${m === 1 ? "row" : "rows"}`;
  const product = (weight: () => { byteLength: number }, x: () => Tensor, run: () => Disposable) => ({
    make: () => ({
      bytes: weight().byteLength + x().byteLength + (x().byteLength / k) * n,
      flops: 2 * m * n * k,
      run,
    }),
  });
  const precisions: Precision[] = ["highest", "high", "medium"];
  return [
    ...precisions.map((precision) => ({
      name: `matmul4bit ${rows}, ${precision}`,
      ...product(q4, x, () => matmul4bit(x(), q4(), { precision })),
    })),
    { name: `matmul4bit ${rows}, nested scales`, ...product(nested, x, () => matmul4bit(x(), nested())) },
    { name: `matmul4bit ${rows}, float16, high`, ...product(q4, half, () => matmul4bit(half(), q4())) },
    {
      name: `matmul8bit ${rows}, float16, threshold 6`,
      ...product(int8, half, () => matmul8bit(half(), int8(), { threshold: 6 })),
    },
    { name: `linear ${rows}, dense float32`, ...product(w, x, () => linear(x(), w())) },
  ];
}

function optimizerCases({ w }: Layer): BenchCase[] {
  const parameter = lazy(() => {
    const made = new Parameter(w().to(w().device));
    made.grad = Tensor.from(uniform(w().size, 0.01), w().shape);
    return made;
  });
  const classes = [
    [optim.Adam8bit, 2],
    [optim.Adam32bit, 8],
    [optim.Lion8bit, 1],
    [optim.LAMB8bit, 2],
  ] as const;
  return classes.map(([Class, stateBytes]) => ({
    name: `${Class.name} step`,
    make: () => {
      const optimizer = new Class([parameter()], { lr: 1e-5 });
      const run = () => {
        optimizer.step();
        return undefined;
      };
      return { bytes: (12 + 2 * stateBytes) * w().size, run };
    },
  }));
}

/** A call so small that what it costs is the call. */
function smallCase(): BenchCase {
  const make = () => {
    const q = quantize4bit(Tensor.from(uniform(64 * 64, 1), [64, 64]));
    const x = Tensor.from(uniform(64, 1), [1, 64]);
    return { bytes: q.byteLength + 2 * x.byteLength, flops: 2 * 64 * 64, run: () => matmul4bit(x, q) };
  };
  return { name: "matmul4bit 1 row, weight [64, 64]", make };
}

/** Every case, in the order to run them; nothing is made yet. */
export function layerCases(size = layerSize): BenchCase[] {
  const shared = layer(size);
  return [
    ...quantizeCases(shared),
    ...[1, 4, 32, 512].flatMap((m) => matmulCases(m, shared)),
    ...optimizerCases(shared),
    smallCase(),
  ];
}
