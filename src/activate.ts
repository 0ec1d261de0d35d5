// Activations and gates. Checks, kernels and fallbacks are in csrc/ops/activate.c.
import type { FloatDType } from "./dtype.ts";
import { activations, native } from "./native.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/**
 * `"silu"`: x / (1 + e⁻ˣ). `"gelu"`: the exact GELU, by the error function. `"geluTanh"`: its approximation by tanh.
 * `"tanh"`: tanh.
 */
export type Activation = keyof typeof activations;

/** Options of {@link activate}. */
export interface ActivateOptions {
  /** A tensor of x's shape and dtype that the activation of x is multiplied by. */
  up?: Tensor | undefined;
  /** Without `up`: split x's columns into two halves, and multiply the activation of the first by the second. */
  gated?: boolean | undefined;
}

/**
 * Applies an activation function to each element. With `up` or `gated`, the result is multiplied by a second input, as
 * in gated feed-forward layers (Shazeer 2020, GLU Variants Improve Transformer). Upstream: `torch.nn.functional.silu`
 * and `gelu`.
 *
 * @example
 * ```ts
 * using x = Tensor.from([1, -1, 10, 10], [1, 4]);
 * using y = activate(x, "silu", { gated: true });
 * y.read(); // → [7.31, -2.69]
 * using z = activate(x, "gelu");
 * z.read(); // → [0.84, -0.16, 10, 10]
 * ```
 *
 * @param x [..., n], float32, float16 or bfloat16; the result has its shape and dtype; with `gated`, half its columns
 * @throws BnbError if the shapes, dtypes or devices do not fit
 */
export function activate<D extends FloatDType>(
  x: Tensor<D>,
  activation: Activation,
  options: ActivateOptions = {},
): Tensor<D> {
  const { up, gated = false } = me.options(options);
  const [input, other] = [me.tensor(x, "x"), me.tensorIf(up, "up")];
  const code = me.code(activation, "activation", activations);
  const halves = me.boolean(gated, "gated") && !up;
  const pointer = me.made(native.bnb_activate(input, other, Number(gated), code));
  const { shape } = x;
  return new Tensor(pointer, x.dtype, halves ? [...shape.slice(0, -1), shape.at(-1)! / 2] : shape, x.device);
}

const me = new Signature("activate", { options: ["up", "gated"] });
