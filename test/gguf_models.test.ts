// Whole GGUF models: what config.json says of them, split files, experts, norms of Gemma, and their tokenizers.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openGguf } from "../src/checkpoint/gguf.ts";
import { dumps } from "../src/checkpoint/pyjson.ts";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { convertGguf } from "../src/checkpoint/transform.ts";
import { checkpoint, dequantizeBlockwise, joinRows, QuantizedTensor, Tensor } from "../src/index.ts";
import {
  f32,
  type GgufMetadata,
  type GgufTensorSpec,
  ggufFile,
  llamaGgufMetadata,
  llamaGgufTensors,
} from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-gguf-models-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let files = 0;

function write(
  metadata: GgufMetadata,
  tensors: readonly GgufTensorSpec[] = llamaGgufTensors,
  name = `${files++}.gguf`,
) {
  const path = join(scratch, name);
  writeFileSync(path, ggufFile(metadata, tensors));
  return path;
}

/** The llama's metadata under another architecture. */
function as(architecture: string, extra: GgufMetadata = {}): GgufMetadata {
  const renamed = Object.entries(llamaGgufMetadata).map(([key, value]) => [
    key.replace(/^llama\./, `${architecture}.`),
    value,
  ]);
  return { ...Object.fromEntries(renamed), "general.architecture": architecture, ...extra };
}

const floats = (tensor: { read(): Uint8Array }) => {
  const bytes = tensor.read();
  return new Float32Array(bytes.slice().buffer);
};

