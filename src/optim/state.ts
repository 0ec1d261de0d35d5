// One parameter's optimizer state: its tensors and step count, made, written to a state dict, and read back.
import { Codebook, type CodebookName } from "../codebook.ts";
import type { Device } from "../device.ts";
import type { DType } from "../dtype.ts";
import { BnbError } from "../error.ts";
import { NativeObject } from "../handle.ts";
import type { Parameter } from "../parameter.ts";
import { format, type Shape, sizeOf } from "../shape.ts";
import { show } from "../signature.ts";
import { Tensor } from "../tensor.ts";
import type { Config, Family } from "./config.ts";

/** Elements that share a scale of 8-bit states. */
const blocksize = 256;

/** The key under which bitsandbytes wraps a state's tensors. */
export const quantStateKey = "__bnb_optimizer_quant_state__";

/** A parameter's state under bitsandbytes' names. Which tensors it has depends on the optimizer and its bits. */
export interface StateTensors {
  state1?: Tensor;
  state2?: Tensor;
  qmap1?: Tensor;
  qmap2?: Tensor;
  absmax1?: Tensor;
  absmax2?: Tensor;
  unorm_vec?: Tensor;
}

/**
 * A parameter's entry in a state dict. Its tensors may also stand directly beside `step`, as old versions of
 * bitsandbytes write them.
 */
export type StateEntry = { step: number; [quantStateKey]?: StateTensors } & StateTensors;

/** An average, or AdEMAMix's pair of them: floats, or codes with their scales and codebook. */
export interface Moment {
  readonly state: Tensor;
  readonly absmax: Tensor | undefined;
  readonly code: Codebook | undefined;
}

const mapNames: readonly CodebookName[] = ["dynamic", "dynamic_unsigned"];

/** A parameter's state. */
export class ParameterState implements Disposable {
  step = 0;
  moments: readonly Moment[];
  #unorm: Tensor | undefined;

  private constructor(moments: readonly Moment[]) {
    this.moments = moments;
  }

  /** All zeros; 8 bits or 32 as the settings say for a parameter of this size. */
  static zeros(family: Family, parameter: Parameter, config: Config): ParameterState {
    const { shape, size, device } = parameter.data;
    const coded = config.optimBits === 8 && size >= config.min8bitSize;
    const moments = layout(family, shape).map(({ shape, scales }, index) => ({
      state: Tensor.zeros(shape, { dtype: coded ? "uint8" : "float32", device }),
      absmax: coded ? Tensor.zeros(scales, { device }) : undefined,
      code: coded ? Codebook.named(mapNames[index]!) : undefined,
    }));
    // A code of 0 is no zero, but its scale is.
    return new ParameterState(moments);
  }

  /** Moves the state to another device. */
  to(device: Device): void {
    if (this.moments[0]!.state.device === device) return;
    const before = this.#tensors();
    this.moments = this.moments.map(({ state, absmax, code }) => ({
      state: state.to(device),
      absmax: absmax?.to(device),
      code,
    }));
    this.#unorm = this.#unorm?.to(device);
    for (const tensor of before) tensor.dispose();
  }

  #tensors(): Tensor[] {
    const all = [...this.moments.flatMap(({ state, absmax }) => [state, absmax]), this.#unorm];
    return all.filter((tensor) => tensor !== undefined);
  }

  /** Where the norm of the direction goes; made at the first use. */
  unorm(device: Device): Tensor {
    this.#unorm ??= Tensor.zeros([1], { device });
    return this.#unorm;
  }

  /** The state's entry of a state dict. Its tensors are the state's own, but for the maps. */
  toEntry(): StateEntry {
    const tensors: StateTensors = {};
    for (const [index, { state, absmax, code }] of this.moments.entries()) {
      const n = (index + 1) as 1 | 2;
      tensors[`state${n}`] = state;
      if (absmax) tensors[`absmax${n}`] = absmax;
      if (code) tensors[`qmap${n}`] = Tensor.from(code.values, [256], { device: state.device });
    }
    if (this.#unorm) tensors.unorm_vec = this.#unorm;
    return { step: this.step, [quantStateKey]: tensors };
  }

  /**
   * A copy of an entry, on the parameter's device.
   *
   * @param what which entry, for messages
   * @throws BnbError naming the tensor that is missing or does not fit the parameter
   */
  static fromEntry(family: Family, parameter: Parameter, entry: StateEntry, what: string): ParameterState {
    const tensors: StateTensors = { ...entry, ...entry[quantStateKey] };
    const { device, shape } = parameter.data;
    if (!Number.isSafeInteger(entry.step) || entry.step < 0)
      throw new BnbError(`${what}: step is ${entry.step}, expected a whole number of at least 0.`);
    const copy = (name: keyof StateTensors, dtype: DType, shape: Shape): Tensor => {
      const tensor = tensors[name];
      if (NativeObject.kindOf(tensor) !== "Tensor" || tensor?.dtype !== dtype || tensor.size !== sizeOf(shape)) {
        const found = tensor === undefined ? "missing" : tensor instanceof Tensor ? String(tensor) : show(tensor);
        throw new BnbError(`${what}: ${name} is ${found}, expected ${dtype} ${format(shape)}.`);
      }
      using copied = tensor.to(device);
      return copied.reshape(shape);
    };
    const coded = tensors.state1?.dtype === "uint8";
    const moments = layout(family, shape).map(({ shape, scales }, index) => {
      const n = (index + 1) as 1 | 2;
      return {
        state: copy(`state${n}`, coded ? "uint8" : "float32", shape),
        absmax: coded ? copy(`absmax${n}`, "float32", scales) : undefined,
        code: coded ? codebookOf(copy(`qmap${n}`, "float32", [256]), mapNames[index]!) : undefined,
      };
    });
    const state = new ParameterState(moments);
    state.step = entry.step;
    if (tensors.unorm_vec) state.#unorm = copy("unorm_vec", "float32", [1]);
    return state;
  }

  dispose(): void {
    for (const tensor of this.#tensors()) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The shapes of the states and of their scales. AdEMAMix's first state is two averages. */
function layout({ kind }: Family, shape: Shape): { shape: Shape; scales: Shape }[] {
  const one = { shape, scales: [Math.ceil(sizeOf(shape) / blocksize)] };
  if (kind === "ademamix") return [{ shape: [2, ...shape], scales: [2, ...one.scales] }, one];
  return kind === "adam" ? [one, one] : [one];
}

/** The named codebook where the map has its values, as nearly always; else one of its own. */
function codebookOf(map: Tensor, name: CodebookName): Codebook {
  using tensor = map;
  const values = tensor.read() as Float32Array;
  const named = Codebook.named(name);
  return values.every((value, index) => value === named.values[index]) ? named : Codebook.from(values);
}
