// Adapters put into the weights that they belong to: what a merged tensor is made of, and that nothing of an adapter
// is lost.

import type { FloatDType } from "../dtype.ts";
import { add, scale } from "../elementwise.ts";
import { BnbError } from "../error.ts";
import { linear } from "../matmul.ts";
import { Tensor } from "../tensor.ts";
import type { AdaptedModule, Adapter } from "./adapter.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import { fromSafetensors, type Source, transposedSource } from "./steps.ts";

/** Puts an adapter's share into tensors, each asked for by its name. */
export class Merging {
  readonly #adapter: Adapter;
  readonly #left: Set<SafetensorsTensor>;

  constructor(adapter: Adapter) {
    this.#adapter = adapter;
    this.#left = new Set([...adapter.modules.values()].flatMap(({ parts }) => [...parts.values()]));
  }

  /**
   * A tensor with the adapter's share in it, or `undefined` where it has none.
   *
   * @param isQuantized whether it stands by rows already, which a weight of a quantised model does
   */
  merged(source: Source, isQuantized: boolean): Source | undefined {
    const dot = source.name.lastIndexOf(".");
    const adapted = this.#adapter.modules.get(source.name.slice(0, dot));
    if (!adapted) return undefined;
    const kind = source.name.slice(dot + 1);
    const take = (part: string) => {
      const found = adapted.parts.get(part);
      if (found) this.#left.delete(found);
      return found;
    };
    if (kind === "bias" && adapted.parts.has("lora_B.bias"))
      return mergedBias(source, take("lora_B.bias")!, this.#scaling(adapted));
    if (kind === "weight" && adapted.parts.has("lora_A")) return this.#mergedWeight(source, adapted, isQuantized, take);
    if (kind === "weight" && adapted.parts.has("lora_embedding_A")) {
      const [a, b, whole] = [take("lora_embedding_A"), take("lora_embedding_B"), take("weight")];
      if (!a || !b) throw new BnbError(`${this.#adapter.path} has no lora_embedding_B for ${adapted.module}.`);
      // PEFT saves an embedding that it adapts as a whole too, for rows may have been added to it before: such a one
      // fits a base with as many rows, there and here.
      return mergedMatrix(whole ? replaced(source, whole) : source, a, b, {
        scaling: this.#scaling(adapted),
        byColumns: true,
      });
    }
    const whole = take(kind);
    return whole && replaced(source, whole);
  }

  #mergedWeight(
    source: Source,
    adapted: AdaptedModule,
    isQuantized: boolean,
    take: (part: string) => SafetensorsTensor | undefined,
  ): Source {
    const [a, b, magnitude] = [take("lora_A"), take("lora_B"), take("lora_magnitude_vector")];
    if (!a || !b) throw new BnbError(`${this.#adapter.path} has no lora_A and lora_B for ${adapted.module}.`);
    const { fanInFanOut, dora, path } = this.#adapter.settings;
    if (dora !== (magnitude !== undefined))
      throw new BnbError(
        `${path}: use_dora is ${dora}, but ${adapted.module} has ${magnitude ? "a" : "no"} magnitude.`,
      );
    const byColumns = fanInFanOut && !isQuantized;
    return mergedMatrix(source, a, b, { scaling: this.#scaling(adapted), byColumns, ...(magnitude && { magnitude }) });
  }

  #scaling({ module, parts }: AdaptedModule): number {
    const a = parts.get("lora_A") ?? parts.get("lora_embedding_A");
    return this.#adapter.settings.scaling(module, a?.shape[0] ?? 0);
  }

  /**
   * Modules that are saved whole and that the model has no tensor for, such as a head that it shares with its
   * embedding.
   */
  rest(): Source[] {
    const found: Source[] = [];
    for (const { module, parts } of this.#adapter.modules.values())
      for (const [part, tensor] of parts)
        if (this.#left.has(tensor) && !part.startsWith("lora_")) {
          this.#left.delete(tensor);
          found.push({ ...fromSafetensors(tensor), name: `${module}.${part}` });
        }
    return found;
  }

  /** @throws BnbError naming the first tensor of the adapter that no tensor of the model took */
  checkAllTaken(): void {
    const [left] = this.#left;
    if (!left) return;
    const what = `${this.#adapter.path} has ${left.name}`;
    throw new BnbError(`${what}, for which the base has no weight: take the model that it was trained on.`);
  }
}

interface MatrixOptions {
  readonly scaling: number;
  /** The weight is [in, out], as B's product with A is transposed. */
  readonly byColumns: boolean;
  readonly magnitude?: SafetensorsTensor;
}

/**
 * `W + scaling · B · A`, in the weight's dtype; with a magnitude, each row of that at the length that this says (DoRA).
 */
function mergedMatrix(source: Source, a: SafetensorsTensor, b: SafetensorsTensor, options: MatrixOptions): Source {
  const [rank, columns] = a.shape;
  const rows = b.shape[0];
  const shape = options.byColumns ? [columns, rows] : [rows, columns];
  if (a.shape.length !== 2 || b.shape.length !== 2 || b.shape[1] !== rank || String(shape) !== String(source.shape)) {
    const extents = (of: readonly number[]) => `[${of.join(", ")}]`;
    const what = `${a.name} is ${extents(a.shape)} and its B ${extents(b.shape)}`;
    throw new BnbError(`${what}, which do not fit ${source.name} ${extents(source.shape)}.`);
  }
  const load = () => {
    using weight = wide(options.byColumns ? transposedSource(source) : source);
    using delta = deltaOf(a, b, options.scaling);
    using sum = add(weight, delta);
    using whole = options.magnitude ? atLength(sum, wideValues(options.magnitude)) : sum.cast("float32");
    const made = { ...source, shape: [rows!, columns!], dtype: source.dtype, load: () => whole.cast(source.dtype) };
    return options.byColumns ? transposedSource(made).load() : made.load();
  };
  return { ...source, load, pieces: undefined };
}

/** `scaling · B · A` in float32, rounded to the adapter's dtype, as PEFT has it on a CPU. */
function deltaOf(a: SafetensorsTensor, b: SafetensorsTensor, scaling: number): Tensor<"float32"> {
  const from = fromSafetensors(a);
  using left = wide(fromSafetensors(b));
  using right = wide(transposedSource(from));
  using product = linear(left, right);
  using scaled = scale(product, scaling);
  using rounded = scaled.cast(from.dtype);
  return rounded.cast("float32");
}

/** Rows of a matrix made as long as a vector says: PEFT's DoRA. */
function atLength(matrix: Tensor<"float32">, magnitude: Float32Array): Tensor<"float32"> {
  const [rows, columns] = matrix.shape as [number, number];
  if (magnitude.length !== rows)
    throw new BnbError(`lora_magnitude_vector has ${magnitude.length} elements, expected ${rows}.`);
  const values = matrix.read();
  for (let row = 0; row < rows; row++) {
    const at = values.subarray(row * columns, (row + 1) * columns);
    const length = Math.sqrt(at.reduce((sum, value) => sum + value * value, 0));
    const factor = Math.fround(magnitude[row]! / Math.fround(length));
    for (let i = 0; i < columns; i++) at[i] = at[i]! * factor;
  }
  return Tensor.from(values, matrix.shape, { device: matrix.device });
}

function mergedBias(source: Source, bias: SafetensorsTensor, scaling: number): Source {
  const load = () => {
    using base = wide(source);
    using more = wide(fromSafetensors(bias));
    using sum = add(base, more, { scale: scaling });
    return sum.cast(source.dtype);
  };
  return { ...source, load, pieces: undefined };
}

/** A tensor that an adapter has whole, in the dtype of the one that it replaces. */
function replaced(source: Source, tensor: SafetensorsTensor): Source {
  const whole = fromSafetensors(tensor);
  if (String(whole.shape) !== String(source.shape))
    throw new BnbError(
      `${tensor.name} is [${whole.shape.join(", ")}], but ${source.name} [${source.shape.join(", ")}]: take the model ` +
        "that it was trained on, resized as it was then.",
    );
  const load = () => {
    using loaded = whole.load();
    return loaded.cast(source.dtype) as Tensor<FloatDType>;
  };
  return { ...source, load, pieces: undefined };
}

function wide(source: Source): Tensor<"float32"> {
  using loaded = source.load();
  return loaded.cast("float32");
}

function wideValues(tensor: SafetensorsTensor): Float32Array {
  using loaded = wide(fromSafetensors(tensor));
  return loaded.read();
}
