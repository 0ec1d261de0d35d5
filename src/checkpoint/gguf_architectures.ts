// The architectures of GGUF that can be read: what their tensors are called in Hugging Face's models, which a
// model must
// have, and what sets their config.json apart.
import type { PyValue } from "./pyjson.ts";
import { PyFloat } from "./pyjson.ts";

/** What a file's metadata says, by the part of a key that follows the architecture's name. */
export interface Facts {
  count(key: string): number;
  /** A count, or undefined where the file has none. */
  optional(key: string): number | undefined;
  /** A number as fp32 held it, in its shortest spelling. */
  float(key: string): number | undefined;
  /** Whether the model has a tensor of this name, in GGUF's spelling without `blk.N.`. */
  has(stem: string): boolean;
}

export interface Architecture {
  readonly model: string;
  readonly type: string;
  /** Module names of tensors that stand once. */
  readonly whole: Readonly<Record<string, string>>;
  /** What layers are called, and the names of their modules below. */
  readonly layers: string;
  readonly layer: Readonly<Record<string, string>>;
  /** Tensors without which there is no model: of each layer, all others of `layer` may be missing. */
  readonly needs: readonly string[];
  /** Rows of q and k are in the order of llama.cpp's rotary embedding. */
  readonly interleaved?: true;
  /** Norms have 1 added. */
  readonly normsPlusOne?: true;
  /** What three fused matrices of experts are called apart, where a layer has them. */
  readonly experts?: { readonly in: string; readonly names: Readonly<Record<string, string>> };
  /** Heads of its own in rotary embedding and attention, as far as they differ from llama's; `null` takes a key out. */
  config?(facts: Facts): Readonly<Record<string, PyValue | undefined>>;
}

const llamaWhole = { token_embd: "model.embed_tokens", output_norm: "model.norm", output: "lm_head" };

const attention = {
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
};

const gated = { ffn_gate: "mlp.gate_proj", ffn_up: "mlp.up_proj", ffn_down: "mlp.down_proj" };
const norms = { attn_norm: "input_layernorm", ffn_norm: "post_attention_layernorm" };
const headNorms = { attn_q_norm: "self_attn.q_norm", attn_k_norm: "self_attn.k_norm" };

const llama = {
  whole: llamaWhole,
  layers: "model.layers",
  layer: { ...norms, ...attention, ...gated },
  needs: [...Object.keys(norms), ...Object.keys(attention), ...Object.keys(gated)],
} as const;

const withHeadNorms = { layer: { ...llama.layer, ...headNorms }, needs: [...llama.needs, ...Object.keys(headNorms)] };

const qwenExperts = {
  in: "mlp.experts",
  names: { ffn_gate_exps: "gate_proj", ffn_up_exps: "up_proj", ffn_down_exps: "down_proj" },
};

/** The tensors of experts stand in the place of the gated ones. */
const expertNeeds = [
  ...Object.keys(norms),
  ...Object.keys(attention),
  "ffn_gate_inp",
  ...Object.keys(qwenExperts.names),
];

const float = (value: number | undefined) => (value === undefined ? undefined : new PyFloat(value));

/** Norms before and after both halves of a layer. */
const fourNorms = {
  attn_norm: "input_layernorm",
  post_attention_norm: "post_attention_layernorm",
  ffn_norm: "pre_feedforward_layernorm",
  post_ffw_norm: "post_feedforward_layernorm",
};

const gemma = { ...llama, normsPlusOne: true } as const;

/** gemma's largest models of 2 and 3 scale attention by the head's share of the width, all others by its own. */
const queryScale = (facts: Facts, largest: number) =>
  facts.count("block_count") === largest
    ? facts.count("embedding_length") / facts.count("attention.head_count")
    : facts.count("attention.key_length");

const layerNorm = (facts: Facts) => float(facts.float("attention.layer_norm_epsilon") ?? 1e-5);

const bert = {
  whole: {
    token_embd: "embeddings.word_embeddings",
    position_embd: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    token_embd_norm: "embeddings.LayerNorm",
  },
  layers: "encoder.layer",
  layer: {
    attn_q: "attention.self.query",
    attn_k: "attention.self.key",
    attn_v: "attention.self.value",
    attn_output: "attention.output.dense",
    attn_output_norm: "attention.output.LayerNorm",
    ffn_up: "intermediate.dense",
    ffn_down: "output.dense",
    layer_output_norm: "output.LayerNorm",
  },
} as const;

