// Models out of GGUF files: each architecture's tiny one gives what the folder gives that it was made of.
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { convertGguf } from "../../src/checkpoint/transform.ts";
import { Model } from "../../src/index.ts";
import { testDevices } from "../cases.ts";
import { difference, expectedOf, rejection, tiny } from "./fixtures.ts";
import { writeGguf } from "./gguf.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-gguf-run-"));
afterAll(() => rmSync(scratch, { recursive: true }));

/** A tiny model's folder, with what its config says and GGUF has no word for changed. */
function folderOf(name: string, change: Record<string, unknown> = {}): string {
  const folder = join(scratch, name);
  cpSync(tiny(name), folder, { recursive: true });
  const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
  writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, ...change }));
  return folder;
}

const sliding = { layer_types: ["sliding_attention", "sliding_attention"] };
const full = { layer_types: ["full_attention", "full_attention"] };

describe.each(testDevices)("on %s", (_, device) => {
  test.each([
    ["llama", "llama", {}],
    ["mixtral", "llama", {}],
    ["qwen2", "qwen2", { ...full, use_sliding_window: false }],
    ["qwen3", "qwen3", {}],
    ["qwen3_moe", "qwen3moe", {}],
    ["gemma", "gemma", {}],
    ["gemma2", "gemma2", { query_pre_attn_scalar: 8 }],
    ["gemma3", "gemma3", { ...sliding, query_pre_attn_scalar: 8 }],
    ["phi", "phi2", {}],
    ["phi3", "phi3", {}],
    ["granite", "granite", {}],
    ["olmo2", "olmo2", {}],
    ["smollm3", "smollm3", { no_rope_layers: [1, 1] }], // every fourth has none, and it has two
  ])("%s", async (name, architecture, change) => {
    const folder = folderOf(name, change);
    const file = `${folder}.gguf`;
    writeGguf(folder, architecture, file);
    using model = await Model.load(file, { device, precision: "highest" });
    using original = await Model.load(folder, { device, precision: "highest" });
    const { ids, largest } = expectedOf(name);
    const [a, b] = [model, original].map((one) => {
      using session = one.session({ cacheDtype: "float32" });
      return session.forward(ids[0]!, { logits: "all" });
    });
    // Weights of norms are float32 in the one and bfloat16 in the other, and 1 + w in Gemma's: rounded once more.
    expect(difference(a!, b!)).toBeLessThan(1e-6 * largest);
    expect(model.architecture.tokens.eos).toEqual(name === "llama" ? [2] : []);
  });

  test.each([
    ["bert", "bert"],
    ["nomic_bert", "nomic-bert"],
  ])("%s", async (name, architecture) => {
    const folder = folderOf(name);
    writeGguf(folder, architecture, `${folder}.gguf`);
    using model = await Model.load(`${folder}.gguf`, { device, precision: "highest" });
    using original = await Model.load(folder, { device, precision: "highest" });
    const { ids } = expectedOf(name);
    const pooling = { mode: name === "bert" ? "cls" : "mean", normalize: true } as const;
    const [want] = await original.embed(ids, { pooling });
    const [got] = await model.embed(ids); // the file says how
    expect(difference(got!, want!)).toBeLessThan(1e-6);
  });

  test("weights of Q8_0 stay as they are, and say what convert makes of them", async () => {
    const file = join(scratch, "q8.gguf");
    writeGguf(tiny("llama"), "llama", file, true);
    const output = join(scratch, `q8-${device}`);
    await convertGguf(file, { output, dtype: "float32" });
    using model = await Model.load(file, { device, precision: "highest" });
    using dense = await Model.load(output, { device, precision: "highest" });
    const { ids, values, columns, largest } = expectedOf("llama");
    const [got, want] = [model, dense].map((one) => {
      using session = one.session({ cacheDtype: "float32" });
      return session.forward(ids[0]!, { logits: "all" });
    });
    expect(difference(got!, want!)).toBeLessThan(1e-5 * largest);
    const off = difference(got!, values.subarray(0, ids[0]!.length * columns));
    expect(off).toBeGreaterThan(1e-4 * largest); // it is quantised
    expect(off).toBeLessThan(0.1 * largest);
  });
});

test("a file brings its tokenizer and its chat template along", async () => {
  const file = join(scratch, "spoken.gguf");
  writeGguf(tiny("llama"), "llama", file);
  using model = await Model.load(file, { device: "cpu", precision: "highest" });
  using original = await Model.load(tiny("llama"), { device: "cpu", precision: "highest" });
  for (const text of ["Hello there", "née 🙂 <|im_end|>", ""])
    expect(model.tokenizer.encode(text)).toEqual(original.tokenizer.encode(text));
  using chat = model.chat();
  using other = original.chat();
  const options = { maxTokens: 12, ignoreEos: true };
  const answers = [chat, other].map(async (one) => (await Array.fromAsync(one.send("hi", options))).join(""));
  expect(await answers[0]!).toBe(await answers[1]!);
});

describe("what is refused", () => {
  test("quantising what is quantised already", async () => {
    const file = join(scratch, "again.gguf");
    writeGguf(tiny("llama"), "llama", file, true);
    const error = await rejection(Model.load(file, { quantType: "nf4" }));
    expect(error.message).toMatch(/again.gguf: .*q_proj.weight is quantised already: load it without quantType/);
  });

  test("files of no model, and folders that have one inside", async () => {
    const file = join(scratch, "notes.txt");
    writeFileSync(file, "nothing");
    expect((await rejection(Model.load(file))).message).toContain("is a file and no .gguf");
    expect((await rejection(Model.load(join(scratch, "nowhere")))).message).toContain("does not exist");
    const folder = mkdtempSync(join(scratch, "folder-"));
    expect((await rejection(Model.load(folder))).message).toContain("has no config.json, expected the folder of a");
    writeFileSync(join(folder, "m.gguf"), "GGUF");
    expect((await rejection(Model.load(folder))).message).toContain("name its file instead: m.gguf");
    expect((await rejection(Model.load(join(folder, "m.gguf")))).message).toContain("m.gguf");
  });

  test("a text, where the tokenizer is of a kind that is not rebuilt", async () => {
    const file = join(scratch, "mute.gguf");
    writeGguf(folderOf("qwen3"), "qwen3", file);
    using model = await Model.load(file);
    expect((await rejection(model.generate("Hello").text())).message).toContain(
      "has no tokenizer that is understood. The file has no tokenizer",
    );
    expect(await model.generate([1, 2], { maxTokens: 1 }).text()).toBe("");
  });
});
