// Linear4bit: a linear layer over a frozen weight of 4 bits an element.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { type StorageDtype, storageDtypes } from "../checkpoint/state.ts";
import { tensorSource, toStateDict } from "../checkpoint/statedict.ts";
import type { TensorSource } from "../checkpoint/writer.ts";
import type { FloatDType } from "../dtype.ts";
import { matmulQuantized } from "../matmul.ts";
import { quantizedBackward } from "../matmul_backward.ts";
import { floatDtypes, type Precision } from "../native.ts";
import { plan4bit, type Quantize4bitOptions, quantize4bitAs, quantize4bitOptions } from "../quantize.ts";
import { QuantizedTensor } from "../quantized.ts";
import { format } from "../shape.ts";
import { Signature } from "../signature.ts";
import type { Tensor, TensorOptions } from "../tensor.ts";
import { checkDrawn, type InitOptions, initOf, initOptions, passIn, uniform } from "./gradient.ts";
import { LinearLayer } from "./layer.ts";
import { loadBias, loadLayer } from "./load.ts";

/** Options of {@link Linear4bit}, under bitsandbytes' names. The first five apply only if the weight is dense. */
export interface Linear4bitOptions extends Quantize4bitOptions {
  /** [outFeatures], any float dtype; none by default. The layer takes it over. */
  bias?: Tensor | undefined;
  /** The dtype to multiply in; by default that of the layer's input. The result has the input's dtype in any case. */
  computeDtype?: FloatDType | undefined;
  /** The dtype that `stateDict` writes codes as; `"uint8"` by default. */
  quantStorage?: StorageDtype | undefined;
  /** The least accuracy of the products. */
  precision?: Precision | undefined;
}

/**
 * A linear layer with a frozen weight of 4 bits an element (QLoRA, Dettmers et al. 2023). Upstream: `nn.Linear4bit`,
 * which is made empty and given its weight later; here the weight is the first argument.
 *
 * @example
 * ```ts
 * using weight = Tensor.from(new Float32Array(128 * 64).fill(0.1), [128, 64]);
 * const bias = Tensor.from(new Float32Array(128).fill(1)); // the layer's from here on
 * using layer = new nn.Linear4bit(weight, { bias, computeDtype: "bfloat16" }); // NF4, block 64, nested scales
 * using x = Tensor.from(new Float32Array(64).fill(1), [1, 64]);
 * using y = layer.forward(x);
 * y.read()[0]; // → 7
 * using dx = layer.backward(y);
 * dx.shape; // → [1, 64]
 * ```
 */
export class Linear4bit extends LinearLayer {
  /** [outFeatures, inFeatures] */
  readonly weight: QuantizedTensor;
  readonly bias: Tensor | undefined;
  readonly computeDtype: FloatDType | undefined;
  readonly quantStorage: StorageDtype;
  readonly precision: Precision | undefined;

  /**
   * @param weight [outFeatures, inFeatures]. A dense one is quantised, with nested scales unless `compressStatistics`
   * is false, and stays the caller's; a quantised one is taken over
   * @throws BnbError if the weight or the bias does not make a linear layer, or can't be quantised
   */
  constructor(weight: Tensor | QuantizedTensor, options: Linear4bitOptions = {}) {
    super();
    const me = signatures.linear4bit.as(new.target.name);
    const { bias, computeDtype, quantStorage = "uint8", precision, ...quantize } = me.options(options);
    const codes = codes4bit(me, weight, { compressStatistics: true, ...quantize });
    checkBias(me, bias, codes.shape[0]!);
    if (computeDtype !== undefined) me.code(computeDtype, "computeDtype", floatDtypes);
    checkStorage(me, quantStorage);
    if (precision !== undefined) me.choice(precision, "precision", ["highest", "high", "medium"]);
    this.weight = codes;
    this.bias = bias;
    this.computeDtype = computeDtype;
    this.quantStorage = quantStorage;
    this.precision = precision;
  }

  /**
   * A new layer of random numbers, spread as torch's `nn.Linear` spreads them (Kaiming uniform, a = √5), without a bias
   * unless it is among the options. The options' `dtype` is that of the numbers before they are quantised.
   */
  static init(inFeatures: number, outFeatures: number, options: Linear4bitOptions & InitOptions = {}): Linear4bit {
    const me = signatures.init;
    const { device, dtype, seed, ...rest } = me.options(options);
    using weight = newWeight(me, inFeatures, outFeatures, { device, dtype, seed });
    return new this(weight, rest);
  }

  /**
   * The layer that a checkpoint holds under a name; a dense weight there is quantised.
   *
   * @param options `bias` is the checkpoint's own
   * @throws BnbError if there is no such layer, or it is damaged, or in int8
   */
  static load(
    checkpoint: Checkpoint,
    name: string,
    options: Omit<Linear4bitOptions, "bias"> & TensorOptions = {},
  ): Linear4bit {
    const me = signatures.load;
    const { device, ...rest } = me.options(options);
    const make = (weight: Tensor | QuantizedTensor) =>
      new this(weight, { ...rest, bias: loadBias(me, checkpoint, name, device) });
    return loadLayer(me, checkpoint, name, device, QuantizedTensor, make);
  }

  /** `x · wᵀ + bias`, [..., outFeatures] of x [..., inFeatures]. @throws BnbError if x does not fit */
  forward<D extends FloatDType>(x: Tensor<D>): Tensor<D> {
    const me = signatures.forward;
    const { bias, precision } = this;
    me.batch(x, "x");
    return passIn(this.computeDtype, x, (input) => matmulQuantized(me, input, this.weight, { bias, precision }));
  }

