// Which modules of which models are quantised: transformers' own choice, family by family, and what is done with
// models that
// store their weights by columns.
import { afterAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { chooseModules, staysFloat32 } from "../src/checkpoint/huggingface.ts";
import { inspectCheckpoint, verifyCheckpoint } from "../src/checkpoint/inspect.ts";
import { moduleData } from "../src/checkpoint/modules.ts";
import { fromStateDict } from "../src/checkpoint/statedict.ts";
import { dequantizeCheckpoint, quantizeCheckpoint } from "../src/checkpoint/transform.ts";
import { transposed } from "../src/checkpoint/transpose.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { dequantizeBlockwise, type QuantizedTensor, quantize4bit, Tensor } from "../src/index.ts";
import { weights } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-modules-"));
afterAll(() => rmSync(scratch, { recursive: true }));

type Extents = Record<string, number[]>;

const tensors = (shapes: Extents) =>
  Object.entries(shapes).map(([name, shape]) => ({ name, shape, dtype: "F32" as const }));

function choose(config: object, shapes: Extents) {
  const choice = chooseModules(tensors(shapes), config as never);
  const short = (names: Iterable<string>) => [...names].map((name) => name.replace(/\.weight$/, "")).sort();
  return { quantised: short(choice.weights), kept: short(choice.kept.keys()), choice };
}

const matrix = [64, 64];

/**
 * What transformers 5.24 makes of modules: type, class, those that it replaces, those that it keeps, and other tensors.
 */
const families: [type: string, architecture: string, quantised: string[], kept: string[], others?: Extents][] = [
  [
    "mixtral",
    "MixtralForCausalLM",
    ["model.layers.0.self_attn.q_proj"],
    ["lm_head", "model.layers.0.block_sparse_moe.experts.0.w1", "model.layers.0.block_sparse_moe.gate"],
  ],
  [
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    ["model.layers.0.self_attn.q_proj"],
    ["lm_head", "model.layers.0.mlp.experts.0.up_proj", "model.layers.0.mlp.gate"],
  ],
  ["deepseek_v3", "DeepseekV3ForCausalLM", ["model.layers.3.mlp.shared_experts.up_proj"], ["model.layers.3.mlp.gate"]],
  ["clip", "CLIPModel", ["visual_projection", "text_model.encoder.layers.0.mlp.fc1"], ["text_projection"]],
  [
    "clip_vision_model",
    "CLIPVisionModelWithProjection",
    ["vision_model.encoder.layers.0.mlp.fc1"],
    ["visual_projection"],
  ],
  [
    "siglip",
    "SiglipModel",
    ["text_model.head", "vision_model.encoder.layers.0.self_attn.out_proj"],
    ["vision_model.head.attention.out_proj"],
    { "vision_model.head.attention.in_proj_weight": [192, 64] },
  ],
  [
    "wav2vec2",
    "Wav2Vec2ForCTC",
    ["lm_head", "wav2vec2.encoder.layers.0.attention.k_proj"],
    [],
    { "lm_head.bias": [64] },
  ],
  ["falcon", "FalconForCausalLM", [], ["lm_head", "transformer.h.0.mlp.dense_h_to_4h", "transformer.word_embeddings"]],
  [
    "t5",
    "T5ForConditionalGeneration",
    ["encoder.block.0.layer.1.DenseReluDense.wi"],
    ["encoder.block.0.layer.1.DenseReluDense.wo", "shared"],
  ],
  ["qwen3_vl", "Qwen3VLForConditionalGeneration", ["model.visual.blocks.0.attn.qkv"], ["model.visual.pos_embed"]],
  ["llama", "LlamaForCausalLM", ["model.layers.0.mlp.up_proj"], ["lm_head", "model.embed_tokens"]],
];

describe("what transformers chooses", () => {
  test.each(families)("%s, %s", (model_type, architecture, quantised, kept, others = {}) => {
    const shapes = Object.fromEntries([...quantised, ...kept].map((name) => [`${name}.weight`, matrix]));
    const found = choose({ model_type, architectures: [architecture] }, { ...shapes, ...others });
    expect(found.quantised).toEqual(quantised.toSorted());
    expect(found.kept).toEqual(kept.toSorted());
  });

  test("the data has every type, and says of which release", () => {
    expect(moduleData.transformers).toMatch(/^5\.\d+\.\d+$/);
    expect(Object.keys(moduleData.types).length).toBeGreaterThan(500);
  });

  test("a part of a model is known by its own type, but has no head of its own", () => {
    const config = {
      model_type: "new-kind",
      text_config: { model_type: "mixtral" },
      vision_config: { model_type: "clip" },
    };
    const shapes = { "text.layers.0.mlp.gate.weight": matrix, "vision.text_projection.weight": matrix };
    expect(choose(config, shapes)).toMatchObject({
      quantised: ["vision.text_projection"],
      kept: ["text.layers.0.mlp.gate"],
    });
  });

  test("a GPT-2 inside another model is stored by columns as it is by itself", () => {
    const config = {
      model_type: "vision-encoder-decoder",
      architectures: ["VisionEncoderDecoderModel"],
      encoder: { model_type: "vit" },
      decoder: { model_type: "gpt2" },
    };
    const [columns, rows] = ["decoder.transformer.h.0.attn.c_attn", "encoder.encoder.layer.0.intermediate.dense"];
    const shapes = { [`${columns}.weight`]: [64, 192], [`${columns}.bias`]: [192], [`${rows}.weight`]: matrix };
    const { quantised, choice } = choose(config, shapes);
    expect([quantised, [...choice.transposed]]).toEqual([[columns, rows], [`${columns}.weight`]]);
  });

  test("an unknown type goes by structure: routers, attention of torch's, embeddings, heads", () => {
    const shapes = {
      "layers.0.moe.gate.weight": matrix,
      "layers.0.moe.experts.0.up_proj.weight": matrix,
      "layers.0.mlp.gate.weight": matrix,
      "pool.out_proj.weight": matrix,
      "pool.in_proj_weight": [192, 64],
      "layers.0.out_proj.weight": matrix,
      "pos_embed.weight": matrix,
    };
    expect(choose({ model_type: "unheard-of" }, shapes).quantised).toEqual(["layers.0.mlp.gate", "layers.0.out_proj"]);
  });

  test("weights by columns of an unknown type are refused: bitsandbytes would read them the wrong way round", () => {
    const shapes = {
      "h.0.attn.c_attn.weight": [64, 192],
      "h.0.attn.c_attn.bias": [192],
      "h.0.attn.c_proj.weight": matrix,
    };
    expect(() => choose({ model_type: "unheard-of" }, shapes)).toThrow(/unheard-of: .*c_attn.* are stored by columns/);
    const { choice } = choose({ model_type: "gpt2" }, { ...shapes, "wte.weight": matrix });
    expect([...choice.transposed]).toEqual(["h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight"]);
  });
});

describe("what stays float32", () => {
  test.each([
    ["deepseek_v3", "model.layers.3.mlp.gate.e_score_correction_bias", true, true],
    ["t5", "encoder.block.0.layer.1.DenseReluDense.wo.weight", true, false],
    ["llama", "model.norm.weight", false, false],
  ])("%s: %s", (model_type, name, inHalf, inBfloat16) => {
    const stays = staysFloat32({ model_type });
    expect([stays(name, "float16"), stays(name, "bfloat16"), stays(name, "float32")]).toEqual([
      inHalf,
      inBfloat16,
      false,
    ]);
  });

  test("it is written as it is, and why", async () => {
    const input = join(scratch, "deepseek");
    mkdirSync(input);
    const bias = Float32Array.of(0.1000001, 0.1000002, 0.1000003, 0.1000004);
    await writeSafetensors(join(input, "model.safetensors"), [
      { name: "model.layers.0.mlp.gate.e_score_correction_bias", dtype: "F32", shape: [4], bytes: bias },
      { name: "model.layers.0.self_attn.o_proj.weight", dtype: "F32", shape: [64, 64], bytes: weights(64 * 64) },
    ]);
    writeFileSync(
      join(input, "config.json"),
      '{"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}',
    );
    const output = join(scratch, "deepseek-nf4");
    const { stays } = await quantizeCheckpoint(input, { output, dtype: "bfloat16" });
    expect(stays).toEqual({
      "model.layers.0.mlp.gate.e_score_correction_bias":
        "not a matrix of a linear layer; in float32, as in transformers",
    });
    using opened = openCheckpoint(output);
    const kept = opened.tensors.get("model.layers.0.mlp.gate.e_score_correction_bias")!;
    expect([kept.dtype, [...(kept.values as Float32Array)]]).toEqual(["F32", [...bias]]);
  });
});

describe("GPT-2's weights by columns", () => {
  const input = join(scratch, "gpt2");
  const name = "transformer.h.0.mlp.c_fc.weight";
  const values = weights(64 * 256);
  const make = async () => {
    mkdirSync(input, { recursive: true });
    await writeSafetensors(join(input, "model.safetensors"), [
      { name, dtype: "F32", shape: [64, 256], bytes: values },
      { name: "transformer.h.0.mlp.c_fc.bias", dtype: "F32", shape: [256], bytes: weights(256) },
    ]);
    writeFileSync(join(input, "config.json"), '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}');
  };

  test.each(["nf4", "int8"] as const)("%s: transposed as transformers does, and back", async (quantType) => {
    await make();
    const output = join(scratch, `gpt2-${quantType}`);
    await quantizeCheckpoint(input, { output, quantType });
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
    using opened = openCheckpoint(output);
    if (quantType === "nf4") {
      using expected = quantize4bit(Tensor.from(transposed(values, [64, 256]), [256, 64]));
      using stored = fromStateDict(opened.quantized.get(name)!) as QuantizedTensor;
      expect(stored.shape).toEqual([256, 64]);
      expect(stored.codes.read()).toEqual(expected.codes.read());
      const dense = join(scratch, "gpt2-dense");
      await dequantizeCheckpoint(output, { output: dense });
      using again = openCheckpoint(dense);
      using wide = dequantizeBlockwise(expected);
      expect(again.tensors.get(name)!.shape).toEqual([64, 256]);
      expect(again.tensors.get(name)!.values as Float32Array).toEqual(
        transposed(wide.read() as Float32Array, [256, 64]),
      );
    }
    const [worst] = await inspectCheckpoint(output, { errorAgainst: input });
    expect(worst!.error!.relative).toBeLessThan(0.12);
  });

  test("a transpose moves bits, whatever they stand for", () => {
    const bits = Uint32Array.from({ length: 35 * 67 }, (_, i) => 0x7f800001 + i); // all are NaN as floats
    const floats = new Float32Array(bits.buffer);
    const there = transposed(floats, [35, 67]);
    expect(new Uint32Array(there.buffer as ArrayBuffer)[66 * 35 + 34]).toBe(bits[34 * 67 + 66]);
    expect(new Uint32Array(transposed(there, [67, 35]).buffer as ArrayBuffer)).toEqual(bits);
  });
});

describe("verify knows the choice", () => {
  async function quantizedMixtral(name: string, skip?: string[]): Promise<string> {
    const input = join(scratch, `${name}-input`);
    mkdirSync(input);
    const names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate.weight", "lm_head.weight"];
    const made = names.map((tensor, seed) => ({
      name: tensor,
      dtype: "F32" as const,
      shape: matrix,
      bytes: weights(64 * 64, seed),
    }));
    await writeSafetensors(join(input, "model.safetensors"), made);
    writeFileSync(join(input, "config.json"), '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}');
    const output = join(scratch, name);
    await quantizeCheckpoint(input, { output, ...(skip && { skip }) });
    return output;
  }

  test("a router that is quantised, though transformers keeps it, is a problem", async () => {
    const output = await quantizedMixtral("as-llama");
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
    const path = join(output, "config.json");
    writeFileSync(path, readFileSync(path, "utf8").replace('"llama"', '"mixtral"').replace("LlamaFor", "MixtralFor"));
    expect((await verifyCheckpoint(output)).problems).toEqual([
      "Quantised, but not in transformers, which would refuse or misread it: model.layers.0.mlp.gate.weight (a MixtralTopKRouter in transformers, which is not exactly an nn.Linear).",
    ]);
  });

  test("so is a weight that is not, and the list of skipped modules counts", async () => {
    const output = await quantizedMixtral("skipped", ["q_proj"]);
    expect((await verifyCheckpoint(output)).problems).toEqual([]);
    const path = join(output, "config.json");
    writeFileSync(path, readFileSync(path, "utf8").replace('"q_proj"', '"other"'));
    expect((await verifyCheckpoint(output)).problems).toEqual([
      "Not quantised, but transformers expects it to be: model.layers.0.self_attn.q_proj.weight.",
    ]);
  });
});
