// `bun run bench:serving`: how many tokens a second a model writes in chats at once, against one alone.
//
//   bun run bench:serving ./SmolLM2-135M-Instruct            a model of one's own, quantised while it loads
//   BNB_DEVICE=cuda bun run bench:serving --shape 8b         Llama 3 8B's shape with noise for weights
//
// Each chat has read a prompt of its own when the clock starts. Rounds of one and of many chats take turns; medians.
import { parseArgs } from "node:util";
import { currentDevice } from "../src/device.ts";
import { Generation, step } from "../src/model/generation.ts";
import { Model } from "../src/model/model.ts";
import { PagedCache } from "../src/model/pages.ts";
import { Session } from "../src/model/session.ts";
import { shapedDecoder, shapeNamed } from "./models/shapes.ts";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    shape: { type: "string" },
    layers: { type: "string" },
    chats: { type: "string", default: "16" },
    prompt: { type: "string", default: "64" },
    tokens: { type: "string", default: "64" },
    rounds: { type: "string", default: "5" },
    "quant-type": { type: "string", default: "nf4" },
  },
});
const [chats, prompt, tokens] = [Number(values.chats), Number(values.prompt), Number(values.tokens)];

/** Sessions that share a cache: of a folder's model, or of a shape with noise for weights. */
async function sessionsOf(path: string | undefined, quantType: "nf4" | "fp4" | "int8"): Promise<[string, Session[]]> {
  const capacity = prompt + tokens;
  if (path !== undefined) {
    const model = await Model.load(path, { quantType });
    return [String(model), model.sessions(chats, { capacity })];
  }
  const device = currentDevice();
  const layers = values.layers === undefined ? undefined : Number(values.layers);
  const decoder = await shapedDecoder(shapeNamed(values.shape!), device, { quantType, layers });
  const cache = new PagedCache(decoder, chats, { capacity });
  return [`${values.shape} on ${device}`, Array.from({ length: chats }, () => new Session(decoder, cache))];
}

/** Tokens a second of these sessions together, their prompts left out. */
async function speed(sessions: readonly Session[]): Promise<number> {
  const { vocabulary } = sessions[0]!.decoder.architecture;
  const generations: Generation[] = sessions.map((session, chat) => {
    session.rewind(0);
    const ids = Array.from({ length: prompt }, (_, i) => (chat * 7919 + i * 104_729 + 11) % vocabulary);
    return new Generation(session, ids, { maxTokens: tokens, ignoreEos: true, temperature: 0 });
  });
  while (generations.some(({ ids }) => ids.length === 0)) await step(generations);
  const written = () => generations.reduce((sum, { ids }) => sum + ids.length, 0);
  const [before, started] = [written(), performance.now()];
  while (generations.some(({ finishReason }) => !finishReason))
    await step(generations.filter(({ finishReason }) => !finishReason));
  return (1000 * (written() - before)) / (performance.now() - started);
}

const median = (list: number[]) => list.sort((a, b) => a - b)[list.length >> 1]!;

const [given] = positionals;
if (!given && !values.shape) throw new Error("expected the folder of a model, or --shape 8b");
const quantType = values["quant-type"] as "nf4" | "fp4" | "int8";
const [name, all] = await sessionsOf(given, quantType);
console.log(`${name}; ${quantType}, prompts of ${prompt}, ${tokens} tokens each`);
const [alone, together]: [number[], number[]] = [[], []];
for (let round = 0; round <= Number(values.rounds); round++) {
  const pair = [await speed(all.slice(0, 1)), await speed(all)] as const;
  if (round === 0) continue; // what is first used is made then
  alone.push(pair[0]);
  together.push(pair[1]);
}
const [one, many] = [median(alone), median(together)];
console.log(`one chat: ${one.toFixed(1)} tokens/s`);
console.log(`${chats} chats: ${many.toFixed(1)} tokens/s together, ${(many / one).toFixed(2)} times as many`);
