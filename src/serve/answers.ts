// Texts as they grow, as answers in OpenAI's form: whole, or as a stream of events.
import type { Usage } from "../model/generation.ts";
import type { TextEvent } from "./events.ts";
import type { ListedChoice, ListedToken, TextRequest, ToolStyle } from "./protocol.ts";
import type { Asked } from "./requests.ts";
import { mayBeCall, readCalls, type ToolCall } from "./tools.ts";

export type Kind = "chat" | "completion";

/** One choice of an answer, as it grows. */
export type ChoiceEvent =
  | { readonly index: number; readonly text: string; readonly logprobs: readonly ListedChoice[] }
  | { readonly index: number; readonly calls: readonly ToolCall[] }
  | { readonly index: number; readonly reason: "stop" | "length" | "tool_calls"; readonly usage: Usage };

/**
 * The events of one text. Where it may call functions, what looks like a call is held back until its end tells.
 *
 * @param events what the engine says
 */
export async function* choice(
  index: number,
  events: AsyncIterable<TextEvent>,
  tools: ToolStyle | undefined,
): AsyncGenerator<ChoiceEvent, void, void> {
  let held = "";
  let logprobs: ListedChoice[] = [];
  let isFirst = true; // nothing but spaces is out
  for await (const event of events) {
    if ("text" in event) {
      if (!tools) yield { index, ...event };
      else {
        held += event.text;
        logprobs.push(...event.logprobs);
        if (mayBeCall(tools, held, isFirst)) continue;
        isFirst &&= !held.trim();
        yield { index, text: held, logprobs };
        [held, logprobs] = ["", []];
      }
      continue;
    }
    const { content, calls } = tools ? readCalls(tools, held, isFirst) : { content: held, calls: [] };
    if (content) yield { index, text: content, logprobs };
    if (calls.length > 0) yield { index, calls };
    const reason = calls.length > 0 ? "tool_calls" : event.reason === "length" ? "length" : "stop";
    yield { index, reason, usage: event.usage };
  }
}

/** Several texts of one request at once, their events in the order in which they come. */
export async function* merged(
  requests: readonly TextRequest[],
  start: (request: TextRequest) => AsyncIterable<TextEvent>,
  tools: ToolStyle | undefined,
): AsyncGenerator<ChoiceEvent, void, void> {
  const streams = requests.map((request, i) => choice(i, start(request), tools));
  const next = (stream: AsyncGenerator<ChoiceEvent>) => stream.next().then((result) => ({ stream, result }));
  const pending = new Map(streams.map((stream) => [stream, next(stream)]));
  try {
    while (pending.size > 0) {
      const { stream, result } = await Promise.race(pending.values());
      if (result.done) pending.delete(stream);
      else {
        pending.set(stream, next(stream));
        yield result.value;
      }
    }
  } finally {
    for (const promise of pending.values()) promise.catch(() => {}); // one failure is told already
    await Promise.all(streams.map((stream) => stream.return().catch(() => {})));
  }
}

/** All choices' use together: a prompt counts once for each. */
export function total(usages: readonly Usage[]) {
  const sum = (of: (usage: Usage) => number) => usages.reduce((all, usage) => all + of(usage), 0);
  const [prompt, completion] = [
    sum(({ promptTokens }) => promptTokens),
    sum(({ completionTokens }) => completionTokens),
  ];
  return {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: sum(({ cachedTokens }) => cachedTokens) },
  };
}

const plainToken = ({ token, logprob, bytes }: ListedToken) => ({ token, logprob, bytes });

function chatLogprobs(tokens: readonly ListedChoice[]) {
  return {
    content: tokens.map((one) => ({ ...plainToken(one), top_logprobs: one.top.map(plainToken) })),
    refusal: null,
  };
}

/** @param offset where the first token stands in the text */
function completionLogprobs(tokens: readonly ListedChoice[], offset = 0) {
  let end = offset;
  return {
    tokens: tokens.map(({ token }) => token),
    token_logprobs: tokens.map(({ logprob }) => logprob),
    top_logprobs: tokens.map(({ top }) => Object.fromEntries(top.map(({ token, logprob }) => [token, logprob]))),
    text_offset: tokens.map(({ token }) => {
      const start = end;
      end += token.length;
      return start;
    }),
  };
}

