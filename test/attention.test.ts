// The tests of attention and of its cache, against float64.
import { describe, expect, test } from "bun:test";
import { type AttentionOptions, attention, type Device, KvCache, Tensor } from "../src/index.ts";
import { floatDTypes, normal, testDevices, wave } from "./cases.ts";
import { errorOf, relativeError } from "./reference.ts";
import { settled } from "./settled.ts";

interface Case {
  heads: number;
  kvHeads: number;
  d: number;
  /** [slot, position, first key, end of keys] of each row. */
  rows: number[][];
}

const causal = (length: number, slot = 0, start = 0, window = Infinity) =>
  Array.from({ length }, (_, i) => [slot, start + i, Math.max(0, start + i + 1 - window), start + i + 1]);

/** Everything that the reference needs, in float64. */
interface Reference extends Case {
  q: Float32Array;
  k: Float32Array;
  v: Float32Array;
  scale: number;
  softcap?: number;
  bias?: (head: number, distance: number) => number;
}

/** Attention by definition: keys are those of all rows of the slot, by position. */
function reference({ heads, kvHeads, d, rows, q, k, v, scale, softcap = 0, bias = () => 0 }: Reference): Float64Array {
  const y = new Float64Array(rows.length * heads * d);
  for (const [row, [slot, position, first, end]] of rows.entries())
    for (let head = 0; head < heads; head++) {
      const kv = Math.floor(head / (heads / kvHeads));
      const keys = rows.flatMap(([s, p], i) => (s === slot && p! >= first! && p! < end! ? [i] : []));
      const scores = keys.map((key) => {
        let dot = 0;
        for (let i = 0; i < d; i++) dot += q[(row * heads + head) * d + i]! * k[(key * kvHeads + kv) * d + i]!;
        const capped = softcap ? softcap * Math.tanh((scale * dot) / softcap) : scale * dot;
        return capped + bias(head, rows[key]![1]! - position!);
      });
      const most = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - most));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      for (let i = 0; i < d; i++)
        y[(row * heads + head) * d + i] =
          keys.reduce((sum, key, at) => sum + weights[at]! * v[(key * kvHeads + kv) * d + i]!, 0) / (total || 1);
    }
  return y;
}

/** Runs attention with the rows of one array joined, as q | k | v. */
function joined({ heads, kvHeads, rows }: Case, q: Float32Array, k: Float32Array, v: Float32Array, device: Device) {
  const parts = [q, k, v].map((part) => ({ part, columns: part.length / rows.length }));
  const columns = parts.reduce((sum, part) => sum + part.columns, 0);
  const values = new Float32Array(rows.length * columns);
  for (let row = 0; row < rows.length; row++) {
    let at = row * columns;
    for (const { part, columns } of parts) {
      values.set(part.subarray(row * columns, (row + 1) * columns), at);
      at += columns;
    }
  }
  expect(columns).toBe((heads + 2 * kvHeads) * (parts[0]!.columns / heads));
  return Tensor.from(values, [rows.length, columns], { device });
}

const rowsTensor = (rows: number[][], device: Device) =>
  Tensor.from(Int32Array.from(rows.flat()), [rows.length, 4], { device });

const cases: [string, Case][] = [
  ["one row", { heads: 1, kvHeads: 1, d: 8, rows: causal(1) }],
  ["a prompt", { heads: 4, kvHeads: 2, d: 16, rows: causal(70) }],
  ["three heads to one of keys, a prompt over tiles", { heads: 9, kvHeads: 3, d: 64, rows: causal(45) }],
  ["odd heads", { heads: 3, kvHeads: 1, d: 7, rows: causal(37) }],
  ["heads of 80", { heads: 2, kvHeads: 2, d: 80, rows: causal(33) }],
  ["heads of 256", { heads: 2, kvHeads: 1, d: 256, rows: causal(34) }],
  ["more heads than a block holds", { heads: 40, kvHeads: 1, d: 8, rows: causal(5) }],
  ["a window", { heads: 4, kvHeads: 2, d: 16, rows: causal(70, 0, 0, 9) }],
  ["a window wider than a tile", { heads: 2, kvHeads: 2, d: 32, rows: causal(90, 0, 0, 40) }],
  ["heads of 96, and a window over tiles", { heads: 2, kvHeads: 1, d: 96, rows: causal(70, 0, 0, 30) }],
  ["heads of 128, texts by turns", { heads: 2, kvHeads: 1, d: 128, rows: [...causal(66, 1), ...causal(20, 0)] }],
  ["two texts in one pass", { heads: 4, kvHeads: 4, d: 8, rows: [...causal(19, 1), ...causal(40, 0)] }],
];

