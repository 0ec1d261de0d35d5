// `bun run bench:serving`: how many tokens a second a model writes in chats at once, against one alone.
//
//   bun run bench:serving ./SmolLM2-135M-Instruct            a model of one's own, quantised while it loads
//   BNB_DEVICE=cuda bun run bench:serving --shape 8b         Llama 3 8B's shape with noise for weights: 16 GB of disk
//
// Each chat has read a prompt of its own when the clock starts. Rounds of one and of many chats take turns; medians.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { type Generation, step } from "../src/model/generation.ts";
import { Model } from "../src/model/model.ts";
import type { Session } from "../src/model/session.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: "string" },
    layers: { type: "string", default: "32" },
    chats: { type: "string", default: "16" },
    prompt: { type: "string", default: "64" },
    tokens: { type: "string", default: "64" },
    rounds: { type: "string", default: "5" },
    "quant-type": { type: "string", default: "nf4" },
  },
});
const [chats, prompt, tokens] = [Number(values.chats), Number(values.prompt), Number(values.tokens)];

/** Noise about as large as weights are, in bfloat16: 0.02 at most, by the exponent and a few bits of the fraction. */
function noise(elements: number): Uint16Array {
  const bits = new Uint16Array(elements);
  let state = 1;
  for (let i = 0; i < elements; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bits[i] = ((state >>> 16) & 0x8000) | (0x3b80 + ((state >>> 8) & 0x01ff));
  }
  return bits;
}

/** The folder of a model with the shape of Llama 3 8B, whose weights are all cut out of the same noise. */
async function shaped(folder: string, layers: number): Promise<void> {
  const [hidden, middle, heads, kvHeads, headDim, vocabulary] = [4096, 14336, 32, 8, 128, 128256];
  const config = {
    ...{ architectures: ["LlamaForCausalLM"], model_type: "llama", hidden_act: "silu", dtype: "bfloat16" },
    ...{ hidden_size: hidden, intermediate_size: middle, num_attention_heads: heads, num_key_value_heads: kvHeads },
    ...{ head_dim: headDim, num_hidden_layers: layers, vocab_size: vocabulary, rms_norm_eps: 1e-5 },
    ...{ max_position_embeddings: 8192, rope_parameters: { rope_theta: 5e5, rope_type: "default" } },
    ...{ tie_word_embeddings: false, bos_token_id: 128000, eos_token_id: 128001 },
  };
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  const all = noise(vocabulary * hidden);
  const matrix = (name: string, rows: number, columns: number) => ({
    ...{ name: `${name}.weight`, dtype: "BF16" as const, shape: [rows, columns] },
    bytes: all.subarray(0, rows * columns),
  });
  const ones = (name: string) => ({
    ...{ name: `${name}.weight`, dtype: "BF16" as const, shape: [hidden] },
    bytes: new Uint16Array(hidden).fill(0x3f80),
  });
  const sources = [
    matrix("model.embed_tokens", vocabulary, hidden),
    matrix("lm_head", vocabulary, hidden),
    ones("model.norm"),
    ...Array.from({ length: layers }, (_, i) => `model.layers.${i}`).flatMap((at) => [
      ones(`${at}.input_layernorm`),
      ones(`${at}.post_attention_layernorm`),
      matrix(`${at}.self_attn.q_proj`, heads * headDim, hidden),
      matrix(`${at}.self_attn.k_proj`, kvHeads * headDim, hidden),
      matrix(`${at}.self_attn.v_proj`, kvHeads * headDim, hidden),
      matrix(`${at}.self_attn.o_proj`, hidden, heads * headDim),
      matrix(`${at}.mlp.gate_proj`, middle, hidden),
      matrix(`${at}.mlp.up_proj`, middle, hidden),
      matrix(`${at}.mlp.down_proj`, hidden, middle),
    ]),
  ];
  await writeSafetensors(join(folder, "model.safetensors"), sources);
}

/** Tokens a second of these sessions together, their prompts left out. */
async function speed(model: Model, sessions: readonly Session[]): Promise<number> {
  const vocabulary = model.architecture.vocabulary;
  const generations: Generation[] = sessions.map((session, chat) => {
    session.rewind(0);
    const ids = Array.from({ length: prompt }, (_, i) => (chat * 7919 + i * 104_729 + 11) % vocabulary);
    return model.generation(session, ids, { maxTokens: tokens, ignoreEos: true, temperature: 0 });
  });
  while (generations.some(({ ids }) => ids.length === 0)) await step(generations);
  const written = () => generations.reduce((sum, { ids }) => sum + ids.length, 0);
  const [before, started] = [written(), performance.now()];
  while (generations.some(({ finishReason }) => !finishReason))
    await step(generations.filter(({ finishReason }) => !finishReason));
  return (1000 * (written() - before)) / (performance.now() - started);
}

const median = (list: number[]) => list.sort((a, b) => a - b)[list.length >> 1]!;

if (values.shape !== undefined && values.shape !== "8b") throw new Error(`--shape is ${values.shape}, expected 8b`);
const [given] = positionals;
if (!given && !values.shape) throw new Error("expected the folder of a model, or --shape 8b");
const folder = given ? undefined : mkdtempSync(join(tmpdir(), "bnb-shape-"));
try {
  if (folder) await shaped(folder, Number(values.layers));
  const quantType = values["quant-type"] as "nf4" | "fp4" | "int8";
  using model = await Model.load(given ?? folder!, { quantType });
  console.log(`${model}; ${quantType}, prompts of ${prompt}, ${tokens} tokens each`);
  const all = model.sessions(chats, { capacity: prompt + tokens });
  const [alone, together]: [number[], number[]] = [[], []];
  for (let round = 0; round <= Number(values.rounds); round++) {
    const pair = [await speed(model, all.slice(0, 1)), await speed(model, all)] as const;
    if (round === 0) continue; // what is first used is made then
    alone.push(pair[0]);
    together.push(pair[1]);
  }
  const [one, many] = [median(alone), median(together)];
  console.log(`one chat: ${one.toFixed(1)} tokens/s`);
  console.log(`${chats} chats: ${many.toFixed(1)} tokens/s together, ${(many / one).toFixed(2)} times as many`);
} finally {
  if (folder) rmSync(folder, { recursive: true });
}
