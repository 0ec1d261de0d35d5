// Owns how gradients add up, dtypes of a pass, and the numbers that new parameters start from.
import { add } from "../add.ts";
import type { FloatDType } from "../dtype.ts";
import type { Parameter } from "../parameter.ts";
import { type Shape, sizeOf } from "../shape.ts";
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

/** Where new parameters go, how they are held, and where their random numbers start. */
export interface InitOptions extends TensorOptions {
  dtype?: FloatDType;
  /** Equal seeds give equal numbers; 0 by default. */
  seed?: number;
}

/** Numbers spread evenly over [-bound, bound] (Steele, Lea and Flood 2014, SplitMix, in 32 bits). */
export function uniform(shape: Shape, bound: number, options: InitOptions = {}): Tensor<FloatDType> {
  const { seed = 0, dtype = "float32", ...where } = options;
  let state = seed | 0;
  const values = Float32Array.from({ length: sizeOf(shape) }, () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return bound * (((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 31 - 1);
  });
  return Tensor.from(values, shape, { ...where, dtype });
}
