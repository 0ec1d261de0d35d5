// Calls of functions as families write them: which style a model has, the form that makes it call one, and its answer
// read.
import type { TextFormat } from "../model/constraint.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { ToolStyle } from "./protocol.ts";

/** A function that a model may ask to be called. */
export interface ToolFunction {
  readonly name: string;
  readonly description?: string | undefined;
  /** A JSON schema of its arguments. */
  readonly parameters?: object | undefined;
}

/** A call that a model asks for: `arguments` is JSON. */
export interface ToolCall {
  readonly name: string;
  readonly arguments: string;
}

/** What stands around a call, and what the parts are called in it. */
const styles = {
  /** Qwen, Hermes, SmolLM: `<tool_call>{"name": …, "arguments": …}</tool_call>`, one after another, amid text. */
  hermes: { begin: "<tool_call>\n", end: "\n</tool_call>", parameters: "arguments" },
  /** Llama 3.1: the whole answer is `{"name": …, "parameters": …}`. */
  llama3: { begin: "", end: "", parameters: "parameters" },
  /** Mistral: the whole answer is `[{"name": …, "arguments": …}, …]`, after a token that is no text. */
  mistral: { begin: "[", end: "]", parameters: "arguments" },
} as const satisfies Record<ToolStyle, object>;

const probe = { type: "function", function: { name: "probe", description: "", parameters: { type: "object" } } };

/** How a model's chat template has it ask for calls; undefined where the template ignores tools. */
export function toolStyleOf(tokenizer: Tokenizer): ToolStyle | undefined {
  const messages = [{ role: "user", content: "?" }];
  let text: string;
  try {
    text = tokenizer.renderChat(messages, { tools: [probe] });
  } catch {
    return undefined; // a template that refuses tools
  }
  if (!text.includes("probe")) return undefined;
  if (text.includes("<tool_call>")) return "hermes";
  return text.includes("[AVAILABLE_TOOLS]") ? "mistral" : "llama3";
}

/** The form of an answer that calls one of these functions at least once. */
export function callFormat(style: ToolStyle, tools: readonly ToolFunction[], parallel: boolean): TextFormat {
  const { begin, end, parameters } = styles[style];
  const call = ({ name, parameters: schema }: ToolFunction) => ({
    type: "tag",
    begin: `${begin}{"name": ${JSON.stringify(name)}, "${parameters}": `,
    content: { type: "json_schema", json_schema: schema ?? { type: "object" } },
    end: `}${end}`,
  });
  const tags = tools.map(call);
  const several = parallel && style === "hermes";
  const format = several
    ? { type: "tags_with_separator", tags, separator: "\n", at_least_one: true, stop_after_first: false }
    : tags.length === 1
      ? tags[0]!
      : { type: "or", elements: tags };
  return { type: "tags", tags: { type: "structural_tag", format } };
}

/**
 * An answer, parted into what is said and what is to be called. What looks like a call and is none stays text.
 *
 * @param isWhole whether the text is the answer from its beginning
 */
export function readCalls(style: ToolStyle, text: string, isWhole: boolean): { content: string; calls: ToolCall[] } {
  if (style === "hermes") {
    const calls: ToolCall[] = [];
    const content = text.replaceAll(/<tool_call>\s*([\s\S]*?)\s*(?:<\/tool_call>|$)/g, (whole, json: string) => {
      const found = callsOf(json);
      calls.push(...found);
      return found.length ? "" : whole;
    });
    return { content: content.trim(), calls };
  }
  const json = text.replace(/^\s*(<\|python_tag\|>|\[TOOL_CALLS\])?/, "");
  const calls = isWhole ? callsOf(json) : [];
  return calls.length ? { content: "", calls } : { content: text, calls };
}

/** What an answer that is a call begins with, spelt out where its token is no special one. */
const beginnings = { llama3: ["{", "<|python_tag|>"], mistral: ["[{", "[TOOL_CALLS]"] };

/**
 * Where a text may still become a call, so that it must not be shown.
 *
 * @param isFirst whether nothing of the answer stands before it
 */
export function mayBeCall(style: ToolStyle, text: string, isFirst: boolean): boolean {
  if (style !== "hermes") {
    const start = text.trimStart();
    return isFirst && beginnings[style].some((begin) => start.startsWith(begin) || begin.startsWith(start));
  }
  const begin = styles.hermes.begin.trimEnd();
  return text.includes(begin) || [...begin].some((_, i) => text.endsWith(begin.slice(0, i + 1)));
}

function callsOf(json: string): ToolCall[] {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch {
    return [];
  }
  const list = Array.isArray(value) ? value : [value];
  return list.flatMap((call: { name?: unknown; arguments?: unknown; parameters?: unknown } | null) => {
    if (typeof call?.name !== "string") return [];
    const given = call.arguments ?? call.parameters ?? {};
    return [{ name: call.name, arguments: typeof given === "string" ? given : JSON.stringify(given) }];
  });
}