const nomic = {
  whole: {
    token_embd: "embeddings.word_embeddings",
    token_types: "embeddings.token_type_embeddings",
    token_embd_norm: "emb_ln",
  },
  layers: "encoder.layers",
  layer: {
    attn_qkv: "attn.Wqkv",
    attn_output: "attn.out_proj",
    attn_output_norm: "norm1",
    ffn_up: "mlp.fc11",
    ffn_gate: "mlp.fc12",
    ffn_down: "mlp.fc2",
    layer_output_norm: "norm2",
  },
} as const;

const encoderConfig = (facts: Facts): Record<string, PyValue | undefined> => ({
  hidden_act: "gelu",
  layer_norm_eps: float(facts.float("attention.layer_norm_epsilon") ?? 1e-12),
  num_key_value_heads: null,
  rms_norm_eps: null,
  rope_theta: null,
  tie_word_embeddings: null,
  type_vocab_size: 2,
});

/** By GGUF's name, `general.architecture`. */
export const architectures: Readonly<Record<string, Architecture>> = {
  llama: {
    ...llama,
    model: "LlamaForCausalLM",
    type: "llama",
    interleaved: true,
    config: (facts) => ({
      attention_bias: facts.has("attn_q.bias") || undefined,
      mlp_bias: facts.has("ffn_up.bias") || undefined,
    }),
  },
  qwen2: { ...llama, model: "Qwen2ForCausalLM", type: "qwen2" },
  qwen3: { ...llama, ...withHeadNorms, model: "Qwen3ForCausalLM", type: "qwen3" },
  qwen2moe: {
    ...llama,
    layer: {
      ...norms,
      ...attention,
      ffn_gate_inp: "mlp.gate",
      ffn_gate_inp_shexp: "mlp.shared_expert_gate",
      ffn_gate_shexp: "mlp.shared_expert.gate_proj",
      ffn_up_shexp: "mlp.shared_expert.up_proj",
      ffn_down_shexp: "mlp.shared_expert.down_proj",
    },
    needs: [...expertNeeds, "ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"],
    experts: qwenExperts,
    model: "Qwen2MoeForCausalLM",
    type: "qwen2_moe",
    config: (facts) => ({
      ...expertCounts(facts),
      shared_expert_intermediate_size: facts.count("expert_shared_feed_forward_length"),
    }),
  },
  qwen3moe: {
    ...llama,
    layer: { ...norms, ...attention, ...headNorms, ffn_gate_inp: "mlp.gate" },
    needs: [...expertNeeds, ...Object.keys(headNorms)],
    experts: qwenExperts,
    model: "Qwen3MoeForCausalLM",
    type: "qwen3_moe",
    config: (facts) => ({ ...expertCounts(facts), norm_topk_prob: true }),
  },
  gemma: {
    ...gemma,
    model: "GemmaForCausalLM",
    type: "gemma",
    config: () => ({ hidden_act: "gelu_pytorch_tanh", hidden_activation: "gelu_pytorch_tanh" }),
  },
  gemma2: {
    ...gemma,
    layer: { ...fourNorms, ...attention, ...gated },
    needs: [...Object.keys(fourNorms), ...Object.keys(attention), ...Object.keys(gated)],
    model: "Gemma2ForCausalLM",
    type: "gemma2",
    config: (facts) => ({
      hidden_act: "gelu_pytorch_tanh",
      hidden_activation: "gelu_pytorch_tanh",
      attn_logit_softcapping: float(facts.float("attn_logit_softcapping")),
      final_logit_softcapping: float(facts.float("final_logit_softcapping")),
      query_pre_attn_scalar: queryScale(facts, 46),
      sliding_window: facts.optional("attention.sliding_window"),
    }),
  },
  gemma3: {
    ...gemma,
    layer: { ...fourNorms, ...attention, ...gated, ...headNorms },
    needs: [
      ...[...Object.keys(fourNorms), ...Object.keys(attention)],
      ...[...Object.keys(gated), ...Object.keys(headNorms)],
    ],
    model: "Gemma3ForCausalLM",
    type: "gemma3_text",
    config: (facts) => ({
      hidden_act: null,
      hidden_activation: "gelu_pytorch_tanh",
      final_logit_softcapping: float(facts.float("final_logit_softcapping")),
      query_pre_attn_scalar: queryScale(facts, 62),
      rope_local_base_freq: float(facts.float("rope.freq_base_swa") ?? 10_000),
      rope_theta: float(facts.float("rope.freq_base") ?? 1_000_000),
      sliding_window: facts.optional("attention.sliding_window"),
      sliding_window_pattern: 6,
    }),
  },
  phi2: {
    whole: { ...llamaWhole, output_norm: "model.final_layernorm" },
    layers: "model.layers",
    layer: {
      attn_norm: "input_layernorm",
      ...attention,
      attn_output: "self_attn.dense",
      ffn_up: "mlp.fc1",
      ffn_down: "mlp.fc2",
    },
    needs: ["attn_norm", ...Object.keys(attention), "ffn_up", "ffn_down"],
    model: "PhiForCausalLM",
    type: "phi",
    config: (facts) => ({
      hidden_act: "gelu_new",
      layer_norm_eps: layerNorm(facts),
      partial_rotary_factor: float(
        facts.count("rope.dimension_count") / (facts.count("embedding_length") / facts.count("attention.head_count")),
      ),
      rms_norm_eps: null,
    }),
  },
  phi3: {
    ...llama,
    layer: {
      ...norms,
      attn_qkv: "self_attn.qkv_proj",
      attn_output: "self_attn.o_proj",
      ffn_up: "mlp.gate_up_proj",
      ffn_down: "mlp.down_proj",
    },
    needs: ["attn_norm", "ffn_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down"],
    model: "Phi3ForCausalLM",
    type: "phi3",
    config: (facts) => {
      const head = facts.count("embedding_length") / facts.count("attention.head_count");
      const turned = facts.optional("rope.dimension_count");
      return {
        original_max_position_embeddings: facts.optional("rope.scaling.original_context_length"),
        partial_rotary_factor: turned === undefined || turned === head ? undefined : float(turned / head),
        sliding_window: facts.optional("attention.sliding_window"),
      };
    },
  },
  granite: {
    ...llama,
    model: "GraniteForCausalLM",
    type: "granite",
    interleaved: true,
    config: (facts) => ({
      attention_bias: facts.has("attn_q.bias") || undefined,
      attention_multiplier: float(facts.float("attention.scale")),
      embedding_multiplier: float(facts.float("embedding_scale")),
      logits_scaling: float(facts.float("logit_scale")),
      mlp_bias: facts.has("ffn_up.bias") || undefined,
      residual_multiplier: float(facts.float("residual_scale")),
    }),
  },
  olmo2: {
    ...llama,
    layer: {
      ...attention,
      ...headNorms,
      ...gated,
      post_attention_norm: "post_attention_layernorm",
      post_ffw_norm: "post_feedforward_layernorm",
    },
    needs: [
      ...[...Object.keys(attention), ...Object.keys(headNorms), ...Object.keys(gated)],
      ...["post_attention_norm", "post_ffw_norm"],
    ],
    model: "Olmo2ForCausalLM",
    type: "olmo2",
  },
  smollm3: { ...llama, model: "SmolLM3ForCausalLM", type: "smollm3", interleaved: true },
  starcoder2: {
    ...llama,
    layer: { ...norms, ...attention, ffn_up: "mlp.c_fc", ffn_down: "mlp.c_proj" },
    needs: [...Object.keys(norms), ...Object.keys(attention), "ffn_up", "ffn_down"],
    model: "Starcoder2ForCausalLM",
    type: "starcoder2",
    config: (facts) => ({
      hidden_act: "gelu_pytorch_tanh",
      norm_epsilon: layerNorm(facts),
      rms_norm_eps: null,
      sliding_window: facts.optional("attention.sliding_window") ?? null,
      use_bias: facts.has("attn_q.bias"),
    }),
  },
  bert: { ...bert, needs: Object.keys(bert.layer), model: "BertModel", type: "bert", config: encoderConfig },
  "nomic-bert": {
    ...nomic,
    needs: Object.keys(nomic.layer),
    model: "NomicBertModel",
    type: "nomic_bert",
    config: (facts) => ({
      ...encoderConfig(facts),
      hidden_act: "silu",
      rope_theta: float(facts.float("rope.freq_base") ?? 1000),
    }),
  },
};

/** llama with experts, which Hugging Face calls Mixtral: fused, or each expert by itself as older files have them. */
export const mixtral: Architecture = {
  ...llama,
  layer: { ...norms, ...attention, ffn_gate_inp: "block_sparse_moe.gate" },
  needs: [...Object.keys(norms), ...Object.keys(attention), "ffn_gate_inp"],
  experts: {
    in: "block_sparse_moe.experts",
    names: { ffn_gate_exps: "w1", ffn_down_exps: "w2", ffn_up_exps: "w3" },
  },
  interleaved: true,
  model: "MixtralForCausalLM",
  type: "mixtral",
  config: (facts) => ({
    num_experts_per_tok: facts.count("expert_used_count"),
    num_local_experts: facts.count("expert_count"),
  }),
};

function expertCounts(facts: Facts): Record<string, PyValue> {
  return {
    moe_intermediate_size: facts.count("expert_feed_forward_length"),
    num_experts: facts.count("expert_count"),
    num_experts_per_tok: facts.count("expert_used_count"),
  };
}