describe.each(testDevices)("on %s", (_, device) => {
  const make = (of: Case, seed = 1) => {
    const { heads, kvHeads, d, rows } = of;
    const [q, k] = [normal(rows.length * heads * d, seed), normal(rows.length * kvHeads * d, seed + 1)];
    return { ...of, q, k, v: normal(rows.length * kvHeads * d, seed + 2), scale: d ** -0.5 };
  };

  describe.each(cases)("%s", (_, of) => {
    const all = make(of);
    const { heads, kvHeads, d, rows } = of;
    const want = reference(all);
    const slots = Math.max(...rows.map(([slot]) => slot!)) + 1;
    const cacheOf = (dtype: KvCache["dtype"]) =>
      new KvCache({ layers: 2, heads: kvHeads, columns: d, slots, capacity: 100, dtype, device });

    test("q, k and v as one, with a cache of float32", () => {
      using cache = cacheOf("float32");
      using qkv = joined(of, all.q, all.k, all.v, device);
      using y = attention(qkv, rowsTensor(rows, device), { heads, kvHeads, cache, layer: 1 });
      expect(y.shape).toEqual([rows.length, heads * d]);
      expect(relativeError(y.read(), want)).toBeLessThan(2e-6);
    });

    test("apart, in every dtype, with each cache within its own rounding", () => {
      for (const dtype of floatDTypes)
        for (const store of ["float32", "float16", "int8"] as const) {
          using cache = cacheOf(store);
          const part = (values: Float32Array, n: number) =>
            Tensor.from(values, [rows.length, n * d], { device }).cast(dtype);
          using y = attention(part(all.q, heads), rowsTensor(rows, device), {
            heads,
            kvHeads,
            k: part(all.k, kvHeads),
            v: part(all.v, kvHeads),
            cache,
          });
          expect(y.dtype).toBe(dtype);
          const tolerance =
            { float32: 1e-6, float16: 1e-3, bfloat16: 1e-2 }[dtype] +
            { float32: 1e-6, float16: 6e-4, int8: 1.5e-2 }[store];
          expect(relativeError(y.readFloat32(), want)).toBeLessThan(tolerance);
        }
    });

    test("token by token", () => {
      using cache = cacheOf("float32");
      const columns = (heads + 2 * kvHeads) * d;
      using qkv = joined(of, all.q, all.k, all.v, device);
      const values = qkv.read();
      const got = rows.flatMap((row, i) => {
        using one = Tensor.from(values.slice(i * columns, (i + 1) * columns), [1, columns], { device });
        using y = attention(one, rowsTensor([row], device), { heads, kvHeads, cache });
        return [...y.read()];
      });
      expect(relativeError(Float32Array.from(got), want)).toBeLessThan(2e-6);
    });
  });

  test("q, k and v may be the same tensor", () => {
    const x = normal(5 * 16, 3);
    const rows = causal(5);
    const want = reference({ heads: 2, kvHeads: 2, d: 8, rows, q: x, k: x, v: x, scale: 8 ** -0.5 });
    using same = Tensor.from(x, [5, 16], { device });
    using y = attention(same, rowsTensor(rows, device), { heads: 2, k: same, v: same });
    expect(relativeError(y.read(), want)).toBeLessThan(2e-6);
  });

  test("without a cache rows see each other, before and after, each text its own", () => {
    const bounds = [...Array(13).fill([0, 13]), ...Array(40).fill([13, 53])] as number[][];
    const rows = bounds.map(([first, end], i) => [0, i - first!, first!, end!]);
    const all = make({ heads: 4, kvHeads: 4, d: 12, rows });
    const bySlot = rows.map(([, , first, end], i) => [first!, i, first!, end!]);
    const want = reference({ ...all, rows: bySlot });
    using qkv = joined(all, all.q, all.k, all.v, device);
    using y = attention(qkv, rowsTensor(rows, device), { heads: 4 });
    expect(relativeError(y.read(), want)).toBeLessThan(2e-6);
  });

  test("a soft cap, a scale and a bias by distance, whose ends go on", () => {
    const all = make({ heads: 4, kvHeads: 2, d: 16, rows: causal(50) });
    const span = 20;
    const table = normal(4 * (2 * span - 1), 9);
    const bias = (head: number, distance: number) =>
      table[head * (2 * span - 1) + Math.max(-span + 1, Math.min(span - 1, distance)) + span - 1]!;
    const want = reference({ ...all, scale: 1.5, softcap: 2, bias });
    using cache = new KvCache({ layers: 1, heads: 2, columns: 16, capacity: 50, dtype: "float32", device });
    using qkv = joined(all, all.q, all.k, all.v, device);
    using y = attention(qkv, rowsTensor(all.rows, device), {
      ...{ heads: 4, kvHeads: 2, scale: 1.5, softcap: 2, cache },
      bias: Tensor.from(table, [4, 2 * span - 1], { device }),
    });
    expect(relativeError(y.read(), want)).toBeLessThan(4e-6);
  });

  test("heads are normalised, then rotated, some columns of them", () => {
    const of = { heads: 4, kvHeads: 2, d: 12, rows: causal(21, 0, 5) };
    const all = make(of);
    const [rotated, offset, eps] = [8, 1, 1e-3];
    const [qNorm, kNorm] = [wave(12, 3), wave(12, 4)];
    const rope = new Float32Array(40 * rotated);
    for (let p = 0; p < 40; p++)
      for (let i = 0; i < rotated / 2; i++) {
        const angle = p * 10 ** -i;
        rope[p * rotated + i] = Math.cos(angle);
        rope[p * rotated + rotated / 2 + i] = Math.sin(angle);
      }
    const prepared = (x: Float32Array, heads: number, norm: Float32Array) => {
      const y = Float32Array.from(x);
      for (let at = 0; at < x.length; at += 12) {
        const head = x.subarray(at, at + 12);
        const inverse = 1 / Math.sqrt(head.reduce((sum, v) => sum + v * v, 0) / 12 + eps);
        const normal = Array.from(head, (v, i) => v * inverse * (norm[i]! + offset));
        const table = rope.subarray(of.rows[Math.floor(at / 12 / heads)]![1]! * rotated);
        for (let i = 0; i < 12; i++) {
          const pair = i < rotated / 2 ? i + rotated / 2 : i - rotated / 2;
          const [cos, sin] = [table[i % (rotated / 2)]!, table[rotated / 2 + (i % (rotated / 2))]!];
          const turned =
            i < rotated / 2 ? normal[i]! * cos - normal[pair]! * sin : normal[i]! * cos + normal[pair]! * sin;
          y[at + i] = i < rotated ? turned : normal[i]!;
        }
      }
      return y;
    };
    const rows = of.rows.map(([slot, p, , end]) => [slot!, p!, 5, end!]);
    const want = reference({ ...all, rows, q: prepared(all.q, 4, qNorm), k: prepared(all.k, 2, kNorm) });
    using cache = new KvCache({ layers: 1, heads: 2, columns: 12, capacity: 32, dtype: "float32", device });
    using qkv = joined(all, all.q, all.k, all.v, device);
    for (const dtype of floatDTypes) {
      using y = attention(qkv, rowsTensor(rows, device), {
        ...{ heads: 4, kvHeads: 2, cache, normEps: eps, normOffset: offset },
        qNorm: Tensor.from(qNorm, undefined, { device }).cast(dtype),
        kNorm: Tensor.from(kNorm, undefined, { device }).cast(dtype),
        rope: Tensor.from(rope, [40, rotated], { device }),
      });
      expect(relativeError(y.read(), want)).toBeLessThan(dtype === "float32" ? 4e-6 : 3e-2);
    }
  });

  test("a long text whose keys are shared out, and rows that see nothing", () => {
    const rows = causal(700);
    const all = make({ heads: 2, kvHeads: 1, d: 32, rows });
    const last = [...rows.slice(0, -1), [0, 699, 3, 700]];
    const want = reference({ ...all, rows: last });
    using cache = new KvCache({ layers: 1, heads: 1, columns: 32, capacity: 700, dtype: "float32", device });
    using qkv = joined(all, all.q, all.k, all.v, device);
    const options = { heads: 2, kvHeads: 1, cache };
    using whole = attention(qkv, rowsTensor(last, device), options);
    expect(relativeError(whole.read(), want)).toBeLessThan(2e-6);
    using tail = Tensor.from(qkv.read().slice(-128), [1, 128], { device });
    using one = attention(tail, rowsTensor(last.slice(-1), device), options);
    expect(relativeError(one.read(), want.subarray(-64))).toBeLessThan(2e-6);
    using nothing = attention(tail, rowsTensor([[0, 699, 5, 5]], device), options);
    expect([...nothing.read()]).toEqual(Array(64).fill(0));
  });

  describe.each([16, 32])("texts whose keys lie in pages of %i", (page) => {
    // Text 0 and 1 begin alike, with pages in common; 2 has its own; all pages lie in disorder.
    const rows = [...causal(75, 0), ...causal(9, 1, 64), ...causal(50, 2, 0, 21), ...causal(1, 0, 75)];
    const most = Math.ceil(76 / page);
    const table = Array.from({ length: 3 * most }, (_, i) => (i * 7) % (3 * most + 1));
    for (let at = 0; at < 64 / page; at++) table[most + at] = table[at]!;
    const pages = () => Tensor.from(Int32Array.from(table), [3, most], { device });
    const all = make({ heads: 4, kvHeads: 2, d: 24, rows });
    // What text 1 sees of its first 64 keys are those of text 0.
    const shared = rows.flatMap(([slot, position], i) => (slot === 0 && position! < 64 ? [i] : []));
    const part = (x: Float32Array, columns: number, of: readonly number[]) =>
      Float32Array.from(of.flatMap((row) => [...x.subarray(row * columns, (row + 1) * columns)]));
    const order = [...rows.keys(), ...shared];
    const want = reference({
      ...all,
      rows: [...rows, ...shared.map((i) => [1, rows[i]![1]!, 0, rows[i]![3]!])],
      q: part(all.q, 4 * 24, order),
      k: part(all.k, 2 * 24, order),
      v: part(all.v, 2 * 24, order),
    }).subarray(0, rows.length * 4 * 24);

    test.each([
      ["float32", 2e-6],
      ["float16", 6e-4],
      ["int8", 1.5e-2],
    ] as const)("in %s", (dtype, tolerance) => {
      const slots = 3 * most + 1;
      using cache = new KvCache({ layers: 2, heads: 2, columns: 24, slots, capacity: page, dtype, device });
      using qkv = joined(all, all.q, all.k, all.v, device);
      using y = attention(qkv, rowsTensor(rows, device), { heads: 4, kvHeads: 2, cache, layer: 1, pages: pages() });
      expect(relativeError(y.read(), want)).toBeLessThan(tolerance);
    });
  });

  test("a cache gets more slots, and fewer, of what dtype it may be", () => {
    for (const dtype of ["float32", "float16", "int8"] as const) {
      using cache = new KvCache({ layers: 2, heads: 2, columns: 2, slots: 3, capacity: 16, dtype, device });
      const bytes = (seed: number) =>
        Uint8Array.from({ length: 16 * cache.rowBytes }, (_, i) => (seed * 31 + i * 7) % 251);
      for (const slot of [0, 1, 2]) cache.write(slot, 16, bytes(slot));
      cache.resize({ slots: 7 });
      for (const slot of [0, 1, 2]) expect(cache.read(slot, 16)).toEqual(bytes(slot));
      cache.write(6, 16, bytes(6));
      cache.resize({ slots: 2 });
      for (const slot of [0, 1]) expect(cache.read(slot, 16)).toEqual(bytes(slot));
    }
  });

  test("a cache grows, is saved by slots and put back, and is counted", () => {
    const before = settled(device).bytes;
    using cache = new KvCache({ layers: 2, heads: 2, columns: 16, slots: 2, capacity: 16, dtype: "int8", device });
    expect(device.counters.bytes - before).toBe(cache.byteLength);
    const all = make({ heads: 2, kvHeads: 2, d: 16, rows: [...causal(9, 0), ...causal(12, 1)] });
    using qkv = joined(all, all.q, all.k, all.v, device);
    for (const layer of [0, 1]) attention(qkv, rowsTensor(all.rows, device), { heads: 2, cache, layer }).dispose();
    const saved = [cache.read(0, 9), cache.read(1, 12)];
    cache.resize({ slots: 3, capacity: 40 });
    expect([cache.slots, cache.capacity]).toEqual([3, 48]);
    expect([cache.read(0, 9), cache.read(1, 12)]).toEqual(saved);
    cache.write(2, 12, saved[1]!);
    expect(cache.read(2, 12)).toEqual(saved[1]!);
    cache.resize({ slots: 1, capacity: 16 });
    expect(cache.read(0, 9)).toEqual(saved[0]!);
    expect(cache.byteLength).toBe(16 * cache.rowBytes);
  });

  test("what does not fit is refused, with a sentence", () => {
    const all = make({ heads: 2, kvHeads: 1, d: 8, rows: causal(2) });
    using qkv = joined(all, all.q, all.k, all.v, device);
    using rows = rowsTensor(all.rows, device);
    using cache = new KvCache({ layers: 1, heads: 1, columns: 8, capacity: 16, device });
    const refused = (options: Partial<AttentionOptions>, at = rows) =>
      errorOf(() => attention(qkv, at, { heads: 2, kvHeads: 1, cache, ...options })).message;
    expect(refused({ kvHeads: 3 })).toContain("heads is 2 and kvHeads 3");
    expect(refused({ heads: 1.5 })).toContain("heads is 1.5");
    expect(refused({ layer: 1 })).toContain("layer 1 of a cache with 1 layers");
    expect(refused({ softcap: -1 })).toContain("softcap is -1");
    expect(refused({ scale: Number.NaN })).toContain("scale is NaN");
    expect(refused({ rope: Tensor.zeros([9, 3], { device }) })).toContain("rope has 3 columns");
    expect(refused({ qNorm: Tensor.zeros([8], { device }) })).toContain("give both or neither");
    expect(refused({ bias: Tensor.zeros([2, 4], { device }) })).toContain("bias has 4 columns");
    expect(refused({ k: Tensor.zeros([2, 9], { device }), v: Tensor.zeros([2, 9], { device }) })).toContain(
      "k is float32 [2, 9]",
    );
    expect(refused({}, Tensor.zeros([3, 4], { dtype: "int32", device }))).toContain("rows is int32 [3, 4]");
    const shape = { layers: 1, heads: 1, columns: 8, capacity: 4 };
    expect(errorOf(() => new KvCache({ ...shape, device: "gpu" as never })).message).toContain('device is "gpu"');
    using current = new KvCache(shape);
    expect(current.byteLength).toBe(16 * current.rowBytes);
    expect(errorOf(() => new KvCache({ layers: 0, heads: 1, columns: 8, capacity: 4, device })).message).toContain(
      "layers is 0",
    );
    expect(
      errorOf(() => new KvCache({ layers: 1, heads: 1, columns: 8, capacity: 4, dtype: "bfloat16" as "int8", device }))
        .message,
    ).toContain('dtype is "bfloat16"');
    const page = Tensor.zeros([1, 1], { dtype: "int32", device });
    expect(refused({ cache: undefined, pages: page })).toContain("pages are given, but no cache");
    expect(refused({ pages: Tensor.zeros([1, 1], { device }) as never })).toContain("pages is float32 [1, 1]");
    using odd = new KvCache({ layers: 1, heads: 1, columns: 8, capacity: 48, device });
    expect(refused({ cache: odd, pages: page })).toContain("slots of 48 tokens can't be pages");
    expect(errorOf(() => cache.read(0, 17)).message).toContain("length is 17");
    expect(errorOf(() => cache.write(0, 2, new Uint8Array(3))).message).toContain("bytes has 3, expected");
    if (device.kind !== "cpu") return; // a GPU gives zeros
    expect(
      refused(
        {},
        rowsTensor(
          [
            [1, 0, 0, 1],
            [0, 1, 0, 2],
          ],
          device,
        ),
      ),
    ).toContain("rows[0] is (slot 1,");
    expect(
      refused(
        {},
        rowsTensor(
          [
            [0, 0, 0, 1],
            [0, 16, 0, 2],
          ],
          device,
        ),
      ),
    ).toContain("rows[1] is (slot 0, position 16");
    expect(
      refused(
        {},
        rowsTensor(
          [
            [0, 0, 0, 17],
            [0, 1, 0, 2],
          ],
          device,
        ),
      ),
    ).toContain("keys 0 to 17");
    const wrong = Tensor.from(Int32Array.of(0, 1), [1, 2], { device });
    expect(refused({ pages: wrong })).toContain("pages[0, 1] is 1, expected one of the 1 slots of the cache");
    expect(refused({ rope: Tensor.zeros([1, 2], { device }) })).toContain("expected one of 1 slots, 1 positions");
  });
});
