// How a folder of sentence-transformers says that vectors are pooled.
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Pooling, pool, readPooling } from "../../src/model/pooling.ts";

const folder = mkdtempSync(join(tmpdir(), "bnb-pooling-"));
afterAll(() => rmSync(folder, { recursive: true }));
mkdirSync(join(folder, "1_Pooling"));
const modules = ["Transformer", "Pooling", "Normalize"].map((name, idx) => ({
  idx,
  path: name === "Pooling" ? "1_Pooling" : "",
  type: `sentence_transformers.models.${name}`,
}));
writeFileSync(join(folder, "modules.json"), JSON.stringify(modules));

function pooling(config: object) {
  writeFileSync(join(folder, "1_Pooling/config.json"), JSON.stringify(config));
  return readPooling(folder);
}

test.each([
  ["mean_tokens", "mean"],
  ["cls_token", "cls"],
  ["lasttoken", "last"],
  ["max_tokens", "max"],
])("pooling_mode_%s is %s", (key, mode) => {
  const all = { pooling_mode_mean_tokens: false, pooling_mode_cls_token: false, [`pooling_mode_${key}`]: true };
  expect(pooling(all)).toEqual({ mode: mode as "mean", normalize: true, maxTokens: undefined });
});

test("two ways at once, none, and one that is not known are refused", () => {
  expect(() => pooling({ pooling_mode_mean_tokens: true, pooling_mode_cls_token: true })).toThrow(/2 ways of pooling/);
  expect(() => pooling({})).toThrow(/0 ways of pooling/);
  const weighted = { pooling_mode_mean_tokens: true, pooling_mode_weightedmean_tokens: true };
  expect(() => pooling(weighted)).toThrow(/pooling_mode_weightedmean_tokens/);
});

test.each([
  ["mean", [4, 1, -0.5]],
  ["cls", [1, -2, 3]],
  ["last", [7, 4, -4]],
  ["max", [7, 4, 3]],
] as const)("three tokens pooled by %s, as they are and at length 1", (mode, want) => {
  const vectors = Float32Array.of(1, -2, 3, 4, 1, -0.5, 7, 4, -4);
  const of = (normalize: boolean): Pooling => ({ mode, normalize, maxTokens: undefined });
  expect([...pool(vectors, 3, of(false))]).toEqual([...want]);
  const length = Math.hypot(...want);
  for (const [i, value] of pool(vectors, 3, of(true)).entries()) expect(value).toBeCloseTo(want[i]! / length, 6);
  expect([...pool(new Float32Array(6), 3, of(true))]).toEqual([0, 0, 0]);
});
