// What `bunsandbytes/ai` exports: models of this process for Vercel's AI SDK (`ai`), without a server between.
import type {
  EmbeddingModelV4,
  LanguageModelV4,
  LanguageModelV4CallOptions,
  LanguageModelV4Content,
  LanguageModelV4FinishReason,
  LanguageModelV4Prompt,
  LanguageModelV4StreamPart,
  LanguageModelV4ToolResultOutput,
  LanguageModelV4Usage,
  SharedV4Warning,
} from "@ai-sdk/provider";
import { BnbError } from "./error.ts";
import type { TextFormat } from "./model/constraint.ts";
import type { GenerateOptions, Usage } from "./model/generation.ts";
import type { Model } from "./model/model.ts";
import type { Message } from "./model/tokenizer.ts";
import { type ChoiceEvent, choice } from "./serve/answers.ts";
import { Engine, type Job } from "./serve/engine.ts";
import { type TextEvent, TextEvents } from "./serve/events.ts";
import { callFormat, toolStyleOf } from "./serve/tools.ts";

/** Options of {@link languageModel}. */
export interface LanguageModelOptions {
  /** What the SDK is told the model is called: its family by default. */
  modelId?: string;
  /** Texts that are written at once: 4 by default. More wait. */
  slots?: number;
  /** Tokens that each text may hold with its prompt: as many as the model was made for by default. */
  capacity?: number;
}

/**
 * A model as the AI SDK takes it: `generateText`, `streamText`, `generateObject`, tools. Calls at the same time go
 * through the model together.
 *
 * @example
 * ```ts
 * import { generateText } from "ai";
 * import { languageModel } from "bunsandbytes/ai";
 *
 * using model = await Model.load("./tiny-llama");
 * using llama = languageModel(model); // its end frees the cache of its texts, and not the model
 * const { text } = await generateText({ model: llama, prompt: "Hello", maxOutputTokens: 4 });
 * ```
 *
 * @throws BnbError (`unsupported`) for an encoder
 */
export function languageModel(model: Model, options: LanguageModelOptions = {}): LanguageModelV4 & Disposable {
  const { modelId = model.architecture.family, slots = 4, capacity } = options;
  const engine = new Engine(model, { slots, capacity, queue: Number.POSITIVE_INFINITY });
  const tools = model.tokenizer.hasChatTemplate ? toolStyleOf(model.tokenizer) : undefined;

  const start = (call: LanguageModelV4CallOptions) => {
    const warnings = warningsOf(call);
    const functions = (call.tools ?? []).filter((tool) => tool.type === "function");
    const offered = functions.length > 0 && call.toolChoice?.type !== "none";
    if (offered && !tools)
      throw new BnbError(`The chat template of this model (${modelId}) knows no tools.`, "unsupported");
    const prompt = model.tokenizer.applyChatTemplate(messagesOf(call.prompt), {
      tools: offered
        ? functions.map(({ name, description, inputSchema }) => {
            return { type: "function", function: { name, description, parameters: inputSchema } };
          })
        : undefined,
    });
    const wanted = call.toolChoice?.type === "tool" ? call.toolChoice.toolName : undefined;
    const callable = functions
      .filter(({ name }) => wanted === undefined || name === wanted)
      .map(({ name, inputSchema }) => ({ name, parameters: inputSchema as object }));
    const mustCall = offered && (call.toolChoice?.type === "required" || wanted !== undefined);
    const format = mustCall ? callFormat(tools!, callable, wanted === undefined) : formatOf(call);
    const events = textOf(engine, prompt, optionsOf(call), format, call.abortSignal);
    return { warnings, events: choice(0, events, offered ? tools : undefined) };
  };

  return {
    ...{ specificationVersion: "v4", provider: "bunsandbytes", modelId, supportedUrls: {} },
    async doGenerate(call) {
      const { warnings, events } = start(call);
      const content: LanguageModelV4Content[] = [];
      let text = "";
      for await (const event of events) {
        if ("text" in event) text += event.text;
        else if ("calls" in event) content.push(...toolCalls(event));
        else {
          if (text) content.unshift({ type: "text", text });
          return { content, finishReason: finishOf(event.reason), usage: usageOf(event.usage), warnings };
        }
      }
      throw new BnbError("The text ended without saying why.", "device_lost");
    },
    async doStream(call) {
      const { warnings, events } = start(call);
      return { stream: streamOf(parts(events, warnings)) };
    },
    [Symbol.dispose]: () => engine[Symbol.dispose](),
  };
}

/**
 * An encoder as the AI SDK takes it: `embed`, `embedMany`.
 *
 * @example
 * ```ts
 * import { embed } from "ai";
 * import { embeddingModel } from "bunsandbytes/ai";
 *
 * using model = await Model.load("./all-MiniLM-L6-v2");
 * const { embedding } = await embed({ model: embeddingModel(model), value: "a guitar" });
 * ```
 */
export function embeddingModel(model: Model, { modelId = model.architecture.family } = {}): EmbeddingModelV4 {
  return {
    ...{ specificationVersion: "v4", provider: "bunsandbytes", modelId },
    ...{ maxEmbeddingsPerCall: undefined, supportsParallelCalls: false },
    async doEmbed({ values, abortSignal }) {
      const ids = values.map((value) => model.tokenizer.encode(value));
      const vectors = await model.embed(ids, { signal: abortSignal });
      const tokens = ids.reduce((sum, { length }) => sum + length, 0);
      return { embeddings: vectors.map((vector) => [...vector]), usage: { tokens }, warnings: [] };
    },
  };
}