describe("config.json", () => {
  const scalings: [string, GgufMetadata, string | undefined][] = [
    ["none", { "llama.rope.scaling.type": "none" }, undefined],
    [
      "linear",
      { "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4 },
      '{"rope_type": "linear", "factor": 4.0}',
    ],
    ["linear as of old", { "llama.rope.scale_linear": 2.5 }, '{"rope_type": "linear", "factor": 2.5}'],
    [
      "yarn",
      {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4,
        "llama.rope.scaling.original_context_length": 1024,
        "llama.rope.scaling.yarn_beta_fast": 32,
      },
      '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 32.0}',
    ],
  ];
  test.each(scalings)("rope scaling: %s", async (_, extra, expected) => {
    using model = await openGguf(write({ ...llamaGgufMetadata, ...extra }));
    expect(model.config.rope_scaling && dumps(model.config.rope_scaling)).toBe(expected);
  });

  test.each([[[4]], [[4, 4, 4]]])("a count for each layer that is one for all: %j", async (counts) => {
    using model = await openGguf(write({ ...llamaGgufMetadata, "llama.attention.head_count": counts }));
    expect(model.config.num_attention_heads).toBe(4);
  });

  test("an encoder's layer norms have BERT's epsilon where the file has none", async () => {
    const shapes = { attn_output_norm: [64], layer_output_norm: [64], ffn_up: [96, 64], ffn_down: [64, 96] };
    const squares = Object.fromEntries(["q", "k", "v", "output"].map((name) => [`attn_${name}`, [64, 64]]));
    const layer = Object.entries({ ...shapes, ...squares }).map(([name, shape]) => f32(`blk.0.${name}.weight`, shape));
    const whole = ["token_embd", "position_embd", "token_types"].map((name) => f32(`${name}.weight`, [10, 64]));
    whole.push(f32("token_embd_norm.weight", [64]));
    using model = await openGguf(write(as("bert"), [...whole, ...layer]));
    expect((model.config.layer_norm_eps as { value: number }).value).toBe(1e-12);
  });

  test("a decoder's layer norms have llama.cpp's epsilon where the file has none", async () => {
    const shapes = { attn_q: [64, 64], attn_k: [32, 64], attn_v: [32, 64], attn_output: [64, 64], ffn_up: [96, 64] };
    const all = { ...shapes, ffn_down: [64, 96], attn_norm: [64], ffn_norm: [64] };
    const layer = Object.entries(all).map(([name, shape]) => f32(`blk.0.${name}.weight`, shape));
    const whole = [f32("token_embd.weight", [10, 64]), f32("output_norm.weight", [64])];
    using model = await openGguf(write(as("starcoder2"), [...whole, ...layer]));
    expect((model.config.norm_epsilon as { value: number }).value).toBe(1e-5);
  });

  test("phi3's tables of factors become longrope", async () => {
    const names = { attn_qkv: [128, 64], attn_output: [64, 64], ffn_up: [192, 64], ffn_down: [64, 96] };
    const layer = Object.entries(names).map(([name, shape]) => f32(`blk.0.${name}.weight`, shape));
    const norms = llamaGgufTensors.filter(({ name }) => /norm|token_embd/.test(name));
    const table = (name: string, values: number[]) => ({
      ...{ name, shape: [values.length], type: 0, data: new Uint8Array(Float32Array.from(values).buffer) },
    });
    const tables = [table("rope_factors_long.weight", [1.5, 2]), table("rope_factors_short.weight", [1, 1.25])];
    const original = { "phi3.rope.scaling.original_context_length": 64, "phi3.rope.scaling.attn_factor": 1.5 };
    using model = await openGguf(write(as("phi3", original), [...norms, ...layer, ...tables]));
    expect(dumps(model.config.rope_scaling!)).toBe(
      '{"rope_type": "longrope", "long_factor": [1.5, 2.0], "short_factor": [1.0, 1.25], "attention_factor": 1.5}',
    );
    expect(model.config).toMatchObject({ model_type: "phi3", original_max_position_embeddings: 64 });
    expect(model.tensors.map(({ name }) => name)).toContain("model.layers.0.self_attn.qkv_proj.weight");
  });

  test("biases of attention and MLP are said", async () => {
    const biases = [f32("blk.0.attn_q.bias", [64]), f32("blk.0.ffn_up.bias", [96])];
    using model = await openGguf(write(llamaGgufMetadata, [...llamaGgufTensors, ...biases]));
    expect(model.config).toMatchObject({ attention_bias: true, mlp_bias: true });
    using plain = await openGguf(write(llamaGgufMetadata));
    expect([plain.config.attention_bias, plain.config.mlp_bias]).toEqual([undefined, undefined]);
  });
});

describe("split files", () => {
  const total = llamaGgufTensors.length;
  const parts = (folder: string) => {
    const about = { "split.count": 2, "split.tensors.count": total };
    const names = [1, 2].map((part) => `${folder}-0000${part}-of-00002.gguf`);
    write({ ...llamaGgufMetadata, ...about, "split.no": 0 }, llamaGgufTensors.slice(0, 7), names[0]);
    write({ ...about, "split.no": 1 }, llamaGgufTensors.slice(7), names[1]);
    return names.map((name) => join(scratch, name)) as [string, string];
  };

  test("are one model, whichever part is named", async () => {
    const paths = parts("whole");
    using one = await openGguf(write(llamaGgufMetadata));
    for (const path of paths) {
      using model = await openGguf(path);
      expect(model.tensors.map(({ name }) => name)).toEqual(one.tensors.map(({ name }) => name));
      expect(model.config).toEqual(one.config);
      for (const [i, tensor] of model.tensors.entries()) expect(floats(tensor)).toEqual(floats(one.tensors[i]!));
    }
  });

  test("a part that is missing is named; so is a name that tells no others", async () => {
    const [first, second] = parts("half");
    rmSync(second);
    await expect(openGguf(first)).rejects.toThrow(/half-00002-of-00002.gguf is missing: put it beside/);
    const odd = write({ ...llamaGgufMetadata, "split.count": 2 }, llamaGgufTensors, "odd.gguf");
    await expect(openGguf(odd)).rejects.toThrow(/call it NAME-00001-of-00002.gguf/);
  });
});

describe("experts", () => {
  const dense = llamaGgufTensors.filter(({ name }) => !/ffn_(gate|up|down)/.test(name));
  const router = f32("blk.0.ffn_gate_inp.weight", [2, 64]);
  const experts = { "llama.expert_count": 2, "llama.expert_used_count": 1 };

  test("fused, or each by itself: the same model", async () => {
    const shapes = { gate: [96, 64], up: [96, 64], down: [64, 96] } as const;
    const fused = Object.entries(shapes).map(([name, shape], i) =>
      f32(`blk.0.ffn_${name}_exps.weight`, [2, ...shape], i),
    );
    const apart = fused.flatMap((whole, i) =>
      [0, 1].map((expert): GgufTensorSpec => {
        const [name, shape] = Object.entries(shapes)[i]!;
        const data = whole.data.subarray(expert * 96 * 64 * 4, (expert + 1) * 96 * 64 * 4);
        return { name: `blk.0.ffn_${name}.${expert}.weight`, shape, type: 0, data };
      }),
    );
    using a = await openGguf(write({ ...llamaGgufMetadata, ...experts }, [...dense, router, ...fused]));
    using b = await openGguf(write({ ...llamaGgufMetadata, ...experts }, [...dense, router, ...apart]));
    const inside = (model: typeof a) =>
      new Map(
        model.tensors.filter(({ name }) => name.includes("experts")).map((tensor) => [tensor.name, floats(tensor)]),
      );
    expect(inside(a)).toEqual(inside(b));
    expect([...inside(a).keys()].sort()[0]).toBe("model.layers.0.block_sparse_moe.experts.0.w1.weight");
    expect(a.config).toMatchObject({ model_type: "mixtral", num_local_experts: 2, num_experts_per_tok: 1 });
    expect(a.tensors.map(({ name }) => name)).toContain("model.layers.0.block_sparse_moe.gate.weight");
  });

  test("qwen2moe's shared expert has a gate of one row", async () => {
    const shared = ["gate", "up", "down"].map((name) =>
      f32(`blk.0.ffn_${name}_shexp.weight`, name === "down" ? [64, 32] : [32, 64]),
    );
    const fused = ["gate", "up", "down"].map((name) =>
      f32(`blk.0.ffn_${name}_exps.weight`, name === "down" ? [2, 64, 32] : [2, 32, 64]),
    );
    const counts = {
      "qwen2moe.expert_count": 2,
      "qwen2moe.expert_used_count": 1,
      "qwen2moe.expert_feed_forward_length": 32,
      "qwen2moe.expert_shared_feed_forward_length": 32,
    };
    const gate = f32("blk.0.ffn_gate_inp_shexp.weight", [64]);
    using model = await openGguf(write(as("qwen2moe", counts), [...dense, router, gate, ...shared, ...fused]));
    const found = Object.fromEntries(model.tensors.map(({ name, shape }) => [name, shape]));
    expect(found["model.layers.0.mlp.shared_expert_gate.weight"]).toEqual([1, 64]);
    expect(found["model.layers.0.mlp.experts.1.down_proj.weight"]).toEqual([64, 32]);
    expect(model.config).toMatchObject({ num_experts: 2, shared_expert_intermediate_size: 32 });
  });
});

test("Gemma's norms have 1 taken off again, and nothing else has", async () => {
  const ones = new Uint8Array(Float32Array.from({ length: 64 }, (_, i) => 1 + i / 64).buffer);
  const tensors = llamaGgufTensors.map((tensor) => (/norm/.test(tensor.name) ? { ...tensor, data: ones } : tensor));
  using model = await openGguf(write(as("gemma", { "gemma.attention.key_length": 16 }), tensors));
  const norm = model.tensors.find(({ name }) => name === "model.norm.weight")!;
  expect(floats(norm)).toEqual(Float32Array.from({ length: 64 }, (_, i) => i / 64));
  const up = model.tensors.find(({ name }) => name.endsWith("up_proj.weight"))!;
  expect(new Uint8Array(up.read())).toEqual(
    new Uint8Array(llamaGgufTensors.find(({ name }) => name.includes("ffn_up"))!.data),
  );
  expect(model.config).toMatchObject({ model_type: "gemma", hidden_activation: "gelu_pytorch_tanh", head_dim: 16 });
});

describe("tokenizers", () => {
  const bytes = { "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2" };
  const vocabulary = {
    ...bytes,
    "tokenizer.ggml.tokens": ["<|end|>", "a", "b", "ab", "<think>", "[PAD5]"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 4, 5],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.ggml.eot_token_id": 4,
    "tokenizer.ggml.add_bos_token": true,
    "tokenizer.chat_template": "{{ messages }}",
  };
  const convert = async (extra: GgufMetadata) => {
    const output = join(scratch, `out-${files++}`);
    const { notes } = await convertGguf(write({ ...llamaGgufMetadata, ...extra }), { output });
    const read = (name: string) => JSON.parse(readFileSync(join(output, name), "utf8"));
    return { notes, read };
  };

  test("byte-level BPE: vocabulary, merges, special tokens, template, ends of generation", async () => {
    const { notes, read } = await convert(vocabulary);
    expect(notes).toEqual([]);
    const { model, added_tokens, normalizer, pre_tokenizer, post_processor } = read("tokenizer.json");
    expect(model.vocab).toEqual({ "<|end|>": 0, a: 1, b: 2, ab: 3, "<think>": 4 });
    expect(model.merges).toEqual([["a", "b"]]);
    const tokens = added_tokens.map(({ id, content, special }: Record<string, unknown>) => [id, content, special]);
    expect(tokens).toEqual([
      [0, "<|end|>", true],
      [4, "<think>", false],
    ]);
    expect(normalizer).toEqual({ type: "NFC" });
    expect(pre_tokenizer.pretokenizers[0].pattern.Regex).toMatch(/\|\\p\{N\}\|/);
    expect(post_processor.single[0]).toEqual({ SpecialToken: { id: "<|end|>", type_id: 0 } });
    expect(read("tokenizer_config.json")).toMatchObject({ chat_template: "{{ messages }}", bos_token: "<|end|>" });
    expect(read("generation_config.json")).toEqual({ bos_token_id: 0, eos_token_id: [0, 4] });
  });

  test("SentencePiece: merges are found from the scores, the best first", async () => {
    const { read } = await convert({
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": ["<unk>", "<s>", "a", "b", "c", "bc", "ab", "abc"],
      "tokenizer.ggml.scores": [0, 0, -9.5, -9, -8, -2, -1.5, -3],
      "tokenizer.ggml.token_type": [2, 3, 1, 1, 1, 1, 1, 1],
      "tokenizer.ggml.bos_token_id": 1,
    });
    const { model, normalizer, post_processor } = read("tokenizer.json");
    expect(model.merges).toEqual([
      ["a", "b"],
      ["b", "c"],
      ["ab", "c"],
      ["a", "bc"],
    ]);
    expect(model).toMatchObject({ unk_token: "<unk>", byte_fallback: true });
    expect(normalizer.normalizers[0]).toEqual({ type: "Prepend", prepend: "\u2581" });
    expect(post_processor.single[0].SpecialToken.id).toBe("<s>");
  });

  test("Gemma's own runs of spaces come before what is merged, the longest first", async () => {
    const tokens = ["<bos>", "  ", "   ", "\u2581", "a", "\u2581a"];
    const metadata = {
      ...as("gemma", { "gemma.attention.key_length": 16 }),
      "tokenizer.ggml.model": "llama",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.scores": tokens.map((_, id) => (id === 5 ? -0.5 : -1000.5)),
      "tokenizer.ggml.token_type": [3, 4, 4, 1, 1, 1],
      "tokenizer.ggml.bos_token_id": 0,
    };
    const output = join(scratch, `out-${files++}`);
    await convertGguf(write(metadata), { output });
    const { model, added_tokens } = JSON.parse(readFileSync(join(output, "tokenizer.json"), "utf8"));
    const [one, two, three] = [1, 2, 3].map((count) => "\u2581".repeat(count));
    expect(added_tokens.map(({ content }: Record<string, unknown>) => content)).toEqual(["<bos>", two, three]);
    expect(model.merges).toEqual([
      [two, one],
      [one, two],
      [one, one],
      [one, "a"],
    ]);
  });

  test("WordPiece: pieces that go on are marked again", async () => {
    const { read } = await convert({
      "tokenizer.ggml.model": "bert",
      "tokenizer.ggml.tokens": ["[CLS]", "[SEP]", "[UNK]", "\u2581play", "ing"],
    });
    expect(read("tokenizer.json").model.vocab).toEqual({ "[CLS]": 0, "[SEP]": 1, "[UNK]": 2, play: 3, "##ing": 4 });
  });

  // Letter by letter, as Hugging Face's tokenizers split texts by them (test/real/vocabularies.ts): to be renewed only
  // with that test run.
  const pieces = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "<0x0A>", "\u2581", "a", "\u2581a"],
    "tokenizer.ggml.scores": [0, 0, 0, -3, -2, -1],
    "tokenizer.ggml.token_type": [2, 3, 6, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
  };
  const wordPieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581play", "ing"];
  test.each([
    ["qwen2", vocabulary, "143db38af37d4e6a"],
    [
      "llama-bpe",
      { ...vocabulary, "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_eos_token": true },
      "bd576344536962ef",
    ],
    [
      "gpt-2",
      { ...vocabulary, "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.add_bos_token": false },
      "2d922bcd9036486e",
    ],
    ["SentencePiece", pieces, "39e749c05e977e18"],
    ["SentencePiece, no space", { ...pieces, "tokenizer.ggml.add_space_prefix": false }, "0e78d3a122bc6d86"],
    ["SentencePiece of Gemma", { ...as("gemma", { "gemma.attention.key_length": 16 }), ...pieces }, "3d9ee408a9ae6c4d"],
    ["WordPiece", { "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": wordPieces }, "a2dd93f51df5a5b1"],
  ])("%s, whole", async (_, metadata: GgufMetadata, want) => {
    const text = JSON.stringify((await convert(metadata)).read("tokenizer.json"));
    expect(new Bun.CryptoHasher("sha256").update(text).digest("hex").slice(0, 16)).toBe(want);
  });

  test("what is not known is not rebuilt, and said", async () => {
    const odd = await convert({ ...vocabulary, "tokenizer.ggml.pre": "of-tomorrow" });
    expect(odd.notes.join()).toMatch(/splits text as of-tomorrow, which is not rebuilt: copy tokenizer.json/);
    const other = await convert({ ...vocabulary, "tokenizer.ggml.model": "rwkv" });
    expect(other.notes.join()).toMatch(/of the kind rwkv, which is not rebuilt/);
  });
});

