// The families: what each calls its modules and where its norms stand. What a number decides is read in config.ts.
import type { Activation } from "../activate.ts";
import type { ExpertNames, ModuleNames } from "./architecture.ts";

export interface Family {
  readonly kind: "decoder" | "encoder";
  readonly names: ModuleNames;
  readonly norm: "rms" | "layer";
  readonly normOffset?: number;
  readonly qkNorm?: "head" | "all";
  readonly gated?: boolean;
  readonly activation?: Activation;
  readonly parallel?: boolean;
  /** The embedding is multiplied by √hidden, as in Gemma. */
  readonly scaledEmbedding?: boolean;
  /** Every so many layers one attends to all; the others to a window, where layer_types does not say. */
  readonly slidingPattern?: number;
  /** The window where the config says nothing of one. */
  readonly defaultWindow?: number;
  readonly tied?: boolean;
  readonly firstPosition?: number;
  /** Experts are normalised whatever the config says. */
  readonly normalisesExperts?: boolean;
  readonly defaultTheta?: number;
  /** Every so many layers one has no positions, where the config has no list of them. */
  readonly unrotatedInterval?: number;
}

const llamaNames: ModuleNames = {
  roots: ["model.", "language_model.model.", "model.language_model.", ""],
  embedding: "embed_tokens",
  layer: "layers.{}.",
  qkv: [["self_attn.qkv_proj"], ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]],
  attentionOut: "self_attn.o_proj",
  norms: { beforeAttention: "input_layernorm", beforeMlp: "post_attention_layernorm" },
  mlpIn: [["mlp.gate_up_proj"], ["mlp.gate_proj", "mlp.up_proj"]],
  mlpOut: "mlp.down_proj",
  finalNorm: "norm",
  head: "lm_head",
};

const qkNormNames = { qNorm: "self_attn.q_norm", kNorm: "self_attn.k_norm" };

const qwenExperts: ExpertNames = {
  router: "mlp.gate",
  gate: "mlp.experts.{}.gate_proj",
  up: "mlp.experts.{}.up_proj",
  down: "mlp.experts.{}.down_proj",
};

const llama: Family = { kind: "decoder", names: llamaNames, norm: "rms", gated: true };
const gemma: Family = { ...llama, normOffset: 1, scaledEmbedding: true, activation: "geluTanh", tied: true };

const sandwich = {
  beforeAttention: "input_layernorm",
  afterAttention: "post_attention_layernorm",
  beforeMlp: "pre_feedforward_layernorm",
  afterMlp: "post_feedforward_layernorm",
};

const gemma3: Family = {
  ...gemma,
  names: { ...llamaNames, ...qkNormNames, norms: sandwich },
  qkNorm: "head",
  slidingPattern: 6,
  defaultWindow: 4096,
  defaultTheta: 1e6,
};

const bertNames: ModuleNames = {
  roots: ["", "bert.", "roberta.", "mpnet."],
  embedding: "embeddings.word_embeddings",
  positions: "embeddings.position_embeddings",
  tokenTypes: "embeddings.token_type_embeddings",
  embeddingNorm: "embeddings.LayerNorm",
  layer: "encoder.layer.{}.",
  qkv: [["attention.self.query", "attention.self.key", "attention.self.value"]],
  attentionOut: "attention.output.dense",
  norms: { sumAttention: "attention.output.LayerNorm", sumMlp: "output.LayerNorm" },
  mlpIn: [["intermediate.dense"]],
  mlpOut: "output.dense",
};

const bert: Family = { kind: "encoder", names: bertNames, norm: "layer" };
const roberta: Family = { ...bert, firstPosition: 2 };

/** Every family that is known, by transformers' `model_type`. */
export const families: Readonly<Record<string, Family>> = {
  llama,
  mistral: { ...llama, defaultWindow: 4096 },
  mixtral: {
    ...llama,
    normalisesExperts: true,
    names: {
      ...llamaNames,
      experts: {
        router: "block_sparse_moe.gate",
        gate: "block_sparse_moe.experts.{}.w1",
        up: "block_sparse_moe.experts.{}.w3",
        down: "block_sparse_moe.experts.{}.w2",
      },
    },
  },
  qwen2: llama,
  qwen2_moe: {
    ...llama,
    names: {
      ...llamaNames,
      experts: { ...qwenExperts, shared: { gate: "mlp.shared_expert_gate", mlp: "mlp.shared_expert." } },
    },
  },
  qwen3: { ...llama, qkNorm: "head", names: { ...llamaNames, ...qkNormNames } },
  qwen3_moe: { ...llama, qkNorm: "head", names: { ...llamaNames, ...qkNormNames, experts: qwenExperts } },
  smollm3: { ...llama, defaultTheta: 2e6, unrotatedInterval: 4 },
  gemma,
  gemma2: { ...gemma, names: { ...llamaNames, norms: sandwich }, slidingPattern: 2, defaultWindow: 4096 },
  gemma3,
  gemma3_text: gemma3,
  phi: {
    kind: "decoder",
    norm: "layer",
    parallel: true,
    names: {
      ...llamaNames,
      attentionOut: "self_attn.dense",
      norms: { beforeAttention: "input_layernorm" },
      mlpIn: [["mlp.fc1"]],
      mlpOut: "mlp.fc2",
      finalNorm: "final_layernorm",
    },
  },
  phi3: llama,
  granite: llama,
  olmo2: {
    ...llama,
    qkNorm: "all",
    names: {
      ...llamaNames,
      ...qkNormNames,
      norms: { afterAttention: "post_attention_layernorm", afterMlp: "post_feedforward_layernorm" },
    },
  },
  bert,
  roberta,
  "xlm-roberta": roberta,
  mpnet: {
    ...roberta,
    names: {
      ...bertNames,
      relativeBias: "encoder.relative_attention_bias",
      qkv: [["attention.attn.q", "attention.attn.k", "attention.attn.v"]],
      attentionOut: "attention.attn.o",
      norms: { sumAttention: "attention.LayerNorm", sumMlp: "output.LayerNorm" },
    },
  },
  modernbert: {
    kind: "encoder",
    norm: "layer",
    gated: true,
    slidingPattern: 3,
    defaultTheta: 160000,
    names: {
      roots: ["", "model."],
      embedding: "embeddings.tok_embeddings",
      embeddingNorm: "embeddings.norm",
      layer: "layers.{}.",
      qkv: [["attn.Wqkv"]],
      attentionOut: "attn.Wo",
      norms: { beforeAttention: "attn_norm", beforeMlp: "mlp_norm" },
      mlpIn: [["mlp.Wi"]],
      mlpOut: "mlp.Wo",
      finalNorm: "final_norm",
    },
  },
  nomic_bert: {
    kind: "encoder",
    norm: "layer",
    gated: true,
    defaultTheta: 1000,
    names: {
      roots: ["", "bert."],
      embedding: "embeddings.word_embeddings",
      tokenTypes: "embeddings.token_type_embeddings",
      embeddingNorm: "emb_ln",
      layer: "encoder.layers.{}.",
      qkv: [["attn.Wqkv"]],
      attentionOut: "attn.out_proj",
      norms: { sumAttention: "norm1", sumMlp: "norm2" },
      mlpIn: [["mlp.fc12", "mlp.fc11"]], // the second is what the first lets through
      mlpOut: "mlp.fc2",
    },
  },
};
