// `bun run bench:models`: whole models of this library beside transformers with bitsandbytes and llama.cpp, in turn on
// the same prompt, so that every round's noise falls on all of them.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import { Command, InvalidArgumentError } from "commander";
import { root, say, stop } from "../scripts/run.ts";
import { convertGguf } from "../src/checkpoint/transform.ts";
import { table } from "../src/cli/table.ts";
import { smolLm } from "../test/real/packages.ts";
import type { ModelAnswer, ModelCommand } from "./models/protocol.ts";
import { installJavaScript, installPython, python } from "./peers/install.ts";
import { PeerProcess } from "./peers/process.ts";
import { median } from "./peers/results.ts";

interface Flags {
  readonly model?: string;
  readonly rounds: number;
  readonly prompt: number;
  readonly tokens: number;
  readonly threads: number;
  readonly only?: RegExp;
  readonly json?: string;
}

/** Who takes part: a format, and the command that runs it. */
interface Entrant {
  readonly label: string;
  readonly isPeer: boolean;
  command(threads: number): string[];
}

export interface ModelRow {
  readonly label: string;
  readonly isPeer: boolean;
  readonly description: string;
  /** Tokens a second by the clock and of the processor, one for each round. */
  readonly rounds: readonly Record<"prefill" | "prefillCpu" | "decode" | "decodeCpu", number>[];
  readonly ids: readonly number[];
  /** Bytes. */
  readonly peak: number;
}

const folder = `${root}/.peers/models`;

/** A model of a gigabyte takes its time to load, and more where the machine has other work. */
const answerSeconds = 900;

/** SmolLM2-135M-Instruct, as a GGUF file and as a folder of bfloat16. */
async function smol(): Promise<{ gguf: string; dense: string }> {
  const [gguf, dense] = [await smolLm(), `${folder}/smol-bf16`];
  if (existsSync(dense)) return { gguf, dense };
  mkdirSync(folder, { recursive: true });
  await convertGguf(gguf, { output: dense });
  return { gguf, dense };
}

/** llama.cpp for this machine's processor alone: as npm installs it by itself it has 700 MB for GPUs. */
const llamaPackages = ["node-llama-cpp@3.22.1", `@node-llama-cpp/linux-${process.arch}@3.22.1`] as const;

function entrants(dense: string, gguf: string | undefined): Entrant[] {
  const ours = (label: string, path: string, options: object = {}): Entrant => ({
    ...{ label: `bunsandbytes, ${label}`, isPeer: false },
    command: () => [process.execPath, `${root}/bench/models/ours.ts`, path, JSON.stringify(options)],
  });
  const theirs = (label: string, options: object): Entrant => ({
    ...{ label: `transformers, ${label}`, isPeer: true },
    command: (threads) => {
      return [python, `${root}/bench/models/transformers_peer.py`, dense, JSON.stringify(options), String(threads)];
    },
  });
  const llama = (path: string): Entrant => ({
    ...{ label: "llama.cpp, the GGUF file", isPeer: true },
    command: (threads) => [process.execPath, `${root}/bench/models/llama_peer.ts`, path, String(threads)],
  });
  return [
    ours("bfloat16", dense),
    ours("int8", dense, { quantType: "int8" }),
    ours("nf4", dense, { quantType: "nf4" }),
    ours("nf4, nested", dense, { quantType: "nf4", doubleQuant: true }),
    ...(gguf === undefined ? [] : [ours("the GGUF file", gguf), llama(gguf)]),
    theirs("float32", { dtype: "float32" }),
    theirs("bfloat16", { dtype: "bfloat16" }),
    theirs("nf4", { load_in_4bit: true, bnb_4bit_quant_type: "nf4" }),
  ];
}

/** One round of one worker. */
async function round(worker: PeerProcess<ModelCommand, ModelAnswer>, command: ModelCommand) {
  const { prefill, decode, ids, peak } = await worker.ask(command);
  const [read, written] = [command.prompt.length, command.tokens];
  const rates = { prefill: read / prefill!.wall, prefillCpu: read / prefill!.cpu };
  return { rates: { ...rates, decode: written / decode!.wall, decodeCpu: written / decode!.cpu }, ids: ids!, peak };
}

