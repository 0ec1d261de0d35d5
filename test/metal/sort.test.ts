// The test of the kernels that sort positions by their index by themselves, on the simulator, fast and with every
// access checked: each pass's counts and places, ragged tiles, and what is left out.
import { describe, expect, test } from "bun:test";
import { launch, runs } from "./launch.ts";

const [threads, bits, tile] = [256, 8, 2048];
const nobody = new Uint32Array(2048); // of buffers that a kernel won't look at

/** Numbers below `most` that have no order. */
function scattered(count: number, most: number): Int32Array<ArrayBuffer> {
  let state = count + 1;
  return Int32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * most);
  });
}

/** Pairs of a key and a position in order of the keys, and how many come before each key. */
function sortedOf(indices: Int32Array, rows: number, padding: number) {
  const key = (index: number) => (index >= 0 && index < rows && index !== padding ? index : rows);
  const positions = [...indices.keys()].sort((a, b) => key(indices[a]!) - key(indices[b]!) || a - b);
  const starts = new Uint32Array(rows + 1);
  for (const index of indices) if (key(index) < rows) starts[key(index) + 1]!++;
  for (let row = 0; row < rows; row++) starts[row + 1]! += starts[row]!;
  return { pairs: positions.flatMap((position) => [key(indices[position]!), position]), starts: [...starts] };
}

describe.each(runs)("sort, $mode, seed $seed", (run) => {
  function sort(indices: Int32Array<ArrayBuffer>, rows: number, padding: number) {
    const { length: count } = indices;
    const tiles = Math.ceil(count / tile);
    let from = nobody;
    for (let shift = 0; rows >>> shift > 0; shift += bits) {
      const to = new Uint32Array(2 * count);
      const [counts, totals] = [new Uint32Array(tiles << bits), new Uint32Array(1 << bits)];
      const first = +(shift === 0);
      const args = [count, rows, padding >>> 0, shift];
      const common = { ...run, family: "sort", args, group: threads };
      const taken = first ? [indices, nobody] : [nobody, from];
      if (tiles > 1) {
        const grid = [tiles, 1, 1] as const;
        launch({ ...common, kernel: "sort_count", constants: [first], buffers: [...taken, counts], grid });
        launch({ ...common, kernel: "sort_scan", constants: [], buffers: [counts, totals], grid: [1 << bits, 1, 1] });
      }
      launch({
        ...{ ...common, kernel: "sort_move", constants: [first, +(tiles === 1)] },
        ...{ buffers: [...taken, counts, totals, to], grid: [tiles, 1, 1] },
      });
      from = to;
    }
    const starts = new Uint32Array(rows + 1);
    const args = [count, rows, padding >>> 0, 0];
    const buffers = [from, starts];
    launch({
      ...run,
      family: "sort",
      kernel: "sort_starts",
      constants: [],
      args,
      buffers,
      grid: [2, 1, 1],
      group: 256,
    });
    return { pairs: [...from], starts: [...starts] };
  }

  test.each([1, 31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 4099])("%d indices", (count) => {
    for (const rows of [1, 3, 255, 256, 1000]) {
      const indices = scattered(count, rows);
      expect(sort(indices, rows, -1)).toEqual(sortedOf(indices, rows, -1));
      expect(sort(indices, rows, rows >> 1)).toEqual(sortedOf(indices, rows, rows >> 1));
    }
  });

  test("counts of more tiles than a threadgroup has threads", () => {
    const tiles = 600;
    const counts = Uint32Array.from(scattered(256 * tiles, 9));
    const [before, totals] = [counts.slice(), new Uint32Array(256)];
    for (let digit = 0; digit < 256; digit++)
      for (let at = digit * tiles; at < (digit + 1) * tiles; at++) {
        before[at] = totals[digit]!;
        totals[digit]! += counts[at]!;
      }
    const args = [tiles * tile - 5, 1, 0, 0];
    const [left, sums] = [counts.slice(), new Uint32Array(256)];
    launch({
      ...{ ...run, family: "sort", kernel: "sort_scan", constants: [], args, group: threads },
      ...{ buffers: [left, sums], grid: [256, 1, 1] },
    });
    expect(left).toEqual(before);
    expect(sums).toEqual(totals);
  });

  test("keys of three digits", () => {
    const rows = 70_000;
    const indices = scattered(2500, rows).map((index, i) => (i % 2 ? index : index % 7));
    expect(sort(indices, rows, 3)).toEqual(sortedOf(indices, rows, 3));
  });

  test("all alike, and in both orders", () => {
    const falling = Int32Array.from({ length: 3000 }, (_, i) => 2999 - i);
    for (const indices of [new Int32Array(3000).fill(5), falling, falling.toReversed()])
      expect(sort(indices, 3000, 7)).toEqual(sortedOf(indices, 3000, 7));
  });

  test("an index that is no row is left out, and nothing is looked up by it", () => {
    for (const count of [40, 2100]) {
      const hostile = [-1, 300, 0x7fffffff, -0x80000000, 299, 0, 256, 511, 0x100, 0xffff];
      const indices = Int32Array.from({ length: count }, (_, i) => hostile[i % hostile.length]!);
      expect(sort(indices, 300, -1)).toEqual(sortedOf(indices, 300, -1));
      expect(sort(indices.fill(-7), 300, 0)).toEqual(sortedOf(indices, 300, 0));
    }
  });
});
