// Finds where a GPU's products had better change from one kernel to the next, by timing both sides of each choice.

import type { Device } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { matmul4bit } from "../matmul.ts";
import { quantize4bit } from "../quantize.ts";
import type { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import { readSizes, type Sizes, writeSizes } from "../tuning.ts";

/** The time of a product of so many rows with 4-bit weights, in any unit, under sizes. */
export type Timer = (sizes: Sizes, rows: number, dtype: FloatDType) => number;

/** One choice: what was compared, and what it took. */
export interface Choice {
  readonly size: keyof Sizes;
  readonly rows: number;
  readonly dtype: FloatDType;
  readonly times: readonly (readonly [value: number, time: number])[];
  readonly chosen: number;
}

/** What is not this much faster is chance, and leaves a size as it is. */
const worthwhile = 0.97;

/** Chooses each size in turn, with those before it as they were chosen. */
export function chooseSizes(start: Sizes, time: Timer): { sizes: Sizes; choices: Choice[] } {
  let sizes = { ...start };
  const choices: Choice[] = [];
  const choose = (size: keyof Sizes, values: readonly number[], rows: number, dtype: FloatDType = "float16") => {
    const all = [...new Set([sizes[size], ...values])];
    const times = all.map((value) => [value, time({ ...sizes, [size]: value }, rows, dtype)] as const);
    const [now, ...others] = times as [readonly [number, number], ...(readonly [number, number])[]];
    const best = others.reduce((least, one) => (one[1] < least[1] ? one : least), now);
    const chosen = best[1] < now[1] * worthwhile ? best[0] : now[0];
    sizes = { ...sizes, [size]: chosen };
    choices.push({ size, rows, dtype, times, chosen });
  };

  choose("byteTable", [0, 1], 1);
  choose("wideVectors", [0, 1], 1, "float32");
  if (sizes.wideVectors > 0) choose("wideVectors", [1, 2], 1);
  choose("tilesWanted", [64, 128, 256, 512], 32);
  choose("splitLeast", [256, 512, 1024], 32);
  choose("skinnyMost", [0, 16], 12);
  // With tiles as they will be: each number of rows is one question, and the first that tiles win ends it.
  let most = 3;
  for (const rows of [4, 6, 8, 12, 16]) {
    const times = [most, rows].map(
      (value) => [value, time({ ...sizes, vectorsMost: value }, rows, "float16")] as const,
    );
    const vectorsWin = times[1]![1] < times[0]![1];
    if (vectorsWin) most = rows;
    choices.push({ size: "vectorsMost", rows, dtype: "float16", times, chosen: most });
    if (!vectorsWin) break;
  }
  sizes = { ...sizes, vectorsMost: most };
  return { sizes, choices };
}

/** Products between two waits: one by itself would tell more of the waiting than of the product. */
const batch = 8;

/**
 * Times products with a square weight on a device: the least of a few batches, in milliseconds each.
 *
 * @param milliseconds for which each is timed, and once at least
 */
export function deviceTimer(device: Device, milliseconds: number, side = 4096): Timer & Disposable {
  const w = Tensor.from(Float32Array.from({ length: side * side }, Math.random), [side, side], { device });
  const q: QuantizedTensor = quantize4bit(w);
  w.dispose();
  const inputs = new Map<string, Tensor<FloatDType>>();
  const inputOf = (rows: number, dtype: FloatDType) => {
    const key = `${rows} ${dtype}`;
    const x = inputs.get(key) ?? Tensor.from(new Float32Array(rows * side).fill(0.5), [rows, side], { device, dtype });
    inputs.set(key, x);
    return x;
  };
  const timer: Timer = (sizes, rows, dtype) => {
    writeSizes(device.pointer, sizes);
    const x = inputOf(rows, dtype);
    let least = Number.POSITIVE_INFINITY;
    for (
      const end = performance.now() + milliseconds;
      performance.now() < end || least === Number.POSITIVE_INFINITY;
    ) {
      const started = performance.now();
      for (let i = 0; i < batch; i++) matmul4bit(x, q).dispose();
      device.wait();
      least = Math.min(least, (performance.now() - started) / batch);
    }
    return least;
  };
  return Object.assign(timer, {
    [Symbol.dispose]() {
      for (const x of inputs.values()) x.dispose();
      q.dispose();
    },
  });
}

/** Chooses a device's sizes, and leaves it with them. */
export function tune(device: Device, time: Timer): { sizes: Sizes; choices: Choice[] } {
  const before = readSizes(device.pointer);
  try {
    const found = chooseSizes(before, time);
    writeSizes(device.pointer, found.sizes);
    return found;
  } catch (error) {
    writeSizes(device.pointer, before);
    throw error;
  }
}