async function run(flags: Flags): Promise<void> {
  const { dense, gguf } = flags.model ? { dense: flags.model, gguf: undefined } : await smol();
  const missing = installPython("transformers");
  if (missing !== undefined) say(`Without transformers: ${missing}.`);
  const withoutLlama = installJavaScript(...llamaPackages);
  if (withoutLlama !== undefined) say(`Without llama.cpp: ${withoutLlama}.`);
  const reasonAgainst = ({ label }: Entrant) => (label.startsWith("llama.cpp") ? withoutLlama : missing);
  const taking = entrants(dense, gguf).filter(
    (entrant) => (!entrant.isPeer || reasonAgainst(entrant) === undefined) && (flags.only?.test(entrant.label) ?? true),
  );
  if (taking.length === 0) stop("No entrant is left: --only takes a regular expression that fits a label.");
  const threads = String(flags.threads);
  const env = { BNB_NUM_THREADS: threads, OMP_NUM_THREADS: threads };
  const workers: { entrant: Entrant; worker: PeerProcess<ModelCommand, ModelAnswer>; description: string }[] = [];
  for (const entrant of taking) {
    say(`Loading ${entrant.label} …`);
    const worker = new PeerProcess<ModelCommand, ModelAnswer>(
      entrant.label,
      entrant.command(flags.threads),
      env,
      answerSeconds,
    );
    workers.push({ entrant, worker, description: (await worker.hello()).description! });
  }
  const prompt = Array.from({ length: flags.prompt }, (_, i) => 100 + ((i * 7919) % 40_000));
  const command = { prompt, tokens: flags.tokens };
  const rows = new Map<string, ModelRow>();
  for (let at = -1; at < flags.rounds; at++) {
    say(at < 0 ? "Warming up …" : `Round ${at + 1} of ${flags.rounds} …`);
    for (const { entrant, worker, description } of workers) {
      const { rates, ids, peak } = await round(worker, command);
      const before = rows.get(entrant.label)?.rounds ?? [];
      const { label, isPeer } = entrant;
      rows.set(label, { label, isPeer, description, rounds: at < 0 ? [] : [...before, rates], ids, peak });
    }
  }
  for (const { worker } of workers) worker[Symbol.dispose]();
  report([...rows.values()], flags);
}

/** Medians, and how many times a peer's the rate is: the median of the rounds' ratios. */
export function modelTable(rows: readonly ModelRow[], base: string): string[][] {
  const against = rows.find(({ label }) => label === base);
  const of = (row: ModelRow, key: keyof ModelRow["rounds"][number]) => {
    const rate = median(row.rounds.map((rates) => rates[key]));
    if (!against) return rate.toFixed(1);
    const ratio = median(row.rounds.map((rates, i) => rates[key] / against.rounds[i]![key]));
    return `${rate.toFixed(1)} (${ratio.toFixed(2)})`;
  };
  return rows.map((row) => [
    row.label,
    of(row, "prefill"),
    of(row, "prefillCpu"),
    of(row, "decode"),
    of(row, "decodeCpu"),
    `${(row.peak / 1e6).toFixed(0)} MB`,
  ]);
}

function report(rows: readonly ModelRow[], flags: Flags): void {
  const base = rows.find(({ label }) => label === "transformers, nf4")?.label ?? rows[0]!.label;
  const machine = `${os.cpus()[0]?.model}, ${flags.threads} of ${os.cpus().length} threads, ${process.platform}`;
  const heads = ["tokens a second", "prefill", "of a processor", "decode", "of a processor", "peak memory"];
  say(`${machine}; a prompt of ${flags.prompt} tokens, then ${flags.tokens}; in brackets, times ${base}`);
  console.log(table([heads, ...modelTable(rows, base)]));
  for (const { label, description } of rows) say(`${label}: ${description}`);
  if (flags.json) writeFileSync(flags.json, `${JSON.stringify({ machine, flags, rows }, null, 2)}\n`);
}

function whole(text: string): number {
  const value = Number(text);
  if (Number.isSafeInteger(value) && value >= 1) return value;
  throw new InvalidArgumentError("Expected a whole number of at least 1.");
}

if (import.meta.main) {
  const command = new Command("bench:models")
    .description("Tokens a second of whole models, beside transformers with bitsandbytes and llama.cpp on the CPU.")
    .option("--model <dir>", "a dense model's folder (default: SmolLM2-135M-Instruct, downloaded)")
    .option("--rounds <n>", "how often each is asked, after a round that does not count", whole, 5)
    .option("--prompt <n>", "tokens to read", whole, 128)
    .option("--tokens <n>", "tokens to write", whole, 32)
    .option("--threads <n>", "of each", whole, 1)
    .option("--only <pattern>", "entrants whose label fits a regular expression", (text) => new RegExp(text))
    .option("--json <file>", "save what was measured");
  await run(command.parse().opts<Flags>());
}
