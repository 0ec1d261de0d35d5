// How a weight may lie: scales of every dtype, nested or joined; an offset a block, nested or not; blocks from 16. What
// each stands for is worked out in fp32 here, step by step, and every operation is held to it.
import { describe, expect, test } from "bun:test";
import type { FloatDType } from "../src/dtype.ts";
import {
  Codebook,
  dequantizeBlockwise,
  embedding,
  matmulBlockwise,
  matmulBlockwiseBackward,
  type Precision,
  QuantizedTensor,
  quantizeBlockwise,
  Tensor,
} from "../src/index.ts";
import { blocksizes4, floatDTypes, testDevices, wave } from "./cases.ts";
import { errorOf, matmul, pack, relativeError, round, transpose } from "./reference.ts";

const f32 = Math.fround;
/** Of nested scales: the values of their codes, the dtype of their groups' scales, and whether groups have offsets. */
const nestings = {
  nested: { code: Codebook.named("dynamic"), dtype: "float32", joined: false },
  joined: { code: Codebook.named("dynamic"), dtype: "float32", joined: true },
  "6 bits": {
    code: Codebook.from(Array.from({ length: 64 }, (_, i) => (i - 20) / 32)),
    dtype: "float16",
    joined: false,
  },
  "3 bits, joined": { code: Codebook.from([1, 2, 3, 5, 7, -1, -2, 0]), dtype: "bfloat16", joined: true },
} as const;
type Nesting = keyof typeof nestings;
type Scales = FloatDType | Nesting;
type Offsets = "none" | FloatDType | "nested";
const nestingOf = (scales: Scales) => (Object.hasOwn(nestings, scales) ? nestings[scales as Nesting] : undefined);

/** Whole numbers from 0 on, as MLX, GGUF, GPTQ and AWQ have them. */
const affine = (bits: number) => Codebook.from(Float32Array.from({ length: 2 ** bits }, (_, code) => code));
const e4m3 = Codebook.named("dynamic");
/** The codes of a nested codebook, and their bits. */
const codesOf = (count: number, { values }: Codebook, step: number) =>
  Uint8Array.from({ length: count }, (_, b) => (b * step + 90) % values.length);

interface Case {
  readonly rows: number;
  readonly columns: number;
  readonly bits: number;
  readonly block: number;
  readonly scales: Scales;
  readonly offsets: Offsets;
}

/** A weight that lies so, and what it stands for. */
function weight(
  device: Tensor["device"],
  { rows, columns, bits, block, scales, offsets }: Case,
): { q: QuantizedTensor; w: Float32Array } {
  const count = rows * columns;
  const code = affine(bits);
  const values = code.values;
  const codes = Uint8Array.from({ length: count }, (_, i) => (i * 7 + (i >> 3)) % 2 ** bits);
  const blocks = Math.ceil(count / block);
  const nestedBlock = 8;
  const groups = Math.ceil(blocks / nestedBlock);
  const nesting = nestingOf(scales);
  const { code: nestedCode, dtype: nestedDtype, joined } = nesting ?? nestings.nested;
  const dtype = nesting ? undefined : (scales as FloatDType);
  const plain = wave(blocks, 3).map((v) => (dtype ? round(v + 1.5, dtype) : 0));
  const scaleCodes = codesOf(blocks, nestedCode, 37);
  const offsetCodes = codesOf(blocks, nestedCode, 11);
  const outer = wave(groups, 5).map((v) => round(v + 2, nestedDtype));
  const outerOffsets = wave(groups, 6);
  const offsetOuter = wave(groups, 7).map((v) => round(v - 1, nestedDtype));
  const added = wave(blocks, 4).map((v, b) => {
    if (offsets === "nested")
      return f32(nestedCode.values[offsetCodes[b]!]! * offsetOuter[Math.floor(b / nestedBlock)]!);
    return offsets === "none" ? 0 : round(v - 0.5, offsets);
  });
  const nestedValues = nestedCode.values;
  const w = Float32Array.from({ length: count }, (_, i) => {
    const b = Math.floor(i / block);
    const g = Math.floor(b / nestedBlock);
    const product = f32(nestedValues[scaleCodes[b]!]! * outer[g]!);
    const scale = dtype ? plain[b]! : f32(product + (joined ? outerOffsets[g]! : f32(0.25)));
    return offsets === "none" ? f32(values[codes[i]!]! * scale) : f32(f32(values[codes[i]!]! * scale) + added[b]!);
  });
  const vector = (v: Float32Array) => Tensor.from(v, [v.length], { device });
  const bytes = (v: Uint8Array) => Tensor.from(v, [v.length], { device });
  const nestedCodes = (v: Uint8Array) => bytes(pack(v, nestedValues));
  const addedParts = () =>
    offsets === "nested" ? nestedCodes(offsetCodes) : vector(added).cast(offsets as FloatDType);
  const q = QuantizedTensor.fromParts({
    codes: bytes(pack(codes, values)),
    absmax: dtype ? vector(plain).cast(dtype) : nestedCodes(scaleCodes),
    offsets: offsets === "none" ? undefined : addedParts(),
    code,
    blocksize: block,
    shape: [rows, columns],
    nested: dtype
      ? undefined
      : {
          absmax: vector(outer).cast(nestedDtype),
          code: nestedCode,
          blocksize: nestedBlock,
          offset: 0.25,
          offsets: joined ? vector(outerOffsets) : undefined,
          offsetsAbsmax: offsets === "nested" ? vector(offsetOuter).cast(nestedDtype) : undefined,
        },
  });
  return { q, w };
}

