// How gradients add up, dtypes of a pass, and the numbers that new parameters start from.

import { deviceOf } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { add } from "../elementwise.ts";
import { floatDtypes } from "../native.ts";
import type { Parameter } from "../parameter.ts";
import { type Shape, sizeOf } from "../shape.ts";
import type { Signature } from "../signature.ts";
import { Tensor, type TensorOptions } from "../tensor.ts";

/** Adds a gradient, which it takes over, to a parameter's: float32, whatever the parameter is. */
export function accumulate(parameter: Parameter, gradient: Tensor<"float32">): void {
  const before = parameter.grad as Tensor<FloatDType> | null;
  if (!parameter.requiresGrad) {
    gradient.dispose();
  } else if (!before) {
    parameter.grad = gradient;
  } else {
    parameter.grad = add(before, gradient);
    before.dispose();
    gradient.dispose();
  }
}

/** Runs a pass in another dtype, where one is given, and gives its result in x's own. */
export function passIn<D extends FloatDType>(
  dtype: FloatDType | undefined,
  x: Tensor<D>,
  pass: (x: Tensor<FloatDType>) => Tensor<FloatDType>,
): Tensor<D> {
  if (dtype === undefined || dtype === x.dtype) return pass(x) as Tensor<D>;
  using cast = x.cast(dtype);
  using y = pass(cast);
  return y.cast(x.dtype);
}

/** The device, dtype and random seed of new parameters. */
export interface InitOptions extends TensorOptions {
  dtype?: FloatDType | undefined;
  /** Equal seeds give equal numbers; 0 by default. */
  seed?: number | undefined;
}

/** The members of {@link InitOptions}. */
export const initOptions = ["device", "dtype", "seed"] as const;

/** The members of {@link InitOptions} among options, checked. */
export function initOf(me: Signature, { device, dtype = "float32", seed = 0 }: InitOptions): InitOptions {
  me.code(dtype, "dtype", floatDtypes);
  me.whole(seed, "seed", Number.MIN_SAFE_INTEGER);
  return { device: device === undefined ? undefined : deviceOf(me, device), dtype, seed };
}

/** Numbers spread evenly over [0, 1) (Steele, Lea and Flood 2014, SplitMix, in 32 bits). */
function evenly(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}

/** Checks that numbers can be drawn for a table: they are drawn in JavaScript, whose arrays have an end. */
export function checkDrawn(me: Signature, rows: number, columns: number, names: string): void {
  if (rows * columns > drawnMax)
    throw me.fail(`${names} are ${rows} and ${columns}, more than 2^32 numbers: make the weight yourself.`);
}

const drawnMax = 2 ** 32;

function drawn(shape: Shape, draw: () => number, { dtype = "float32", device }: InitOptions): Tensor<FloatDType> {
  const values = new Float32Array(sizeOf(shape));
  for (let i = 0; i < values.length; i++) values[i] = draw();
  return Tensor.from(values, shape, { dtype, device });
}

/** Numbers spread evenly over [-bound, bound). */
export function uniform(shape: Shape, bound: number, options: InitOptions = {}): Tensor<FloatDType> {
  const next = evenly(options.seed ?? 0);
  return drawn(shape, () => bound * (2 * next() - 1), options);
}

/** Normally distributed rows of a table [rows, columns], of mean 0 and variance 1 (Box and Muller 1958). */
export function newRows(me: Signature, rows: number, columns: number, options: InitOptions): Tensor<FloatDType> {
  const shape = [me.whole(rows, "numEmbeddings", 1), me.whole(columns, "embeddingDim", 1)];
  checkDrawn(me, rows, columns, "numEmbeddings and embeddingDim");
  const init = initOf(me, options);
  const next = evenly(init.seed!);
  return drawn(shape, () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next()), init);
}
