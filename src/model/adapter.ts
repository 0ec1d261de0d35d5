// Adapters that run beside a model's weights: low-rank products added to those of the modules that they belong to,
// and tensors that an adapter has whole.
import { type AdaptedModule, type Adapter as Opened, openAdapter } from "../checkpoint/adapter.ts";
import type { SafetensorsTensor } from "../checkpoint/safetensors.ts";
import { fromSafetensors } from "../checkpoint/steps.ts";
import type { Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { add } from "../elementwise.ts";
import { BnbError } from "../error.ts";
import { joinRows } from "../join.ts";
import { linear } from "../matmul.ts";
import { Tensor } from "../tensor.ts";

/** The share of one module: `scaling · (x · Aᵀ) · Bᵀ`, with A [rank, in] and B [out, rank]. */
interface Share {
  readonly a: Tensor<"float32">;
  readonly b: Float32Array;
  readonly rank: number;
}

/**
 * What is added to the products of one weight, or of several that are joined by their rows: the A of all stand one
 * under the other, and B has each one's share in its own rows and columns.
 */
export class LowRank implements Disposable {
  readonly #a: Tensor;
  readonly #b: Tensor;
  readonly #bias: Tensor | undefined;

  private constructor(a: Tensor, b: Tensor, bias: Tensor | undefined) {
    this.#a = a;
    this.#b = b;
    this.#bias = bias;
  }

  /** @param rows of each weight; @param shares those of the weights that have one */
  static of(
    rows: readonly number[],
    shares: readonly (Share | undefined)[],
    biases: readonly (Float32Array | undefined)[],
    device: Device,
  ): LowRank | undefined {
    const there = shares.filter((share) => share !== undefined);
    if (there.length === 0) return undefined;
    const [n, rank] = [rows.reduce((sum, each) => sum + each, 0), there.reduce((sum, share) => sum + share.rank, 0)];
    const b = new Float32Array(n * rank);
    const bias = new Float32Array(n);
    let [top, left] = [0, 0];
    for (const [i, share] of shares.entries()) {
      bias.set(biases[i] ?? [], top);
      for (let row = 0; share && row < rows[i]!; row++)
        b.set(share.b.subarray(row * share.rank, (row + 1) * share.rank), (top + row) * rank + left);
      top += rows[i]!;
      left += share?.rank ?? 0;
    }
    const a = joinRows(there.map((share) => share.a));
    for (const share of there) share.a.dispose();
    const hasBias = biases.some((values) => values !== undefined);
    return new LowRank(
      a,
      Tensor.from(b, [n, rank], { device }),
      hasBias ? Tensor.from(bias, undefined, { device }) : undefined,
    );
  }

  /** y with its share of x added, in y's place. */
  addTo<D extends FloatDType>(y: Tensor<D>, x: Tensor<D>): Tensor<D> {
    using before = y;
    using h = linear(x, this.#a);
    using delta = linear(h, this.#b, { bias: this.#bias });
    return add(before, delta);
  }

  get byteLength(): number {
    return this.#a.byteLength + this.#b.byteLength + (this.#bias?.byteLength ?? 0);
  }

  [Symbol.dispose](): void {
    this.#a.dispose();
    this.#b.dispose();
    this.#bias?.dispose();
  }
}

/** An adapter of PEFT's, whose parts are asked for by the names that a model's modules have without a root. */
export class Adapter implements Disposable {
  readonly #opened: Opened;
  readonly #modules: ReadonlyMap<string, AdaptedModule>;
  readonly #left: Set<SafetensorsTensor>;

  /**
   * @param roots what may stand before the names of modules
   * @throws BnbError naming what can't run beside weights: it has to be merged
   */
  constructor(path: string, roots: readonly string[]) {
    this.#opened = openAdapter(path);
    try {
      this.#modules = new Map(
        [...this.#opened.modules.values()].map((adapted) => [withoutRoot(adapted.module, roots), adapted]),
      );
      this.#left = new Set([...this.#modules.values()].flatMap(({ parts }) => [...parts.values()]));
      this.#refuse();
    } catch (error) {
      this.#opened[Symbol.dispose]();
      throw error;
    }
  }

  get #path(): string {
    return this.#opened.path;
  }

  #refuse(): void {
    const { dora, fanInFanOut } = this.#opened.settings;
    const parts = [...this.#modules.values()].flatMap((adapted) => [...adapted.parts.keys()]);
    const refused =
      dora || parts.includes("lora_magnitude_vector")
        ? "use_dora"
        : fanInFanOut
          ? "fan_in_fan_out"
          : parts.some((part) => part.startsWith("lora_embedding"))
            ? "an embedding among its target_modules"
            : undefined;
    if (refused === undefined) return;
    const advice = `merge it into its base (\`bunsandbytes merge BASE ${this.#path} --output DIR\`)`;
    throw new BnbError(`${this.#path} has ${refused}, which can't run beside the weights: ${advice}.`, "unsupported");
  }

  /** Whether it has a tensor whole, for the place of the model's own. */
  has(module: string, part: "weight" | "bias"): boolean {
    return this.#modules.get(module)?.parts.has(part) ?? false;
  }

  /** A tensor that it has whole. */
  whole(module: string, part: "weight" | "bias", device: Device): Tensor | undefined {
    const tensor = this.#take(module, part);
    if (!tensor) return undefined;
    using loaded = fromSafetensors(tensor).load();
    return loaded.to(device);
  }

  /** What it adds to the products of weights, of so many rows each, that are one for their input. */
  beside(modules: readonly string[], shapes: readonly (readonly number[])[], device: Device): LowRank | undefined {
    const shares = modules.map((module, i) => this.#share(module, shapes[i]!, device));
    const biases = modules.map((module) => {
      const bias = this.#take(module, "lora_B.bias");
      return bias && wide(bias).map((value) => value * this.#scaling(module));
    });
    const rows = shapes.map(([n]) => n!);
    return LowRank.of(rows, shares, biases, device);
  }

  #share(module: string, [n, k]: readonly number[], device: Device): Share | undefined {
    const [a, b] = [this.#take(module, "lora_A"), this.#take(module, "lora_B")];
    if (!a && !b) return undefined;
    const rank = a?.shape[0] ?? 0;
    if (!a || !b || String(a.shape) !== String([rank, k]) || String(b.shape) !== String([n, rank]))
      throw new BnbError(
        `${this.#path}: lora_A of ${module} is ${shapeOf(a)} and its lora_B ${shapeOf(b)}, expected [r, ${k}] and [${n}, r].`,
      );
    const scaling = this.#scaling(module);
    return { a: Tensor.from(wide(a), a.shape, { device }), b: wide(b).map((value) => value * scaling), rank };
  }

  #scaling(module: string): number {
    const { module: name, parts } = this.#modules.get(module)!;
    return this.#opened.settings.scaling(name, parts.get("lora_A")?.shape[0] ?? 0);
  }

  #take(module: string, part: string): SafetensorsTensor | undefined {
    const tensor = this.#modules.get(module)?.parts.get(part);
    if (tensor) this.#left.delete(tensor);
    return tensor;
  }

  /** @throws BnbError naming the first tensor that no weight of the model took */
  checkAllTaken(): void {
    const [left] = this.#left;
    if (!left) return;
    const what = `${this.#path} has ${left.name}, for which the model has no weight`;
    throw new BnbError(`${what}: take the model that it was trained on.`);
  }

  [Symbol.dispose](): void {
    this.#opened[Symbol.dispose]();
  }
}

function withoutRoot(module: string, roots: readonly string[]): string {
  const [longest = ""] = roots.filter((root) => module.startsWith(root)).sort((a, b) => b.length - a.length);
  return module.slice(longest.length);
}

function wide(tensor: SafetensorsTensor): Float32Array {
  using loaded = fromSafetensors(tensor).load();
  using floats = loaded.cast("float32");
  return floats.read();
}

const shapeOf = (tensor: SafetensorsTensor | undefined) => (tensor ? `[${tensor.shape.join(", ")}]` : "missing");
