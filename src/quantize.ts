// Blockwise quantisation and its inverse. Checks, kernels and fallbacks are in csrc/ops/quantize.c and dequantize.c.
import { Codebook } from "./codebook.ts";
import type { FloatDType } from "./dtype.ts";
import { floatDtypes, type NativePointer, native, scaleRules, size } from "./native.ts";
import { QuantizedTensor, type QuantType, quantTypes } from "./quantized.ts";
import { Signature } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** Scales that share one of their own where they are quantised too, as in bitsandbytes. */
const nestedBlocksize = 256;

/** How the scales of blocks are found. Part of the options of {@link quantize4bit} and {@link quantizeBlockwise}. */
export interface ScalesOptions {
  /**
   * `"absmax"`, the default: a block's largest magnitude, as in bitsandbytes, byte for byte. `"leastSquares"`: of many
   * scales that are tried, the one with the smallest squared error. It is never worse than the largest magnitude, and
   * bitsandbytes reads it like any other; finding it takes longer. docs/scales.md compares the two.
   */
  scales?: "absmax" | "leastSquares" | undefined;
  /**
   * [columns], float32, float16 or bfloat16, finite and at least 0: the weight of each column's squared errors, such as
   * the mean square of the activations that the column is multiplied by. For `"leastSquares"` only.
   */
  importance?: Tensor | undefined;
}

/** Options of {@link quantize4bit}, under bitsandbytes' names. */
export interface Quantize4bitOptions extends ScalesOptions {
  /** The codebook, `"nf4"` by default (upstream: `"fp4"`), or 16 values of your own. */
  quantType?: QuantType | Codebook;
  /** Elements that share a scale: a power of two from 16 to 4096; 64 by default. */
  blocksize?: number;
  /** Quantise the scales too, to 8 bits in blocks of 256: about 0.4 bits an element less at block 64. Default false. */
  compressStatistics?: boolean;
}

/** Options of {@link quantizeBlockwise}, under bitsandbytes' names. */
export interface QuantizeBlockwiseOptions extends ScalesOptions {
  /** The values, whose count decides the bits: 4 to 256. The signed dynamic map of 8 bits by default. */
  code?: Codebook;
  /** Elements that share a scale; for 8 bits any number and 4096 by default, else a power of two from 16 and 64. */
  blocksize?: number;
  /** Quantise the scales too. Default false. */
  nested?: boolean;
}

/** Options of {@link dequantize4bit} and {@link dequantizeBlockwise}. */
export interface DequantizeOptions<D extends FloatDType = FloatDType> {
  /** The result's dtype; by default the one that the tensor had before it was quantised. */
  dtype?: D;
}

/**
 * Quantises a tensor to 4 bits an element (QLoRA, Dettmers et al. 2023). Blocks run over the flattened tensor; a
 * block's scale is its largest magnitude, and a code is the index of the nearest of 16 values. Upstream:
 * `functional.quantize_4bit`, whose codes and scales these are, byte for byte.
 *
 * @example
 * ```ts
 * using w = Tensor.from(new Float32Array(256 * 256).fill(0.5), [256, 256], { dtype: "bfloat16" });
 * using q = quantize4bit(w, { quantType: "nf4", compressStatistics: true });
 * q.bitsPerElement; // → 4.127
 * ```
 *
 * @param x float32, float16 or bfloat16, any shape
 * @throws BnbError for an integer tensor, an illegal blocksize, or a NaN or infinity in `x` (the message says where).
 * The call looks through all of `x` for these before it returns; on a CPU, the search for least squares goes on
 * afterwards.
 */
export function quantize4bit(x: Tensor, options: Quantize4bitOptions = {}): QuantizedTensor {
  const me = signatures.quantize4bit;
  return quantize4bitAs(me, x, me.options(options));
}

/** @internal {@link quantize4bit} under another function's name. */
export function quantize4bitAs(
  me: Signature,
  x: Tensor,
  options: Quantize4bitOptions,
  argument = "x",
): QuantizedTensor {
  const plan = plan4bit(me, options);
  me.tensor(x, argument);
  return quantize(me, x, plan);
}

/** @internal What {@link quantize4bit} is asked for by its options, each of them checked. */
export function plan4bit(me: Signature, options: Quantize4bitOptions): Plan {
  const { quantType = "nf4", blocksize = 64, compressStatistics = false, scales, importance } = options;
  const code =
    typeof quantType === "string" ? Codebook.named(me.choice(quantType, "quantType", quantTypes)) : quantType;
  me.codebook(code, "quantType");
  if (code.bits !== 4)
    throw me.fail(`quantType has ${2 ** code.bits} values, expected 16: use quantizeBlockwise for other widths.`);
  const nested = me.boolean(compressStatistics, "compressStatistics");
  return { code, blocksize: me.whole(blocksize, "blocksize", 1), nested, ...searchOf(me, { scales, importance }) };
}

