// This library's worker of `bun run bench:models`: `ours.ts PATH OPTIONS` loads a model and answers each line of JSON.
import { readFileSync } from "node:fs";
import { type LoadOptions, Model } from "../../src/index.ts";
import type { ModelAnswer, ModelCommand } from "./protocol.ts";

const [path, options] = process.argv.slice(2) as [string, string];
const say = (answer: ModelAnswer) => console.log(JSON.stringify(answer));

/** The most memory that this process has had, in bytes, where the system tells. */
function peak(): number {
  try {
    const found = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"));
    return Number(found?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
}

/** Seconds by the clock and of the processor that something takes. */
function timed(run: () => void): { wall: number; cpu: number } {
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  run();
  const { user, system } = process.cpuUsage(cpu);
  return { wall: (performance.now() - wall) / 1000, cpu: (user + system) / 1e6 };
}

using model = await Model.load(path, { ...(JSON.parse(options) as LoadOptions), device: "cpu" });
say({ description: String(model), peak: peak() });
for await (const line of console) {
  const { prompt, tokens } = JSON.parse(line) as ModelCommand;
  using session = model.session({ capacity: Math.min(model.architecture.positions, prompt.length + tokens + 1) });
  const ids: number[] = [];
  const choose = (logits: Float32Array) => ids.push(logits.indexOf(logits.reduce((a, b) => Math.max(a, b))));
  const prefill = timed(() => choose(session.forward(prompt)));
  const decode = timed(() => {
    for (let i = 0; i < tokens; i++) choose(session.forward([ids.at(-1)!]));
  });
  say({ prefill, decode, ids, peak: peak() });
}