  /** The gradient of the input, `dy · w`, in dy's dtype. The weight is frozen, and so is the bias. */
  backward<D extends FloatDType>(dy: Tensor<D>): Tensor<D> {
    const me = signatures.backward;
    me.batch(dy, "dy");
    return passIn(this.computeDtype, dy, (gradient) => quantizedBackward(me, gradient, this.weight));
  }

  /** What {@link toStateDict} gives: bitsandbytes loads NF4 and FP4, and no other codebook. */
  protected tensors(name: string): TensorSource[] {
    const weight = toStateDict(`${name}.weight`, this.weight, { quantStorage: this.quantStorage });
    return this.bias ? [...weight, tensorSource(`${name}.bias`, this.bias)] : weight;
  }
}

/**
 * {@link Linear4bit} in NF4. Upstream: `nn.LinearNF4`.
 *
 * @example
 * ```ts
 * using layer = new nn.LinearNF4(Tensor.zeros([128, 64]));
 * layer.weight.quantType; // → "nf4"
 * ```
 */
export class LinearNF4 extends Linear4bit {
  constructor(weight: Tensor | QuantizedTensor, options: Omit<Linear4bitOptions, "quantType"> = {}) {
    super(weight, withType("LinearNF4", options, "nf4"));
    checkType(this.weight, "nf4", "LinearNF4");
  }
}

/**
 * {@link Linear4bit} in FP4. Upstream: `nn.LinearFP4`.
 *
 * @example
 * ```ts
 * using layer = new nn.LinearFP4(Tensor.zeros([128, 64]));
 * layer.weight.quantType; // → "fp4"
 * ```
 */
export class LinearFP4 extends Linear4bit {
  constructor(weight: Tensor | QuantizedTensor, options: Omit<Linear4bitOptions, "quantType"> = {}) {
    super(weight, withType("LinearFP4", options, "fp4"));
    checkType(this.weight, "fp4", "LinearFP4");
  }
}

/** The options of a class whose type is given. */
function withType(what: string, given: Omit<Linear4bitOptions, "quantType">, quantType: "nf4" | "fp4") {
  return { ...signatures.typed.as(what).options(given), quantType };
}

/** Checks that a quantised weight that a class was given has the class's type. */
export function checkType(weight: QuantizedTensor, quantType: "nf4" | "fp4", what: string): void {
  if (weight.quantType !== quantType)
    throw new Signature(what).fail(`weight is ${weight}, expected ${quantType.toUpperCase()}.`);
}

/** Checks the bias of a linear layer, where there is one. */
export function checkBias(me: Signature, bias: Tensor | undefined, outFeatures: number): void {
  if (me.tensorIf(bias, "bias") === null) return;
  if (bias!.shape.length !== 1 || bias!.size !== outFeatures)
    throw me.fail(`bias is ${format(bias!.shape)}, expected [${outFeatures}].`);
}

/** Checks the dtype that codes are written as. */
export function checkStorage(me: Signature, quantStorage: StorageDtype): void {
  me.choice(quantStorage, "quantStorage", Object.keys(storageDtypes));
}

/** The two dimensions of a layer's weight. @throws BnbError if it has another number of them */
export function checkWeight(
  me: Signature,
  weight: { shape: readonly number[] },
  argument = "weight",
): [rows: number, columns: number] {
  const { shape } = weight;
  if (shape.length !== 2) throw me.fail(`${argument} is ${format(shape)}, expected two dimensions.`);
  return [shape[0]!, shape[1]!];
}

/** A layer's weight in 4 bits: one that is quantised already, which is taken over, or a dense one quantised. */
export function codes4bit(me: Signature, weight: unknown, options: Quantize4bitOptions): QuantizedTensor {
  const kind = me.kind(weight, "weight", ["Tensor", "QuantizedTensor"]);
  plan4bit(me, options); // of a weight that is quantised already too: an illegal option is one either way
  checkWeight(me, weight as Tensor | QuantizedTensor);
  const codes =
    kind === "Tensor" ? quantize4bitAs(me, weight as Tensor, options, "weight") : (weight as QuantizedTensor);
  if (codes.bits !== 4) throw me.fail(`weight is ${codes}, expected 4-bit codes.`);
  return codes;
}

/** Random numbers [outFeatures, inFeatures]. */
export function newWeight(
  me: Signature,
  inFeatures: number,
  outFeatures: number,
  options: InitOptions,
): Tensor<FloatDType> {
  const shape = [me.whole(outFeatures, "outFeatures", 1), me.whole(inFeatures, "inFeatures", 1)];
  checkDrawn(me, outFeatures, inFeatures, "outFeatures and inFeatures");
  return uniform(shape, 1 / Math.sqrt(inFeatures), initOf(me, options));
}

const options = ["bias", "computeDtype", "quantStorage", "precision", ...quantize4bitOptions];
const signatures = {
  linear4bit: new Signature("Linear4bit", { options, native: { x: "weight" } }),
  typed: new Signature("LinearNF4", { options: options.filter((name) => name !== "quantType") }),
  init: new Signature("Linear4bit.init", { options: [...options, ...initOptions] }),
  load: new Signature("Linear4bit.load", { options: [...options.slice(1), "device"] }),
  forward: new Signature("Linear4bit.forward"),
  backward: new Signature("Linear4bit.backward"),
};