/**
 * Quantises a tensor to as many bits an element as the codebook has, from 2 to 8 (Dettmers et al. 2022, 8-bit
 * Optimizers via Block-wise Quantization). A code is exactly the nearest value's index, and codes are packed densely.
 * Upstream: `functional.quantize_blockwise`, with the rounding of its CUDA kernel; it has 8 bits only.
 *
 * @example
 * ```ts
 * using x = Tensor.from(Float32Array.from({ length: 4096 }, (_, i) => Math.sin(i)));
 * using q = quantizeBlockwise(x, { blocksize: 256 });
 * using back = dequantizeBlockwise(q);
 * compare(x, back).maxError < 0.01; // → true
 * using three = quantizeBlockwise(x, { code: Codebook.named("nf3") });
 * three.bitsPerElement; // → 3.5
 * ```
 *
 * @param x float32, float16 or bfloat16, any shape
 * @throws BnbError for an integer tensor, an illegal blocksize, or a NaN or infinity in `x` (the message says where):
 * to find one the call looks through all of `x` before it returns. A CPU's search for least squares goes on after that.
 */
export function quantizeBlockwise(x: Tensor, options: QuantizeBlockwiseOptions = {}): QuantizedTensor {
  const me = signatures.quantizeBlockwise;
  const { code = Codebook.named("dynamic"), nested = false, blocksize, scales, importance } = me.options(options);
  me.codebook(code, "code");
  const block = blocksize === undefined ? (code.bits === 8 ? 4096 : 64) : me.whole(blocksize, "blocksize", 1);
  const search = searchOf(me, { scales, importance });
  me.tensor(x, "x");
  return quantize(me, x, { code, blocksize: block, nested: me.boolean(nested, "nested"), ...search });
}

/** @internal How a tensor is quantised: options that were checked. */
export interface Plan {
  readonly code: Codebook;
  readonly blocksize: number;
  readonly nested: boolean;
  readonly rule: number;
  readonly importance: NativePointer | null;
}

/** How scales are found. */
function searchOf(me: Signature, { scales = "absmax", importance }: ScalesOptions): Pick<Plan, "rule" | "importance"> {
  const rule = me.code(scales, "scales", scaleRules);
  const pointer = me.tensorIf(importance, "importance");
  if (pointer !== null && scales !== "leastSquares")
    throw me.fail('importance is given, but scales is "absmax": leave it out, or ask for "leastSquares".');
  return { rule, importance: pointer };
}

function quantize(me: Signature, x: Tensor, { code, blocksize, nested, rule, importance }: Plan): QuantizedTensor {
  const scalesBlock = nested ? nestedBlocksize : 0;
  const handles = [me.tensor(x, "x"), me.codebook(code, "code")] as const;
  const pointer = native.bnb_quantize(...handles, size(blocksize), size(scalesBlock), rule, importance);
  return new QuantizedTensor(me.made(pointer), x.shape, x.dtype as FloatDType, x.device, code, blocksize, scalesBlock);
}

/**
 * The values of a 4-bit quantised tensor: codebook value × scale in fp32, rounded once to the dtype. Upstream:
 * `functional.dequantize_4bit`.
 *
 * @example
 * ```ts
 * using w = Tensor.from([1, -1, 0.5, 0], [4], { dtype: "float16" });
 * using q = quantize4bit(w);
 * using back = dequantize4bit(q, { dtype: "float32" });
 * back.read(); // → [1, -1, 0.44, 0]
 * ```
 *
 * @throws BnbError if `q` does not have 4-bit codes
 */
export function dequantize4bit<D extends FloatDType>(
  q: QuantizedTensor,
  options: DequantizeOptions<D> = {},
): Tensor<D> {
  const me = signatures.dequantize4bit;
  me.quantized(q, "q");
  if (q.bits !== 4) throw me.fail(`q holds ${q.bits}-bit codes: use dequantizeBlockwise.`);
  return dequantize(me, q, options);
}

/**
 * The values of a quantised tensor of any width. Upstream: `functional.dequantize_blockwise`.
 *
 * @example
 * ```ts
 * using w = Tensor.from([1, -1, 0.5, 0]);
 * using q = quantizeBlockwise(w);
 * using back = dequantizeBlockwise(q);
 * back.read(); // → [1, -0.99, 0.5, 0]
 * ```
 */
export function dequantizeBlockwise<D extends FloatDType>(
  q: QuantizedTensor,
  options: DequantizeOptions<D> = {},
): Tensor<D> {
  return dequantize(signatures.dequantizeBlockwise, q, options);
}

function dequantize<D extends FloatDType>(me: Signature, q: QuantizedTensor, options: DequantizeOptions<D>): Tensor<D> {
  const pointer = me.quantized(q, "q");
  const { dtype = q.dtype as D } = me.options(options);
  const made = native.bnb_dequantize(pointer, me.code(dtype, "dtype", floatDtypes));
  return new Tensor(me.made(made), dtype, q.shape, q.device);
}

/** @internal The members of {@link Quantize4bitOptions}. */
export const quantize4bitOptions = ["quantType", "blocksize", "compressStatistics", "scales", "importance"] as const;

const signatures = {
  quantize4bit: new Signature("quantize4bit", { options: quantize4bitOptions }),
  quantizeBlockwise: new Signature("quantizeBlockwise", {
    options: ["code", "blocksize", "nested", "scales", "importance"],
  }),
  dequantize4bit: new Signature("dequantize4bit", { options: ["dtype"] }),
  dequantizeBlockwise: new Signature("dequantizeBlockwise", { options: ["dtype"] }),
};
