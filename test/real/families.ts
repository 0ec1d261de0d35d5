// Tiny models of many families, on demand (`bun run test:models`): quantised here and by transformers, and read from
// GGUF
// files that gguf-py wrote; the outputs agree. Adapters, merged here and by PEFT, and saved for it.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { verifyCheckpoint } from "../../src/checkpoint/inspect.ts";
import { convertGguf, mergeAdapter, type QuantizeOptions, quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { checkpoint, nn, Tensor } from "../../src/index.ts";
import { transformersPython } from "./packages.ts";

const python = transformersPython();

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
    type Differences = Record<string, number[] | null>;
    const differences = (await ask("families.py", "compare", originals, ours, JSON.stringify(theirs))) as Differences;
    // DeepSeek's model reads a weight's rows, which of LLM.int8() transformers can't.
    expect(families.filter((family) => !differences[family])).toEqual(name === "int8" ? ["deepseek"] : []);
    expect(families.length).toBe(17);
    for (const family of families.filter((family) => differences[family])) {
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

describe.skipIf(!python)("adapters", () => {
  const folder = join(scratch, "adapters");

  test("merged, every kind is what PEFT merges", async () => {
    const names = (await ask("adapters.py", "make", folder)) as string[];
    const ours = join(scratch, "merged");
    for (const name of names)
      await mergeAdapter(join(folder, name, "base"), join(folder, name, "adapter"), { output: join(ours, name) });
    const found = (await ask("adapters.py", "compare", folder, ours)) as Record<string, [number, number]>;
    expect(names.length).toBe(9);
    for (const name of names) {
      const [difference, change] = found[name]!;
      expect([name, difference < (name === "dora" ? 1e-7 : 1e-12), change > 0.05]).toEqual([name, true, true]);
    }
  });

  test("saved, PEFT loads them", async () => {
    const output = join(scratch, "saved");
    const base = () => new nn.Linear4bit(Tensor.from(new Float32Array(64 * 64).fill(0.1), [64, 64]));
    using one = nn.Lora.init(base(), { r: 4, alpha: 8 });
    using two = nn.Lora.init(base(), { r: 2, alpha: 7 });
    const names = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"] as const;
    await checkpoint.saveAdapter({ [names[0]]: one, [names[1]]: two }, { output });
    const scalings = await ask("adapters.py", "load", join(folder, "plain/base"), output);
    expect(scalings).toEqual({ [names[0]]: 2, [names[1]]: 3.5 });
  });
});
