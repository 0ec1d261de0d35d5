// Adapters beside the weights: the logits are those of the model that they are merged into.
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/checkpoint.ts";
import { dequantizeCheckpoint, mergeAdapter, quantizeCheckpoint } from "../../src/checkpoint/transform.ts";
import { writeSafetensors } from "../../src/checkpoint/writer.ts";
import { type Device, Model, Tensor } from "../../src/index.ts";
import { testDevices } from "../cases.ts";
import { weights } from "../models.ts";
import { difference, expectedOf, rejection, tiny } from "./fixtures.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-beside-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let folders = 0;
const fresh = () => join(scratch, `${folders++}`);

/** A tiny model in float32, so that merging rounds nothing. */
async function wide(name: string): Promise<string> {
  const folder = fresh();
  cpSync(tiny(name), folder, { recursive: true });
  using checkpoint = openCheckpoint(tiny(name));
  const tensors = Array.from(checkpoint.tensors.values(), ({ name, shape, values }) => {
    using narrow = Tensor.from(values as Float32Array, shape, { dtype: "bfloat16", device: "cpu" });
    return { name, dtype: "F32" as const, shape, bytes: narrow.readFloat32() };
  });
  await writeSafetensors(join(folder, "model.safetensors"), tensors);
  return folder;
}

type Shapes = Record<string, readonly number[]>;

/** A folder as PEFT saves it. */
async function adapter(shapes: Shapes, config: object = {}): Promise<string> {
  const folder = fresh();
  mkdirSync(folder);
  const tensors = Object.entries(shapes).map(([name, shape], seed) => {
    const values = weights(
      shape.reduce((a, b) => a * b),
      seed + 1,
    ).map((value) => value * 8);
    return { name: `base_model.model.${name}`, dtype: "F32" as const, shape, bytes: values };
  });
  await writeSafetensors(join(folder, "adapter_model.safetensors"), tensors);
  const said = { peft_type: "LORA", r: 4, lora_alpha: 8, ...config };
  writeFileSync(join(folder, "adapter_config.json"), JSON.stringify(said));
  return folder;
}

const pair = (module: string, [n, k]: readonly [number, number], r = 4): Shapes => ({
  [`${module}.lora_A.weight`]: [r, k],
  [`${module}.lora_B.weight`]: [n, r],
});

/** Of the llama: q and v, but not k, of different ranks; one half of a gate; a norm that is whole. */
const shapes: Shapes = {
  ...pair("model.layers.0.self_attn.q_proj", [32, 32]),
  ...pair("model.layers.0.self_attn.v_proj", [16, 32], 2),
  ...pair("model.layers.0.self_attn.o_proj", [32, 32]),
  ...pair("model.layers.1.mlp.up_proj", [40, 32]),
  ...pair("model.layers.1.mlp.down_proj", [32, 40]),
  "model.layers.1.input_layernorm.weight": [32],
};
const config = { rank_pattern: { v_proj: 2 }, alpha_pattern: { down_proj: 3 }, use_rslora: true };

async function logitsOf(path: string, device: Device, options: object = {}): Promise<Float32Array> {
  using model = await Model.load(path, { device, precision: "highest", ...options });
  using session = model.session({ cacheDtype: "float32" });
  return session.forward(expectedOf("llama").ids[0]!, { logits: "all" });
}

