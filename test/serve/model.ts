// A model for the server's tests: random weights, and a vocabulary of all bytes, so that it can write whatever is asked
// for.
import { mkdirSync, writeFileSync } from "node:fs";
import { writeSafetensors } from "../../src/checkpoint/writer.ts";
import { normal } from "../cases.ts";

const [hidden, middle, heads, kvHeads, headDim, layers] = [32, 64, 4, 2, 8, 2];
const specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"];

/** How GPT-2 spells bytes: those that print are themselves, the others move past 256. */
function spelledBytes(): string[] {
  const prints = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173);
  let moved = 0;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(prints(byte) ? byte : 256 + moved++));
}

/** What a chat's prompt says of functions, by how a family has them called. */
const offers = {
  hermes: ["<tools>", '</tools> as <tool_call>\n{"name": …, "arguments": …}\n</tool_call>'],
  llama3: ["Answer with JSON that calls one of ", ' as {"name": …, "parameters": …}'],
  mistral: ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"],
};

const template = ([before, after]: string[]) =>
  `{% if tools %}<|im_start|>system\n${before}{% for tool in tools %}{{ tool | tojson }}{% endfor %}${after}<|im_end|>\n{% endif %}` +
  "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/** Writes the model's folder. Without `eos` its texts have no end of their own. */
export async function byteModel(
  folder: string,
  { eos = [2, 4], positions = 1024, tools = "hermes" as keyof typeof offers } = {},
): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const vocabulary = [...specials, ...spelledBytes()];
  const json = (name: string, value: object) => writeFileSync(`${folder}/${name}`, JSON.stringify(value));
  json("config.json", {
    ...{ architectures: ["LlamaForCausalLM"], model_type: "llama", hidden_act: "silu", dtype: "float32" },
    ...{ hidden_size: hidden, intermediate_size: middle, num_attention_heads: heads, num_key_value_heads: kvHeads },
    ...{ head_dim: headDim, num_hidden_layers: layers, vocab_size: vocabulary.length, rms_norm_eps: 1e-6 },
    ...{ max_position_embeddings: positions, rope_parameters: { rope_theta: 10000, rope_type: "default" } },
    ...{ tie_word_embeddings: false, bos_token_id: 1, eos_token_id: eos, pad_token_id: 0 },
  });
  json("tokenizer_config.json", {
    ...{ bos_token: "<s>", eos_token: "</s>", pad_token: "<pad>", tokenizer_class: "PreTrainedTokenizerFast" },
    ...{ chat_template: template(offers[tools]), clean_up_tokenization_spaces: false },
  });
  const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  json("tokenizer.json", {
    ...{ version: "1.0", truncation: null, padding: null, normalizer: null, pre_tokenizer: bytes, decoder: bytes },
    added_tokens: specials.map((content, id) => ({
      ...{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true },
    })),
    post_processor: null,
    model: { type: "BPE", vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])), merges: [] },
  });
  let seed = 1;
  const weight = (rows: number, columns: number) => ({
    ...{ dtype: "F32" as const, shape: [rows, columns], bytes: normal(rows * columns, seed++, 0.3) },
  });
  const ones = () => ({ dtype: "F32" as const, shape: [hidden], bytes: new Float32Array(hidden).fill(1) });
  const tensors: Record<string, ReturnType<typeof weight>> = {
    "model.embed_tokens.weight": weight(vocabulary.length, hidden),
    "lm_head.weight": weight(vocabulary.length, hidden),
    "model.norm.weight": ones(),
  };
  for (let i = 0; i < layers; i++) {
    const at = `model.layers.${i}`;
    tensors[`${at}.input_layernorm.weight`] = ones();
    tensors[`${at}.post_attention_layernorm.weight`] = ones();
    tensors[`${at}.self_attn.q_proj.weight`] = weight(heads * headDim, hidden);
    tensors[`${at}.self_attn.k_proj.weight`] = weight(kvHeads * headDim, hidden);
    tensors[`${at}.self_attn.v_proj.weight`] = weight(kvHeads * headDim, hidden);
    tensors[`${at}.self_attn.o_proj.weight`] = weight(hidden, heads * headDim);
    tensors[`${at}.mlp.gate_proj.weight`] = weight(middle, hidden);
    tensors[`${at}.mlp.up_proj.weight`] = weight(middle, hidden);
    tensors[`${at}.mlp.down_proj.weight`] = weight(hidden, middle);
  }
  const sources = Object.entries(tensors).map(([name, tensor]) => ({ name, ...tensor }));
  await writeSafetensors(`${folder}/model.safetensors`, sources);
}
