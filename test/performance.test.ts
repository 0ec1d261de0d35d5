// Tests that docs/performance.md tells the truth: its figures are those of bench/results, its kernels those of
// the library.
import { expect, test } from "bun:test";
import { layerChart } from "../bench/chart.ts";
import { documented, page } from "../bench/document.ts";
import { loadRecord } from "../bench/peers/results.ts";

test("docs/performance.md has the figures of bench/results: bun run bench:document writes them", async () => {
  const text = await Bun.file(page).text();
  expect(await documented(text)).toBe(text);
});

test("the README's picture is of the same figures", async () => {
  const record = loadRecord(`${import.meta.dir}/../bench/results/peers.json`);
  expect(await Bun.file(`${import.meta.dir}/../docs/layer.svg`).text()).toBe(layerChart(record));
});

test("docs/performance.md lists the CPU's kernels in the order in which they are tried", async () => {
  const source = await Bun.file(`${import.meta.dir}/../csrc/cpu/matmul-inl.h`).text();
  const kernels = [...source.matchAll(/\{BNB_PRECISION_(\w+), \w+, (\w+)\}/g)].map(([, precision, name]) => [
    name,
    precision!.toLowerCase(),
  ]);
  const rows = [...(await Bun.file(page).text()).matchAll(/^\| `(\w+)` +\| `(\w+)`/gm)].map(([, name, precision]) => [
    name,
    precision,
  ]);
  expect(kernels.length).toBeGreaterThan(2);
  expect(rows).toEqual(kernels);
});
