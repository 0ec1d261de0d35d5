// Requests in OpenAI's form, read and checked, as what the engine does.
import type { TextFormat } from "../model/constraint.ts";
import type { Message } from "../model/tokenizer.ts";
import { HttpError } from "./errors.ts";
import type { ModelInfo, PlainOptions, Prompt, TextRequest, ToolStyle } from "./protocol.ts";
import { type Body, boolean, list, number, object, refuse, refuseUnknown, stops, string } from "./read.ts";
import { callFormat, type ToolFunction } from "./tools.ts";

/** A request for texts, and how they are to be sent. */
export interface Asked {
  readonly model: string;
  readonly requests: readonly TextRequest[];
  readonly stream: boolean;
  readonly includeUsage: boolean;
  /** Whether logprobs are listed. */
  readonly logprobs: boolean;
  /** How calls of functions are read out of answers; undefined where none were offered. */
  readonly tools: ToolStyle | undefined;
}

const mostTokens = 2 ** 31 - 1;
const [mostMessages, mostChoices, mostTools] = [4096, 128, 128];

/** What both kinds of request have in common. */
function optionsOf(body: Body, maxTokens: number | undefined): PlainOptions {
  refuseUnknown(body, [
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "best_of",
    "suffix",
    "functions",
    "audio",
  ]);
  return {
    maxTokens: maxTokens ?? mostTokens,
    temperature: number(body, "temperature", 0, 2),
    topP: number(body, "top_p", Number.MIN_VALUE, 1),
    topK: number(body, "top_k", 0, mostTokens, true),
    minP: number(body, "min_p", 0, 1),
    repetitionPenalty: number(body, "repetition_penalty", 1e-3, 1e3),
    seed: number(body, "seed", -(2 ** 53), 2 ** 53, true),
    stop: stops(body),
  };
}

function streaming(body: Body): Pick<Asked, "stream" | "includeUsage"> {
  const stream = boolean(body, "stream");
  const given = body.stream_options ?? undefined;
  if (given !== undefined && !stream)
    throw new HttpError(400, "stream_options is given, but stream is not true.", { param: "stream_options" });
  return { stream, includeUsage: given !== undefined && boolean(object(given, "stream_options"), "include_usage") };
}

/** `n` times the same request, each with a seed of its own. */
function choices(body: Body, request: TextRequest): TextRequest[] {
  const n = number(body, "n", 1, mostChoices, true) ?? 1;
  return Array.from({ length: n }, (_, i) => {
    const { seed } = request.options;
    return i === 0 || seed === undefined ? request : { ...request, options: { ...request.options, seed: seed + i } };
  });
}

// ── /v1/chat/completions ────────────────────────────────────────────────────────────────────────────────────────────

export function chatRequest(body: Body, info: ModelInfo): Asked {
  const maxTokens =
    number(body, "max_completion_tokens", 1, mostTokens, true) ?? number(body, "max_tokens", 1, mostTokens, true);
  const logprobs = boolean(body, "logprobs");
  const top = number(body, "top_logprobs", 0, 20, true);
  if (top !== undefined && !logprobs)
    throw new HttpError(400, "top_logprobs is given, but logprobs is not true.", { param: "top_logprobs" });
  const { tools, format: calling } = toolsOf(body, info);
  const format = formatOf(body);
  if (calling && format)
    throw new HttpError(400, "response_format and a required tool_choice exclude each other.", {
      param: "tool_choice",
    });
  const prompt: Prompt = { messages: messagesOf(body), ...(tools && { tools }) };
  const options = { ...optionsOf(body, maxTokens), ...(logprobs && { logprobs: top ?? 0 }) };
  const request = { prompt, options, format: calling ?? format };
  return {
    model: string(body, "model"),
    requests: choices(body, request),
    ...streaming(body),
    logprobs,
    tools: tools && info.tools,
  };
}

function messagesOf(body: Body): Message[] {
  return list(body.messages, "messages", mostMessages).map((value, i) => {
    const at = `messages[${i}]`;
    const { role, content = null, ...rest } = object(value, at);
    if (typeof role !== "string" || !role) refuse(`${at}.role`, role, '"system", "user", "assistant" or "tool"');
    return {
      ...withParsedCalls(rest),
      role: role === "developer" ? "system" : role,
      content: contentOf(content, at, rest),
    };
  });
}

/** Text, or a list of parts of which all are text. */
function contentOf(content: unknown, at: string, { tool_calls: calls }: Body): string {
  if (typeof content === "string") return content;
  if (content === null && calls !== undefined) return "";
  if (!Array.isArray(content)) return refuse(`${at}.content`, content, "a text, or a list of parts");
  return content
    .map((part, i) => {
      const { type, text } = object(part, `${at}.content[${i}]`);
      if (type !== "text" || typeof text !== "string")
        throw new HttpError(400, `${at}.content[${i}] is of type ${JSON.stringify(type)}: only text is read.`, {
          param: `${at}.content`,
          code: "unsupported",
        });
      return text;
    })
    .join("");
}

