// `bunsandbytes serve`: models behind HTTP, until a signal ends it.
import { basename, resolve } from "node:path";
import { Command, InvalidArgumentError, Option } from "commander";
import type { Precision } from "../native.ts";
import { type ServedModel, serve } from "../serve/index.ts";
import { print, warn } from "./print.ts";

interface Flags {
  readonly host: string;
  readonly port: number;
  readonly apiKey?: string;
  readonly cors?: string;
  readonly slots: number;
  readonly context?: number;
  readonly queue: number;
  readonly timeout: number;
  readonly memory?: number;
  readonly quantType?: "nf4" | "fp4" | "int8";
  readonly precision?: Precision;
  readonly quiet?: boolean;
}

function count(least: number, most: number) {
  return (text: string): number => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`Expected a whole number from ${least} to ${most}.`);
  };
}

function gigabytes(text: string): number {
  const value = /^(\d+(?:\.\d+)?)\s*GB?$/i.exec(text)?.[1];
  if (value !== undefined) return Number(value) * 1e9;
  throw new InvalidArgumentError("Expected a size such as 8GB.");
}

/** `name=path`, or a path whose last part is the name. */
function modelOf(text: string, flags: Flags): ServedModel {
  const [, given, path] = /^(?:([\w.:-]+)=)?(.+)$/.exec(text)!;
  const { slots, queue, context: capacity, quantType, precision } = flags;
  return {
    name: given ?? basename(resolve(path!)).replace(/\.gguf$/, ""),
    path: path!,
    slots,
    queue,
    capacity,
    quantType,
    precision,
  };
}

async function run(paths: readonly string[], flags: Flags): Promise<void> {
  const models = paths.map((path) => modelOf(path, flags));
  const say = flags.quiet ? () => {} : (line: string) => warn(line);
  say(`Loading ${models[0]!.path} …`);
  const { host, port, apiKey = process.env.BNB_API_KEY, cors, timeout, memory } = flags;
  const server = await serve({
    ...{ models, host, port, cors, timeout, memory },
    apiKey: apiKey || undefined,
    log: say,
  });
  print(`${server.url} serves ${models.map(({ name }) => name).join(", ")}`);
  const ended = Promise.withResolvers<void>();
  for (const signal of ["SIGINT", "SIGTERM"] as const)
    process.once(signal, () => {
      say("Waiting for what runs; a second signal ends at once.");
      process.once(signal, () => process.exit(1));
      server.stop().then(ended.resolve);
    });
  await ended.promise;
}

export function serveCommand(): Command {
  return new Command("serve")
    .description("Serve models by OpenAI's protocol, and a page to chat on.")
    .argument(
      "<models...>",
      "folders of models, or name=folder; the first is loaded at once, others when they are asked for",
    )
    .option(
      "--host <address>",
      "where to listen; anything but this machine's own addresses lets others in",
      "127.0.0.1",
    )
    .option("--port <n>", "0 takes a free one", count(0, 65_535), 8080)
    .option(
      "--api-key <key>",
      "what clients must send; better as BNB_API_KEY in the environment, which other users don't see",
    )
    .option("--cors <origin>", "let pages of this origin ask")
    .option("--slots <n>", "texts that are written at once", count(1, 256), 8)
    .option(
      "--context <tokens>",
      "the most that a text may hold with its prompt (default: what the model was made for)",
      count(16, 1 << 24),
    )
    .option("--queue <n>", "requests that may wait; more are refused", count(0, 1e6), 64)
    .option("--timeout <seconds>", "how long a request may take", count(1, 86_400), 600)
    .option("--memory <size>", "let the longest unused models go beyond this, such as 16GB", gigabytes)
    .addOption(
      new Option("--quant-type <type>", "quantise dense weights while they load").choices(["nf4", "fp4", "int8"]),
    )
    .addOption(
      new Option(
        "--precision <precision>",
        "of products with quantised weights; on an NVIDIA GPU medium, else high",
      ).choices(["highest", "high", "medium"]),
    )
    .option("--quiet", "print no line for each request")
    .addHelpText(
      "after",
      `
Routes: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /health, /metrics, and a page at /.
SIGTERM and Ctrl-C finish what runs, then end.

Examples:
  bunsandbytes serve ./SmolLM2-135M-Instruct-nf4
  BNB_API_KEY=secret bunsandbytes serve --host 0.0.0.0 chat=./Llama-3.2-1B embed=./all-MiniLM-L6-v2`,
    )
    .action((paths: string[], flags: Flags) => run(paths, flags));
}