const callId = () => `call_${crypto.randomUUID().replaceAll("-", "").slice(0, 24)}`;

const callsOf = (calls: readonly ToolCall[]) =>
  calls.map(({ name, arguments: given }, index) => ({
    index,
    id: callId(),
    type: "function" as const,
    function: { name, arguments: given },
  }));

/** What all parts of an answer begin with. */
function heading(kind: Kind, model: string, stream: boolean) {
  const id = `${kind === "chat" ? "chatcmpl" : "cmpl"}-${crypto.randomUUID().replaceAll("-", "")}`;
  const object = kind === "chat" ? (stream ? "chat.completion.chunk" : "chat.completion") : "text_completion";
  return { id, object, created: Math.floor(Date.now() / 1000), model, system_fingerprint: null };
}

/** The whole answer. */
export async function whole(kind: Kind, asked: Asked, events: AsyncIterable<ChoiceEvent>) {
  const choices = asked.requests.map(() => ({
    text: "",
    logprobs: [] as ListedChoice[],
    calls: [] as readonly ToolCall[],
    reason: "stop" as string,
  }));
  const usages: Usage[] = [];
  for await (const event of events) {
    const one = choices[event.index]!;
    if ("text" in event) {
      one.text += event.text;
      one.logprobs.push(...event.logprobs);
    } else if ("calls" in event) one.calls = event.calls;
    else {
      one.reason = event.reason;
      usages.push(event.usage);
    }
  }
  const shaped = choices.map(({ text, logprobs, calls, reason }, index) => {
    if (kind === "completion")
      return { index, text, logprobs: asked.logprobs ? completionLogprobs(logprobs) : null, finish_reason: reason };
    const tools = calls.length > 0 ? { tool_calls: callsOf(calls).map(({ index: _, ...call }) => call) } : {};
    const content = calls.length > 0 && !text ? null : text;
    return {
      index,
      message: { role: "assistant", content, refusal: null, ...tools },
      logprobs: asked.logprobs ? chatLogprobs(logprobs) : null,
      finish_reason: reason,
    };
  });
  return { ...heading(kind, asked.model, false), choices: shaped, usage: total(usages) };
}

/** The answer as the data of server-sent events. */
export async function* chunks(
  kind: Kind,
  asked: Asked,
  events: AsyncIterable<ChoiceEvent>,
): AsyncGenerator<object, void, void> {
  const head = heading(kind, asked.model, true);
  const usages: Usage[] = [];
  const lengths = asked.requests.map(() => 0); // of the texts so far, as their tokens spell them
  const usage = asked.includeUsage ? { usage: null } : {};
  const chunk = (index: number, part: object, finish_reason: string | null = null) => ({
    ...head,
    choices: [{ index, ...part, finish_reason }],
    ...usage,
  });
  let isOpen = kind !== "chat";
  for await (const event of events) {
    const { index } = event;
    if (!isOpen)
      for (const [index] of asked.requests.entries())
        yield chunk(index, { delta: { role: "assistant", content: "" }, logprobs: null });
    isOpen = true;
    if ("text" in event) {
      const { text, logprobs } = event;
      yield kind === "chat"
        ? chunk(index, { delta: { content: text }, logprobs: asked.logprobs ? chatLogprobs(logprobs) : null })
        : chunk(index, { text, logprobs: asked.logprobs ? completionLogprobs(logprobs, lengths[index]) : null });
      lengths[index]! += logprobs.reduce((sum, { token }) => sum + token.length, 0);
    } else if ("calls" in event) yield chunk(index, { delta: { tool_calls: callsOf(event.calls) }, logprobs: null });
    else {
      usages.push(event.usage);
      yield chunk(index, kind === "chat" ? { delta: {}, logprobs: null } : { text: "", logprobs: null }, event.reason);
    }
  }
  if (asked.includeUsage) yield { ...head, choices: [], usage: total(usages) };
}