/** A text of the engine as a stream of what it says. */
async function* textOf(
  engine: Engine,
  prompt: readonly number[],
  options: GenerateOptions,
  format: TextFormat | undefined,
  signal: AbortSignal | undefined,
): AsyncGenerator<TextEvent, void, void> {
  const events = new TextEvents();
  const job: Job = {
    ...{ prompt, options, format },
    onText: (text) => events.push({ text, logprobs: [] }),
    onEnd: (reason, usage) => events.push({ reason, usage }),
    onError: (error) => events.fail(error),
  };
  try {
    engine.submit(job);
    yield* events.read(signal);
  } finally {
    engine.cancel(job);
  }
}

async function* parts(
  events: AsyncIterable<ChoiceEvent>,
  warnings: SharedV4Warning[],
): AsyncGenerator<LanguageModelV4StreamPart, void, void> {
  yield { type: "stream-start", warnings };
  const id = "0";
  let isOpen = false;
  try {
    for await (const event of events) {
      if ("text" in event) {
        if (!event.text) continue;
        if (!isOpen) yield { type: "text-start", id };
        isOpen = true;
        yield { type: "text-delta", id, delta: event.text };
        continue;
      }
      if (isOpen) yield { type: "text-end", id };
      isOpen = false;
      if ("calls" in event) {
        for (const call of toolCalls(event)) {
          const { toolCallId, toolName, input } = call;
          yield { type: "tool-input-start", id: toolCallId, toolName };
          yield { type: "tool-input-delta", id: toolCallId, delta: input };
          yield { type: "tool-input-end", id: toolCallId };
          yield call;
        }
      } else yield { type: "finish", finishReason: finishOf(event.reason), usage: usageOf(event.usage) };
    }
  } catch (error) {
    yield { type: "error", error };
  }
}

function streamOf<T>(items: AsyncGenerator<T, void, void>): ReadableStream<T> {
  return new ReadableStream<T>({
    async pull(controller: ReadableStreamDefaultController<T>) {
      const { done, value } = await items.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    async cancel() {
      await items.return();
    },
  });
}

const toolCalls = ({ calls }: Extract<ChoiceEvent, { calls: unknown }>) =>
  calls.map(({ name, arguments: input }) => ({
    ...{ type: "tool-call" as const, toolCallId: crypto.randomUUID(), toolName: name, input },
  }));

function finishOf(reason: "stop" | "length" | "tool_calls"): LanguageModelV4FinishReason {
  return { unified: reason === "tool_calls" ? "tool-calls" : reason, raw: reason };
}

function usageOf({ promptTokens, cachedTokens, completionTokens }: Usage): LanguageModelV4Usage {
  return {
    inputTokens: {
      total: promptTokens,
      noCache: promptTokens - cachedTokens,
      cacheRead: cachedTokens,
      cacheWrite: undefined,
    },
    outputTokens: { total: completionTokens, text: completionTokens, reasoning: undefined },
  };
}

function optionsOf(call: LanguageModelV4CallOptions): GenerateOptions {
  const { maxOutputTokens, temperature, topP, topK, seed, stopSequences } = call;
  return { maxTokens: maxOutputTokens ?? 2 ** 31 - 1, temperature, topP, topK, seed, stop: stopSequences };
}

function formatOf({ responseFormat }: LanguageModelV4CallOptions): TextFormat | undefined {
  if (responseFormat?.type !== "json") return undefined;
  return responseFormat.schema ? { type: "schema", schema: responseFormat.schema } : { type: "json" };
}

function warningsOf(call: LanguageModelV4CallOptions): SharedV4Warning[] {
  const unsupported = (feature: string): SharedV4Warning => ({ type: "unsupported", feature });
  return [
    ...(call.presencePenalty ? [unsupported("presencePenalty")] : []),
    ...(call.frequencyPenalty ? [unsupported("frequencyPenalty")] : []),
    ...(call.tools?.some(({ type }) => type !== "function") ? [unsupported("provider-defined tools")] : []),
  ];
}

/** The SDK's messages as chat templates take them. */
function messagesOf(prompt: LanguageModelV4Prompt): Message[] {
  return prompt.flatMap((message): Message[] => {
    if (message.role === "system") return [message];
    if (message.role === "tool")
      return message.content.flatMap((part) =>
        part.type === "tool-result" ? [{ role: "tool", name: part.toolName, content: resultText(part.output) }] : [],
      );
    const text = message.content
      .map((part) => {
        if (part.type === "text") return part.text;
        if (part.type === "tool-call" || part.type === "reasoning") return "";
        throw new BnbError(`A message has a part of type "${part.type}": only text is read.`, "unsupported");
      })
      .join("");
    const calls = message.content.flatMap((part) =>
      part.type === "tool-call"
        ? [{ id: part.toolCallId, type: "function", function: { name: part.toolName, arguments: part.input } }]
        : [],
    );
    return [{ role: message.role, content: text, ...(calls.length > 0 && { tool_calls: calls }) }];
  });
}

function resultText(output: LanguageModelV4ToolResultOutput): string {
  return "value" in output && typeof output.value === "string" ? output.value : JSON.stringify(output);
}