describe.each(testDevices)("on %s", (_, device) => {
  const { largest } = expectedOf("llama");

  test("beside a dense model", async () => {
    const [base, path] = [await wide("llama"), await adapter(shapes, config)];
    const output = fresh();
    await mergeAdapter(base, path, { output });
    const [plain, got, want] = [
      await logitsOf(base, device),
      await logitsOf(base, device, { adapter: path }),
      await logitsOf(output, device),
    ];
    expect(difference(got, want)).toBeLessThan(1e-5 * largest);
    expect(difference(got, plain)).toBeGreaterThan(0.05 * largest); // it does something
  });

  test("beside a quantised model: merged into what its codes stand for", async () => {
    const [base, path] = [await wide("llama"), await adapter(shapes, config)];
    const [quantised, dense, output] = [fresh(), fresh(), fresh()];
    await quantizeCheckpoint(base, { output: quantised, quantType: "nf4", blocksize: 32 });
    await dequantizeCheckpoint(quantised, { output: dense, dtype: "float32" });
    await mergeAdapter(dense, path, { output });
    const got = await logitsOf(quantised, device, { adapter: path });
    expect(difference(got, await logitsOf(output, device))).toBeLessThan(1e-5 * largest);
  });

  test("with biases of B, and beside a head that is the embedding", async () => {
    const more = { ...pair("lm_head", [64, 32]), ...pair("model.layers.0.self_attn.k_proj", [24, 32]) };
    const k = "model.layers.0.self_attn.k_proj";
    const path = await adapter({ ...more, [`${k}.lora_B.bias`]: [24] }, { lora_bias: true });
    const base = await wide("llama-yarn"); // whose products have biases to merge into
    const head = fresh(); // the same, with a head of its own
    cpSync(base, head, { recursive: true });
    using checkpoint = openCheckpoint(base);
    const tensors = Array.from(checkpoint.tensors.values(), ({ name, shape, bytes }) => {
      return { name, dtype: "F32" as const, shape, bytes };
    });
    const table = tensors.find(({ name }) => name === "model.embed_tokens.weight")!;
    await writeSafetensors(join(head, "model.safetensors"), [...tensors, { ...table, name: "lm_head.weight" }]);
    const output = fresh();
    await mergeAdapter(head, path, { output });
    const got = await logitsOf(base, device, { adapter: path });
    expect(difference(got, await logitsOf(output, device))).toBeLessThan(1e-5 * expectedOf("llama-yarn").largest);
  });

  test("beside an encoder, under the name that a task's model has for it", async () => {
    const shapes = pair("bert.encoder.layer.0.attention.self.query", [32, 32]);
    const path = await adapter(shapes);
    const plain = await adapter(
      Object.fromEntries(Object.entries(shapes).map(([name, shape]) => [name.replace("bert.", ""), shape])),
    );
    const base = await wide("bert");
    const output = fresh();
    await mergeAdapter(base, plain, { output });
    using got = await Model.load(base, { device, adapter: path });
    using want = await Model.load(output, { device });
    const ids = expectedOf("bert").ids;
    const [a, b] = [await got.embed(ids), await want.embed(ids)];
    expect(difference(a[0]!, b[0]!)).toBeLessThan(1e-5);
  });
});

test("generate and chat --adapter", async () => {
  const path = await adapter(shapes, config);
  using model = await Model.load(tiny("llama"), { adapter: path });
  const text = await model.generate("Hello", { maxTokens: 8 }).text();
  using plain = await Model.load(tiny("llama"));
  expect(await plain.generate("Hello", { maxTokens: 8 }).text()).not.toBe(text);
  const main = join(import.meta.dir, "../../src/cli/main.ts");
  const run = (args: string[], input: string) =>
    Bun.spawnSync([process.execPath, main, ...args, "--quiet", "--max-tokens", "8"], { stdin: Buffer.from(input) });
  expect(run(["generate", tiny("llama"), "Hello", "--adapter", path], "").stdout.toString()).toBe(`${text}\n`);
  using chat = model.chat();
  const answer = (await Array.fromAsync(chat.send("hi", { maxTokens: 8 }))).join("");
  expect(run(["chat", tiny("llama"), "--adapter", path], "hi\n").stdout.toString()).toContain(answer);
});

describe("what is refused", () => {
  const q = "model.layers.0.self_attn.q_proj";

  test.each<[string, Shapes, object, string]>([
    ["DoRA", { ...pair(q, [32, 32]), [`${q}.lora_magnitude_vector`]: [32] }, { use_dora: true }, "has use_dora"],
    ["columns first", pair(q, [32, 32]), { fan_in_fan_out: true }, "has fan_in_fan_out"],
    [
      "an embedding",
      { "model.embed_tokens.lora_embedding_A": [4, 64], "model.embed_tokens.lora_embedding_B": [32, 4] },
      {},
      "has an embedding among its target_modules, which can't run beside the weights: merge it into its base",
    ],
    ["another kind", pair(q, [32, 32]), { peft_type: "IA3" }, 'peft_type is "IA3"'],
    ["a layer too many", pair(q.replace("0", "7"), [32, 32]), {}, "layers.7.self_attn.q_proj.lora_A.weight, for which"],
    ["another width", pair(q, [32, 48]), {}, "q_proj is [4, 48] and its lora_B [32, 4], expected [r, 32] and [32, r]"],
    ["half of a pair", { [`${q}.lora_A.weight`]: [4, 32] }, {}, "its lora_B missing"],
    ["another rank", pair(q, [32, 32], 3), {}, "it says rank 4"],
  ])("%s", async (_, shapes, config, sentence) => {
    const error = await rejection(Model.load(tiny("llama"), { adapter: await adapter(shapes, config) }));
    expect(error.message).toContain(sentence);
  });

  test("a folder that has none", async () => {
    const error = await rejection(Model.load(tiny("llama"), { adapter: scratch }));
    expect(error.message).toContain("has no adapter_config.json");
  });
});
