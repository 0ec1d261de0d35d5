// The worker of llama.cpp, through node-llama-cpp, for `bun run bench:models`: `llama_peer.ts GGUF THREADS`.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { modulesFolder } from "../peers/install.ts";
import type { ModelAnswer, ModelCommand, Took } from "./protocol.ts";

/** What is used of node-llama-cpp, which is installed beside the other peers and has no types here. */
interface Sequence {
  clearHistory(): Promise<void>;
  evaluateWithoutGeneratingNewTokens(tokens: readonly number[]): Promise<void>;
  evaluate(tokens: readonly number[], options: { temperature: number }): AsyncIterable<number>;
}
interface Llama {
  loadModel(options: { modelPath: string }): Promise<{
    createContext(options: { contextSize: number; threads: number }): Promise<{ getSequence(): Sequence }>;
  }>;
}

const [path, threads] = process.argv.slice(2) as [string, string];
const say = (answer: ModelAnswer) => console.log(JSON.stringify(answer));
const peak = () => 1024 * Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1] ?? 0);

async function timed(run: () => Promise<void>): Promise<Took> {
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  await run();
  const { user, system } = process.cpuUsage(cpu);
  return { wall: (performance.now() - wall) / 1000, cpu: (user + system) / 1e6 };
}

const here = createRequire(`${modulesFolder}/package.json`);
const { version } = here("node-llama-cpp/package.json") as { version: string };
const { getLlama } = (await import(here.resolve("node-llama-cpp"))) as { getLlama(options: object): Promise<Llama> };
const llama = await getLlama({ gpu: false, build: "never", maxThreads: Number(threads), logLevel: "error" });
const model = await llama.loadModel({ modelPath: path });
const context = await model.createContext({ contextSize: 4096, threads: Number(threads) });
const sequence = context.getSequence();
say({ description: `llama.cpp of node-llama-cpp ${version}`, peak: peak() });
for await (const line of console) {
  const { prompt, tokens } = JSON.parse(line) as ModelCommand;
  await sequence.clearHistory();
  const ids: number[] = [];
  const prefill = await timed(() => sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, -1)));
  const decode = await timed(async () => {
    for await (const id of sequence.evaluate(prompt.slice(-1), { temperature: 0 })) {
      ids.push(id);
      if (ids.length > tokens) break;
    }
  });
  say({ prefill, decode, ids, peak: peak() });
}