/** Templates take a call's arguments as an object, where clients send JSON. */
function withParsedCalls(rest: Body): Body {
  if (!Array.isArray(rest.tool_calls)) return rest;
  const calls = rest.tool_calls.map((call: { function?: { arguments?: unknown } }) => {
    const given = call?.function?.arguments;
    if (typeof given !== "string") return call;
    try {
      return { ...call, function: { ...call.function, arguments: JSON.parse(given || "{}") } };
    } catch {
      return call; // what a model wrote need not be JSON: the template sees it as it is
    }
  });
  return { ...rest, tool_calls: calls };
}

function toolsOf(
  body: Body,
  info: ModelInfo,
): { tools?: readonly unknown[] | undefined; format?: TextFormat | undefined } {
  const choice = body.tool_choice ?? "auto";
  if ((body.tools ?? undefined) === undefined || choice === "none") return {};
  if (!info.tools)
    throw new HttpError(400, `tools: the chat template of this model (${info.family}) knows no tools.`, {
      param: "tools",
      code: "unsupported",
    });
  const tools = list(body.tools, "tools", mostTools);
  const functions = tools.map((tool, i): ToolFunction => {
    const { type, function: given } = object(tool, `tools[${i}]`);
    if (type !== "function") refuse(`tools[${i}].type`, type, '"function"');
    const { name, parameters } = object(given, `tools[${i}].function`);
    if (typeof name !== "string" || !/^[\w-]{1,64}$/.test(name))
      refuse(`tools[${i}].function.name`, name, "a name of up to 64 letters, digits, _ and -");
    return {
      name,
      parameters: parameters === undefined ? undefined : object(parameters, `tools[${i}].function.parameters`),
    };
  });
  if (choice === "auto") return { tools };
  const parallel = body.parallel_tool_calls !== false;
  if (choice === "required") return { tools, format: callFormat(info.tools, functions, parallel) };
  const wanted = Object((choice as { function?: object }).function).name;
  const only = functions.find(({ name }) => name === wanted);
  if (!only) return refuse("tool_choice", choice, '"none", "auto", "required" or one of the functions in tools');
  return { tools, format: callFormat(info.tools, [only], false) };
}

function formatOf(body: Body): TextFormat | undefined {
  const given = body.response_format ?? undefined;
  if (given === undefined) return undefined;
  const { type, json_schema: wrapped, grammar } = object(given, "response_format");
  if (type === "text") return undefined;
  if (type === "json_object") return { type: "json" };
  if (type === "json_schema") {
    const { schema } = object(wrapped, "response_format.json_schema");
    return { type: "schema", schema: object(schema, "response_format.json_schema.schema") };
  }
  if (type === "grammar" && typeof grammar === "string") return { type: "grammar", grammar };
  return refuse("response_format.type", type, '"text", "json_object", "json_schema" or "grammar"');
}

// ── /v1/completions ─────────────────────────────────────────────────────────────────────────────────────────────────

export function completionRequest(body: Body): Asked {
  refuseUnknown(body, ["echo"]);
  const top = number(body, "logprobs", 0, 20, true);
  const options = {
    ...optionsOf(body, number(body, "max_tokens", 1, mostTokens, true) ?? 16),
    ...(top !== undefined && { logprobs: top }),
  };
  const prompts = promptsOf(body.prompt, "prompt");
  const requests = prompts.flatMap((prompt) => choices(body, { prompt, options, format: formatOf(body) }));
  if (requests.length > mostChoices)
    throw new HttpError(400, `prompt and n ask for ${requests.length} texts, expected at most ${mostChoices}.`, {
      param: "n",
    });
  return { model: string(body, "model"), requests, ...streaming(body), logprobs: top !== undefined, tools: undefined };
}

/** A text, several texts, the ids of one, or of several. */
function promptsOf(value: unknown, param: string): Prompt[] {
  if (typeof value === "string") return [{ text: value }];
  if (isIds(value)) return [{ ids: value }];
  return list(value, param, 2048).map((one, i) => {
    if (typeof one === "string") return { text: one };
    return isIds(one) ? { ids: one } : refuse(`${param}[${i}]`, one, "a text, or a list of ids");
  });
}

const isIds = (value: unknown): value is number[] =>
  Array.isArray(value) && value.length > 0 && value.every((id) => Number.isInteger(id) && id >= 0);

// ── /v1/embeddings ──────────────────────────────────────────────────────────────────────────────────────────────────

export interface AskedEmbeddings {
  readonly model: string;
  readonly inputs: (string | readonly number[])[];
  readonly base64: boolean;
}

export function embeddingRequest(body: Body): AskedEmbeddings {
  refuseUnknown(body, ["dimensions"]);
  const format = body.encoding_format ?? "float";
  if (format !== "float" && format !== "base64") refuse("encoding_format", format, '"float" or "base64"');
  const inputs = promptsOf(body.input, "input").map((prompt) =>
    "text" in prompt ? prompt.text : (prompt as { ids: number[] }).ids,
  );
  return { model: string(body, "model"), inputs, base64: format === "base64" };
}
