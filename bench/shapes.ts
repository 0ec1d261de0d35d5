// `bun run bench:shapes`: how fast models of known shapes read a prompt and write on the current device, one text at a
// time, with noise for weights.
//
//   BNB_DEVICE=cuda bun run bench:shapes --shapes 8b,1b,135m --contexts 32,512,4000 --prompts 128,512,2048
import { parseArgs } from "node:util";
import { table } from "../src/cli/table.ts";
import { currentDevice } from "../src/device.ts";
import { Generation, step } from "../src/model/generation.ts";
import { PagedCache } from "../src/model/pages.ts";
import { Session } from "../src/model/session.ts";
import type { Precision } from "../src/native.ts";
import { shapedDecoder, shapeNamed } from "./models/shapes.ts";

const { values } = parseArgs({
  options: {
    shapes: { type: "string", default: "8b,1b,135m" },
    contexts: { type: "string", default: "32,512,4000" },
    prompts: { type: "string", default: "128,512,2048" },
    tokens: { type: "string", default: "64" },
    rounds: { type: "string", default: "5" },
    layers: { type: "string" },
    precision: { type: "string" },
    "quant-type": { type: "string", default: "nf4" },
    plain: { type: "boolean", default: false },
  },
});
const numbers = (list: string) => list.split(",").filter(Boolean).map(Number);
const [contexts, prompts, tokens] = [numbers(values.contexts), numbers(values.prompts), Number(values.tokens)];
const median = (list: number[]) => list.sort((a, b) => a - b)[list.length >> 1]!;
const idsOf = (length: number) => Array.from({ length }, (_, i) => 3 + ((i * 7919) % 40_000));

const device = currentDevice();
const precision = values.precision as Precision | undefined;
const rows: string[][] = [];
for (const name of values.shapes.split(",").map(shapeNamed)) {
  const started = performance.now();
  using decoder = await shapedDecoder(name, device, {
    ...{ quantType: values["quant-type"] as "nf4" | "int8", doubleQuant: !values.plain, precision },
    layers: values.layers === undefined ? undefined : Number(values.layers),
  });
  device.wait();
  console.error(`${name}: made in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  const capacity = Math.max(...contexts.map((context) => context + tokens + 2), ...prompts);
  using session = new Session(decoder, new PagedCache(decoder, 1, { capacity }));
  for (const prompt of prompts) {
    const times: number[] = [];
    for (let round = 0; round <= Number(values.rounds); round++) {
      session.rewind(0);
      const from = performance.now();
      session.forward(idsOf(prompt));
      if (round > 0) times.push(performance.now() - from);
    }
    rows.push([name, `prompt of ${prompt}`, `${median(times).toFixed(1)} ms`]);
  }
  for (const context of contexts) {
    const speeds: number[] = [];
    for (let round = 0; round <= Number(values.rounds); round++) {
      session.rewind(0);
      const generation = new Generation(session, idsOf(context), { maxTokens: tokens, ignoreEos: true });
      while (generation.ids.length === 0) await step([generation]);
      const from = performance.now();
      while (!generation.finishReason) await step([generation]);
      if (round > 0) speeds.push((1000 * (generation.ids.length - 1)) / (performance.now() - from));
    }
    rows.push([name, `tokens behind ${context}`, `${median(speeds).toFixed(1)} /s`]);
  }
}
console.log(
  `${device}, ${values["quant-type"]}${values.plain ? "" : " nested"}, ${precision ?? "precision by default"}\n`,
);
console.log(table([["shape", "what", "speed"], ...rows]));