const scalesKinds: readonly Scales[] = [...floatDTypes, "nested", "joined", "6 bits", "3 bits, joined"];
const offsetKinds: readonly Offsets[] = ["none", ...floatDTypes, "nested"];
/** Rows that are whole blocks, rows that blocks cross, and blocks that the wide loads don't fit. */
const shapes: readonly (readonly [rows: number, columns: number, block: number])[] = [
  [24, 64, 16],
  [16, 128, 32],
  [8, 128, 64],
  [5, 48, 32],
  [7, 21, 16],
];
const cases: Case[] = shapes.flatMap(([rows, columns, block], s) =>
  scalesKinds.flatMap((scales, i) =>
    offsetKinds
      .filter((offsets) => offsets !== "nested" || nestingOf(scales))
      .map((offsets, j) => ({ rows, columns, block, scales, offsets, bits: [4, 8, 3, 2, 5][(s + i + j) % 5]! })),
  ),
);
const name = (c: Case) =>
  `${c.bits} bits [${c.rows}, ${c.columns}] in blocks of ${c.block}, scales ${c.scales}, offsets ${c.offsets}`;

describe.each(testDevices)("on %s", (_, device) => {
  test.each(cases.map((c) => [name(c), c] as const))("%s", (_, c) => {
    const { q, w } = weight(device, c);
    for (const dtype of floatDTypes)
      expect(dequantizeBlockwise(q, { dtype }).cast("float32").read()).toEqual(w.map((v) => round(v, dtype)));

    const indices = Tensor.from(Int32Array.of(c.rows - 1, 0, 3), [3], { device });
    const rows = [c.rows - 1, 0, 3].flatMap((r) => [...w.subarray(r * c.columns, (r + 1) * c.columns)]);
    expect([...embedding(indices, q).read()]).toEqual(rows);

    for (const [m, dtype] of [
      [1, "float32"],
      [3, "float16"],
      [11, "float32"],
      [40, "bfloat16"],
    ] as const) {
      const x = wave(m * c.columns, 9).map((v) => round(v, dtype));
      using activations = Tensor.from(x, [m, c.columns], { device }).cast(dtype);
      const expected = matmul(x, w, undefined, m, c.rows, c.columns);
      const product = (precision?: Precision) => matmulBlockwise(activations, q, { precision }).cast("float32").read();
      const within = dtype === "float32" ? 2e-6 : dtype === "float16" ? 1e-3 : 5e-3;
      expect(relativeError(product(), expected)).toBeLessThan(within);
      // Where x becomes bytes, an element is off by half of 63 steps at most. These sums are small beside them.
      const off = product("medium").map((v, i) => Math.abs(v - expected[i]!) - within * Math.abs(expected[i]!));
      const most = Float64Array.from(off, (_, i) => {
        const [row, of] = [Math.floor(i / c.rows), i % c.rows];
        const [xs, ws] = [x, w].map((v, j) => v.subarray([row, of][j]! * c.columns).subarray(0, c.columns));
        return (Math.max(...xs!.map(Math.abs)) / 126) * ws!.reduce((sum, v) => sum + Math.abs(v), 0);
      });
      expect(off.findIndex((v, i) => v > most[i]!)).toBe(-1);
      const dy = wave(m * c.rows, 8).map((v) => round(v, dtype));
      const dx = matmulBlockwiseBackward(Tensor.from(dy, [m, c.rows], { device }).cast(dtype), q)
        .cast("float32")
        .read();
      const gradient = (dy: ArrayLike<number>, w: ArrayLike<number>) =>
        matmul(dy, transpose(w, c.rows, c.columns), undefined, m, c.columns, c.rows);
      const want = gradient(dy, w);
      // In half precision weights are rounded, and so the error is beside the sums of sizes, which cancel each other.
      const sizes = dtype === "float32" ? want : gradient(dy.map(Math.abs), w.map(Math.abs));
      const [error, size] = [dx.map((v, i) => v - want[i]!), sizes].map((v) => Math.hypot(...v));
      expect(error! / size!).toBeLessThan(within);
    }
  });

  test("its parts share the memory, and a copy elsewhere stands for the same", () => {
    const size = (part: Tensor | undefined) => part?.byteLength ?? 0;
    for (const scales of scalesKinds)
      for (const offsets of ["none", "bfloat16", ...(nestingOf(scales) ? (["nested"] as const) : [])] as const) {
        const { q, w } = weight(device, { rows: 4, columns: 256, bits: 4, block: 16, scales, offsets });
        const nesting = nestingOf(scales);
        expect(q.absmax.dtype).toBe(nesting ? "uint8" : (scales as "float32"));
        expect(q.offsets?.dtype).toBe({ none: undefined, bfloat16: "bfloat16", nested: "uint8" }[offsets] as "uint8");
        const { state2 } = q;
        expect(state2?.absmax.dtype).toBe(nesting?.dtype);
        expect(state2?.code).toEqual(nesting?.code.values as Float32Array);
        expect(state2?.offsets?.dtype).toBe(nesting?.joined ? "float32" : undefined);
        expect(state2?.offsetsAbsmax?.dtype).toBe(offsets === "nested" ? nesting!.dtype : undefined);
        const blocks = size(q.absmax) + size(q.offsets);
        const groups = size(state2?.absmax) + size(state2?.offsets) + size(state2?.offsetsAbsmax);
        expect(size(q.absmax)).toBe(nesting ? 8 * nesting.code.bits : 64 * (scales === "float32" ? 4 : 2));
        expect(q.byteLength).toBe(512 + blocks + groups);
        expect(dequantizeBlockwise(q.to("cpu"), { dtype: "float32" }).read()).toEqual(w);
      }
  });

  test("what does not fit is refused, with a sentence", () => {
    const vector = (v: ArrayLike<number>) => Tensor.from(Float32Array.from(v), [v.length], { device });
    const bytes = (count: number) => Tensor.from(new Uint8Array(count), [count], { device });
    const parts = { codes: bytes(32), absmax: vector([1, 2, 3, 4]), code: affine(4), blocksize: 16, shape: [1, 64] };
    const message = (change: object) => errorOf(() => QuantizedTensor.fromParts({ ...parts, ...change })).message;
    QuantizedTensor.fromParts(parts).dispose();
    expect(message({ offsets: vector([1, 2, 3]) })).toContain(
      "offsets is float32 [1, 3], expected float32 with 4 elements",
    );
    expect(message({ offsets: bytes(4) })).toContain("offsets is uint8, expected float32, float16 or bfloat16");
    expect(message({ absmax: bytes(4) })).toContain("absmax is uint8, expected float32, float16 or bfloat16");
    const nested = { absmax: vector([1]), code: e4m3, blocksize: 256, offset: 0, offsets: vector([1, 2]) };
    expect(message({ absmax: bytes(4), nested })).toContain(
      "nested.offsets is float32 [1, 2], expected float32 with 1 element",
    );
    const whole = { ...nested, offsets: undefined };
    const coded = { absmax: bytes(4), offsets: bytes(4), nested: { ...whole, offsetsAbsmax: vector([1]) } };
    QuantizedTensor.fromParts({ ...parts, ...coded }).dispose();
    expect(message({ ...coded, offsets: undefined })).toContain("nested.offsetsAbsmax is given without offsets");
    expect(message({ ...coded, offsets: vector([1, 2, 3, 4]) })).toContain(
      "offsets is float32 [1, 4], expected uint8 with 4 elements",
    );
    expect(message({ ...coded, nested: { ...whole, offsetsAbsmax: vector([1]).cast("float16") } })).toContain(
      "nested.offsetsAbsmax is float16 [1, 1], expected float32 with 1 element",
    );
    expect(message({ ...coded, nested: { ...whole, offsetsAbsmax: vector([1, 2]) } })).toContain(
      "nested.offsetsAbsmax is float32 [1, 2], expected float32 with 1 element",
    );
    expect(message({ absmax: bytes(4), nested: { ...whole, absmax: bytes(1) } })).toContain(
      "nested.absmax is uint8, expected float32, float16 or bfloat16",
    );
    const narrow = { ...whole, code: affine(6) };
    expect(message({ absmax: bytes(4), nested: narrow })).toContain("absmax is uint8 [1, 4], expected uint8 with 3");
  });

  test("blocks of 16 are quantised to", () => {
    for (const bits of [4, 3, 8]) {
      const x = wave(16 * 33 + 5);
      const code = bits === 4 ? Codebook.named("nf4") : bits === 3 ? Codebook.named("nf3") : e4m3;
      const q = quantizeBlockwise(Tensor.from(x, [x.length], { device }), { code, blocksize: 16 });
      const back = dequantizeBlockwise(q, { dtype: "float32" }).read();
      const absmax = Float32Array.from({ length: 34 }, (_, b) =>
        Math.max(...x.subarray(b * 16, b * 16 + 16).map(Math.abs)),
      );
      expect([...q.absmax.read()]).toEqual([...absmax]);
      const near = (v: number) => [...code.values].reduce((a, b) => (Math.abs(b - v) < Math.abs(a - v) ? b : a));
      back.forEach((v, i) => {
        const scale = absmax[i >> 4]!;
        expect(Math.abs(v - x[i]!)).toBeLessThanOrEqual(Math.abs(f32(near(x[i]! / scale) * scale) - x[i]!) + 1e-6);
      });
    }
    expect(blocksizes4[0]).toBe(16); // and by every test of 4-bit blocks
  });
});
