// What the tests of cuda/'s products share: weights of random codes with what they stand for, the product in float64,
// and what the tests of kernels are made of.
import { scaleArguments } from "../metal/arguments.ts";
import type { Run } from "../metal/launch.ts";
import { round } from "../reference.ts";

export const nf4 = Float32Array.of(
  ...[-1, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0],
  ...[0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1],
);
export const linear8 = Float32Array.from({ length: 256 }, (_, i) => (i - 128) / 127);
export type Half = "float16" | "bfloat16";

/** Numbers in half precision: their bits, and what they are. */
export function halves(numbers: Float32Array, dtype: Half) {
  const values = numbers.map((x) => round(x, dtype));
  const bits =
    dtype === "float16"
      ? new Uint16Array(new Float16Array(values).buffer)
      : Uint16Array.from(new Uint32Array(values.buffer), (word) => word >>> 16);
  return { bits, values };
}

export function floatsOf(bits: Uint16Array<ArrayBuffer>, dtype: Half): Float32Array {
  if (dtype === "float16") return Float32Array.from(new Float16Array(bits.buffer));
  return new Float32Array(Uint32Array.from(bits, (word) => word << 16).buffer);
}

/** A weight [n, k] of random codes, with the values that it stands for. */
export function weight(n: number, k: number, block: number, nested: boolean) {
  const codes = Uint8Array.from({ length: (n * k) / 2 }, (_, i) => (i * 2654435761) >>> 13);
  const blocks = Math.ceil((n * k) / block);
  const offset = nested ? 0.5 : 0;
  const scaleCodes = Uint8Array.from({ length: blocks }, (_, i) => (i * 40503) >>> 3);
  const outer = Float32Array.from({ length: Math.ceil(blocks / 256) }, (_, i) => 0.2 + 0.1 * (i % 3));
  const scales = Float32Array.from({ length: blocks }, (_, i) =>
    nested ? Math.fround(linear8[scaleCodes[i]!]! * outer[i >> 8]!) + offset : 0.3 + 0.2 * Math.sin(i),
  );
  const values = Float64Array.from({ length: n * k }, (_, i) => {
    const code = i % 2 ? codes[i >> 1]! & 15 : codes[i >> 1]! >> 4;
    return nf4[code]! * scales[Math.floor(i / block)]!;
  });
  const layout = scaleArguments(block, nested ? 256 : 0);
  return { codes, absmax: nested ? scaleCodes : scales, outer, layout, values, behind: [Float32Array.of(offset)] };
}

export function product(
  x: Float32Array,
  w: Float64Array,
  bias: Float32Array | undefined,
  m: number,
  n: number,
  k: number,
) {
  const y = new Float64Array(m * n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let sum = bias?.[j] ?? 0;
      for (let c = 0; c < k; c++) sum += x[i * k + c]! * w[j * k + c]!;
      y[i * n + j] = sum;
    }
  return y;
}

/** The parts of a split, added up. */
export const summed = (parts: Float32Array, splits: number) =>
  Float32Array.from({ length: parts.length / splits }, (_, i) => {
    let sum = 0;
    for (let s = 0; s < splits; s++) sum += parts[(s * parts.length) / splits + i]!;
    return sum;
  });

/** Rounded codebooks, and with many rows rounded scales, on top of the result's rounding. */
export const bounds: Record<Half, number> = { float16: 6e-4, bfloat16: 4e-3 };

export const fast: Run = { mode: "fast", seed: 0 };
export const checked: Run = { mode: "check", seed: 3 };

export const simulates = process.platform === "linux" && process.arch === "x64";

export interface Case {
  m: number;
  n: number;
  k: number;
  block?: number;
  nested?: boolean;
  bias?: boolean;
  dtype?: Half;
  run?: Run;
}
