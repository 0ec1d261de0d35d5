// What every kernel of the product takes on a GPU, as far as that can be told without one: its threads get their
// registers, and none of its arrays lies in memory.
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { families, familySource } from "../../scripts/msl/families.ts";
import { translate } from "../../scripts/msl/translate.ts";
import { estimate, threadsFor } from "./estimate.ts";
import { estimatesTable, writtenTable } from "./estimates.ts";

const shapes = readFileSync(join(import.meta.dir, "../../metal/args.h"), "utf8");

/**
 * Function constants that make the most of a family: half precision, 4-bit codes in blocks, a bias. Others are
 * ones.
 */
const constants: Readonly<Record<string, readonly number[]>> = {
  dequantize: [20, 1, 1],
  embedding: [20, 1, 1, 1],
  int8_matmul: [1, 0, 1, 1, 1],
  int8_quantize: [1, 1, 0, 1, 1, 1, 1],
  matmul_backward: [1, 20, 1, 1, 1, 0, 1],
  matmul_tile: [1, 20, 1, 1, 1, 1],
  matmul_vector: [1, 20, 1, 1, 1, 0],
  optimizer: [0, 1, 0, 24, 0],
  quantize: [0, 24, 0],
};

describe.each(families)("%s", (family) => {
  for (const { name, maxThreads } of translate(familySource(family), family).kernels)
    test(name, () => {
      const threads = Number(new RegExp(`\\b${maxThreads} *= *(\\d+)`).exec(shapes)?.[1]);
      expect(threads).toBeGreaterThan(0); // it declares them, by a constant that the host launches with
      const ones = constants[family] ?? Array(8).fill(1);
      const { registers, spilled } = estimate({ family, kernel: name, threads, constants: ones });
      expect(spilled).toBe(0);
      expect(registers).toBeGreaterThan(0);
      expect(threadsFor(registers)).toBeGreaterThanOrEqual(threads);
    }, 60_000);
});

test("an array in a loop that is none of registers is seen", () => {
  const source = familySource("optimizer").replaceAll(
    "UNROLL for (uint j = 0; j < EACH; j++)",
    "for (uint j = 0; j < EACH; j++)",
  );
  expect(source).not.toBe(familySource("optimizer"));
  const subject = { family: "optimizer", kernel: "optimizer", threads: 256, constants: constants.optimizer! };
  expect(estimate(subject, source).spilled).toBeGreaterThan(0);
}, 60_000);

test("the page of figures has the table of estimates", () => {
  expect(writtenTable()).toBe(estimatesTable().trim());
}, 60_000);

test("a core's registers among its threads, by the tables that were measured", () => {
  expect([52, 104, 116, 128].map(threadsFor)).toEqual([1024, 512, 448, 384]);
});
