// A model in a thread of its own: loads it, runs the engine, and answers what the thread of the connections asks.
import { currentDevice } from "../device.ts";
import { BnbError } from "../error.ts";
import type { GeneratedToken } from "../model/generation.ts";
import { Model } from "../model/model.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { BusyError, Engine, type Job } from "./engine.ts";
import type { FromHost, HostOptions, ListedToken, ModelInfo, PlainError, Prompt, ToHost } from "./protocol.ts";
import { toolStyleOf } from "./tools.ts";

/** Loads a model and gives what answers messages. What it says goes to `say`. */
export async function host(options: HostOptions, say: (message: FromHost) => void): Promise<(message: ToHost) => void> {
  const { path, quantType, precision } = options;
  const model = await Model.load(path, { ...(quantType && { quantType }), precision });
  const isDecoder = model.architecture.kind === "decoder";
  const engine = isDecoder ? new Engine(model, options) : undefined;
  const jobs = new Map<number, Job>();
  say({ type: "ready", info: infoOf(model) });

  const fail = (id: number, error: unknown) => say({ type: "error", id, error: plain(error) });
  const submit = ({ id, request }: Extract<ToHost, { type: "text" }>) => {
    if (!engine) throw new BnbError(`This model is ${model.architecture.family}, which writes no text.`, "unsupported");
    const done = () => jobs.delete(id);
    const job: Job = {
      prompt: idsOf(request.prompt, model.tokenizer),
      options: request.options,
      format: request.format,
      onText: (text, logprobs) =>
        say({ type: "text", id, text, logprobs: logprobs.map((token) => listed(token, model.tokenizer)) }),
      onEnd: (reason, usage) => {
        done();
        say({ type: "end", id, reason, usage });
      },
      onError: (error) => {
        done();
        fail(id, error);
      },
    };
    engine.submit(job);
    jobs.set(id, job);
  };
  const embed = async ({ id, inputs, base64 }: Extract<ToHost, { type: "embed" }>) => {
    if (isDecoder)
      throw new BnbError(`This model is ${model.architecture.family}, which makes no embeddings.`, "unsupported");
    const ids = inputs.map((input) => (typeof input === "string" ? model.tokenizer.encode(input) : input));
    const vectors = await model.embed(ids);
    const data = JSON.stringify(vectors.map((vector, index) => embeddingOf(vector, index, base64)));
    say({ type: "embeddings", id, data, tokens: ids.reduce((sum, { length }) => sum + length, 0) });
  };

  return (message) => {
    const { id } = message;
    try {
      if (message.type === "text") submit(message);
      else if (message.type === "embed") embed(message).catch((error) => fail(id, error));
      else if (message.type === "state") say({ type: "state", id, state: engine?.state });
      else if (message.type === "drain")
        (engine?.drain() ?? Promise.resolve()).then(() => say({ type: "drained", id }));
      else if (jobs.has(id)) {
        engine?.cancel(jobs.get(id)!);
        jobs.delete(id);
      }
    } catch (error) {
      fail(id, error);
    }
  };
}

function infoOf(model: Model): ModelInfo {
  const { family, kind, positions } = model.architecture;
  const device = currentDevice();
  return {
    family,
    kind,
    positions,
    device: `${device.kind}, ${device.description}`,
    bytes: device.counters.bytes,
    tools: kind === "decoder" && model.tokenizer.hasChatTemplate ? toolStyleOf(model.tokenizer) : undefined,
  };
}

function idsOf(prompt: Prompt, tokenizer: Tokenizer): readonly number[] {
  if ("ids" in prompt) return prompt.ids;
  if ("text" in prompt) return tokenizer.encode(prompt.text);
  return tokenizer.applyChatTemplate(prompt.messages, { tools: prompt.tools });
}

function embeddingOf(vector: Float32Array, index: number, base64: boolean) {
  const bytes = Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength);
  return { object: "embedding", index, embedding: base64 ? bytes.toString("base64") : [...vector] };
}

function listed({ id, logprob, top }: GeneratedToken, tokenizer: Tokenizer) {
  const of = ({ id, logprob }: { id: number; logprob: number }): ListedToken => {
    const token = tokenizer.decode([id], { skipSpecialTokens: false });
    return { token, logprob, bytes: [...new TextEncoder().encode(token)] };
  };
  return { ...of({ id, logprob }), top: top.map(of) };
}

export function plain(error: unknown): PlainError {
  const { message } = error as Error;
  return {
    message,
    code: error instanceof BnbError ? error.code : undefined,
    busy: error instanceof BusyError,
  };
}