describe("weights as they are", () => {
  const numbers = {
    Q4_0: 2,
    Q4_1: 3,
    Q5_0: 6,
    Q5_1: 7,
    Q8_0: 8,
    Q2_K: 10,
    Q3_K: 11,
    Q4_K: 12,
    Q5_K: 13,
    Q6_K: 14,
    IQ4_NL: 20,
    IQ4_XS: 23,
    MXFP4: 39,
  };
  const golden = openSafetensors(join(import.meta.dir, "golden/gguf.safetensors"));

  test.each(Object.entries(numbers))(
    "%s: its own codes and scales, and gguf-py's values to the bit",
    async (name, type) => {
      const data = golden.tensor(`${name}.data`).bytes.slice();
      const shapes = { down: [2, 768], up: [96, 64] };
      const tensors = llamaGgufTensors.map((tensor) =>
        tensor.name === "blk.0.ffn_down.weight" ? { ...tensor, shape: shapes.down, type, data } : tensor,
      );
      using model = await openGguf(write(llamaGgufMetadata, tensors));
      using w = checkpoint.loadGguf(model, "model.layers.0.mlp.down_proj.weight") as QuantizedTensor;
      expect(w).toBeInstanceOf(QuantizedTensor);
      using dense = dequantizeBlockwise(w, { dtype: "float32" });
      const got = dense.read() as Float32Array;
      const expected = golden.tensor(`${name}.values`).values as Float32Array;
      // A GPU takes subnormal numbers for zeros, and MXFP4's smallest scale is one: 2^-127, for codes of up to 12.
      const cpu = w.device.kind === "cpu";
      const held = (value: number) => (cpu || Math.abs(value) > 12 * 2 ** -127 ? value : 0);
      expect(got.filter((value, i) => !Object.is(held(value), held(expected[i]!))).length).toBe(0);
      // MXFP4's exponents are nested codes by a float, which is one for the whole tensor.
      const inFile = (8 * (data.length + (name === "MXFP4" ? 4 : 0))) / (2 * 768);
      expect(w.bitsPerElement).toBe(inFile);
      using joined = joinRows([w, w]); // as a model does with q, k and v
      expect(joined.bitsPerElement).toBe(inFile);
      using twice = dequantizeBlockwise(joined, { dtype: "float32" });
      expect((twice.read() as Float32Array).subarray(got.length)).toEqual(got);
    },
  );

  test("other types are dense", async () => {
    using model = await openGguf(write(llamaGgufMetadata));
    using w = checkpoint.loadGguf(model, "model.norm.weight", { dtype: "bfloat16" });
    expect([w instanceof Tensor, w.dtype, w.shape]).toEqual([true, "bfloat16", [64]]);
    expect(() => checkpoint.loadGguf(model, "norm")).toThrow(/has no weight "norm"/);
  });
});
