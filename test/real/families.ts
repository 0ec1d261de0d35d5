// Tiny models of many families, on demand (`bun run test:models`): quantised here and by transformers, and read from GGUF
// files that gguf-py wrote; the outputs agree.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { convertGguf, type QuantizeOptions, quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { python } from "./packages.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-families-"));
afterAll(() => rmSync(scratch, { recursive: true }));

/** What a call of a script of this folder prints last. */
async function ask(script: string, ...command: string[]): Promise<unknown> {
  const { stdout } = await $`${python} ${join(import.meta.dir, script)} ${command}`.quiet();
  return JSON.parse(stdout.toString().trim().split("\n").at(-1)!);
}

const variants = {
  nf4: [
    { quantType: "nf4", dtype: "float32" },
    { load_in_4bit: true, bnb_4bit_quant_type: "nf4", bnb_4bit_compute_dtype: "float32", dtype: "float32" },
  ],
  "nf4 of bfloat16": [
    { quantType: "nf4", dtype: "bfloat16" },
    { load_in_4bit: true, bnb_4bit_quant_type: "nf4", bnb_4bit_compute_dtype: "bfloat16", dtype: "bfloat16" },
  ],
  int8: [
    { quantType: "int8", dtype: "float32" },
    { load_in_8bit: true, dtype: "float32" },
  ],
} satisfies Record<string, [Pick<QuantizeOptions, "quantType" | "dtype">, object]>;

describe.skipIf(!python).each(Object.entries(variants))("in %s", (name, [options, theirs]) => {
  test("every family computes what transformers' own quantisation does, to the bit", async () => {
    const originals = join(scratch, "originals");
    const ours = join(scratch, name.replaceAll(" ", "-"));
    const families = (await ask("families.py", "make", originals)) as string[];
    for (const family of families) {
      await quantizeCheckpoint(join(originals, family), { output: join(ours, family), ...options });
      expect([family, (await verifyCheckpoint(join(ours, family))).problems]).toEqual([family, []]);
    }
    const differences = (await ask("families.py", "compare", originals, ours, JSON.stringify(theirs))) as Record<
      string,
      number[]
    >;
    expect(families.length).toBeGreaterThanOrEqual(12);
    for (const family of families) {
      const [difference, largest] = differences[family]!;
      expect([family, difference]).toEqual([family, 0]);
      expect([family, largest! > 0]).toEqual([family, true]);
    }
  });
});

describe.skipIf(!python)("from GGUF", () => {
  test("every architecture computes what its original does, to the bit", async () => {
    const originals = join(scratch, "gguf");
    const ours = join(scratch, "from-gguf");
    mkdirSync(originals);
    const names = (await ask("gguf_models.py", "make", originals)) as string[];
    for (const name of names)
      await convertGguf(join(originals, `${name}.gguf`), { output: join(ours, name), dtype: "float32" });
    const differences = (await ask("gguf_models.py", "compare", originals, ours)) as Record<string, number>;
    expect(names.length).toBe(17);
    for (const name of names) expect([name, differences[name]]).toEqual([name, 0]);
  });
});
