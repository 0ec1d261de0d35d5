// The tables of rotary positions: every way to stretch frequencies is worked out here, so that kernels know none.
import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import type { RopeSpec } from "./architecture.ts";

/**
 * The angle's growth from one position to the next, for each pair of columns, rounded to fp32 where transformers
 * rounds.
 *
 * @param long whether the text is longer than the original positions, which longrope asks
 */
export function inverseFrequencies(rope: RopeSpec, long: boolean): Float32Array {
  const { rotated, theta, factor } = rope;
  const plain = Float32Array.from({ length: rotated / 2 }, (_, i) => 1 / theta ** Math.fround((2 * i) / rotated));
  switch (rope.type) {
    case "linear":
      return plain.map((frequency) => frequency / factor);
    case "llama3":
      return plain.map((frequency) => llama3(rope, frequency));
    case "yarn":
      return yarn(rope, plain);
    case "longrope": {
      const factors = long ? rope.longFactors : rope.shortFactors;
      return plain.map((frequency, i) => frequency / factors[i]!);
    }
    default:
      return plain; // dynamic, too: within max_position_embeddings, beyond which nothing goes, it changes nothing
  }
}

/** Long waves are stretched, short ones stay, and those between are in between (Llama 3.1). */
function llama3({ factor, lowFrequency, highFrequency, originalPositions }: RopeSpec, frequency: number): number {
  const wavelength = (2 * Math.PI) / frequency;
  if (wavelength < originalPositions / highFrequency) return frequency;
  if (wavelength > originalPositions / lowFrequency) return frequency / factor;
  const smooth = (originalPositions / wavelength - lowFrequency) / (highFrequency - lowFrequency);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}

/** YaRN (Peng et al. 2023): by how often a pair turns within the original positions. */
function yarn(rope: RopeSpec, plain: Float32Array): Float32Array {
  const { rotated, theta, factor, originalPositions, truncate } = rope;
  const pairOf = (turns: number) =>
    (rotated * Math.log(originalPositions / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
  const [fast, slow] = [pairOf(rope.betaFast), pairOf(rope.betaSlow)];
  const low = Math.max(truncate ? Math.floor(fast) : fast, 0);
  const high = Math.min(truncate ? Math.ceil(slow) : slow, rotated - 1);
  return plain.map((frequency, i) => {
    const ramp = Math.min(1, Math.max(0, (i - low) / (high === low ? 0.001 : high - low)));
    return (frequency / factor) * ramp + frequency * (1 - ramp);
  });
}

/** Tables of one {@link RopeSpec} on a device, made as far as they are asked for. */
export class RopeTable implements Disposable {
  readonly #rope: RopeSpec;
  readonly #device: Device;
  readonly #tables: (Tensor<"float32"> | undefined)[] = [undefined, undefined];

  constructor(rope: RopeSpec, device: Device) {
    this.#rope = rope;
    this.#device = device;
  }

  /** A longer text than this has other angles. */
  get shortMost(): number {
    return this.#rope.type === "longrope" ? this.#rope.originalPositions : Number.POSITIVE_INFINITY;
  }

  /**
   * float32 [at least `positions`, rotated]: cosines, then sines. It lives as long as this, or until more are asked
   * for.
   */
  for(positions: number): Tensor<"float32"> {
    const long = positions > this.shortMost;
    const table = this.#tables[Number(long)];
    if (table && table.shape[0]! >= positions) return table;
    table?.dispose();
    const rows = 2 ** Math.ceil(Math.log2(Math.max(64, positions)));
    const made = Tensor.from(tableOf(this.#rope, rows, long), [rows, this.#rope.rotated], { device: this.#device });
    this.#tables[Number(long)] = made;
    return made;
  }

  [Symbol.dispose](): void {
    for (const table of this.#tables) table?.dispose();
  }
}

/** The angle is the fp32 product of position and frequency, as in transformers. */
function tableOf(rope: RopeSpec, rows: number, long: boolean): Float32Array {
  const frequencies = inverseFrequencies(rope, long);
  const table = new Float32Array(rows * rope.rotated);
  for (let position = 0; position < rows; position++)
    for (const [i, frequency] of frequencies.entries()) {
      const angle = Math.fround(position * frequency);
      table[position * rope.rotated + i] = Math.cos(angle) * rope.attentionFactor;
      table[position * rope.rotated + frequencies.length + i] = Math.sin(angle) * rope.attentionFactor;
    }
  return table;
}
