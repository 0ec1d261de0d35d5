// Text to ids and back, and a conversation to a prompt, as a model's own files say.
import { Template } from "@huggingface/jinja";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { BnbError } from "../error.ts";
import type { JsonObject } from "./config.ts";

/** One turn of a conversation, as chat templates take it. */
export interface Message {
  readonly role: "system" | "user" | "assistant" | "tool" | (string & {});
  readonly content: string;
  /** Whatever else a template asks for: `tool_calls`, `name` and so on. */
  readonly [key: string]: unknown;
}

/** What a {@link Tokenizer} is made of: the texts of a model's files. */
export interface TokenizerFiles {
  /** tokenizer.json */
  readonly tokenizer: JsonObject;
  /** tokenizer_config.json; `{}` where there is none. */
  readonly config: JsonObject;
  /** chat_template.jinja, where it stands by itself. */
  readonly template?: string | undefined;
  /** Of the folder, for errors. */
  readonly path: string;
}

/** Options of {@link Tokenizer.applyChatTemplate}. */
export interface ChatTemplateOptions {
  /** End with what begins an answer; true by default. */
  addGenerationPrompt?: boolean | undefined;
  /** Functions that the model may ask to be called, as JSON schemas. */
  tools?: readonly unknown[] | undefined;
  /** Whatever else a template asks for, such as `enable_thinking`. */
  variables?: Readonly<Record<string, unknown>> | undefined;
}

/**
 * Turns text into ids and back. The work is done by `@huggingface/tokenizers` and `@huggingface/jinja`.
 *
 * @example
 * ```ts
 * using model = await Model.load("./tiny-llama");
 * const ids = model.tokenizer.encode("Hello world");
 * model.tokenizer.decode(ids); // → "Hello world"
 * ```
 */
export class Tokenizer {
  readonly #tokenizer: HuggingFaceTokenizer;
  readonly #config: JsonObject;
  readonly #path: string;
  readonly #templates: ReadonlyMap<string, string>;
  readonly #parsed = new Map<string, Template>();

  /** @throws BnbError if the files are not what the library can read */
  constructor({ tokenizer, config, template, path }: TokenizerFiles) {
    this.#path = path;
    this.#config = config;
    try {
      this.#tokenizer = new HuggingFaceTokenizer(tokenizer, config);
    } catch (cause) {
      throw new BnbError(`${path}/tokenizer.json can't be used: ${(cause as Error).message}.`, "unsupported", {
        cause,
      });
    }
    this.#templates = templatesOf(config, template);
  }

  /** The ids of a text, with those that begin or end every text, such as `<s>`, unless `addSpecialTokens` is false. */
  encode(text: string, options: { addSpecialTokens?: boolean } = {}): number[] {
    if (typeof text !== "string") throw new BnbError(`Tokenizer.encode: text is ${typeof text}, expected a string.`);
    return this.#tokenizer.encode(text, { add_special_tokens: options.addSpecialTokens ?? true }).ids;
  }

  /** The text of ids, without special tokens unless `skipSpecialTokens` is false. */
  decode(ids: Iterable<number>, options: { skipSpecialTokens?: boolean } = {}): string {
    const list = Array.from(ids);
    if (list.length === 0) return "";
    return this.#tokenizer.decode(list, { skip_special_tokens: options.skipSpecialTokens ?? true });
  }

  /** The id of a token by its spelling in the vocabulary, or undefined. */
  idOf(token: string): number | undefined {
    return this.#tokenizer.token_to_id(token);
  }

  /** The spelling of an id in the vocabulary, or undefined. */
  tokenOf(id: number): string | undefined {
    return this.#tokenizer.id_to_token(id);
  }

  /** A token that tokenizer_config.json names, such as `eos_token`. */
  special(name: `${string}_token`): string | undefined {
    const token = this.#config[name];
    if (typeof token === "string") return token;
    const content = Object(token).content;
    return typeof content === "string" ? content : undefined;
  }

  /** Whether the model's files say how a conversation becomes a prompt. */
  get hasChatTemplate(): boolean {
    return this.#templates.size > 0;
  }

  /**
   * The prompt that a conversation becomes.
   *
   * @throws BnbError if the model has no template, or the template refuses the messages
   */
  renderChat(messages: readonly Message[], options: ChatTemplateOptions = {}): string {
    const { addGenerationPrompt = true, tools, variables } = options;
    const template = this.#template(tools ? "tool_use" : "default");
    const names = ["bos_token", "eos_token", "pad_token", "unk_token"] as const;
    const special = Object.fromEntries(names.map((name) => [name, this.special(name) ?? ""]));
    try {
      return template.render({ ...special, messages, add_generation_prompt: addGenerationPrompt, tools, ...variables });
    } catch (cause) {
      throw new BnbError(
        `${this.#path}: the chat template refuses the messages: ${(cause as Error).message}.`,
        "invalid",
        {
          cause,
        },
      );
    }
  }

  /** The ids of that prompt, with no special tokens but its own. */
  applyChatTemplate(messages: readonly Message[], options: ChatTemplateOptions = {}): number[] {
    return this.encode(this.renderChat(messages, options), { addSpecialTokens: false });
  }

  #template(name: string): Template {
    const text = this.#templates.get(name) ?? this.#templates.get("default");
    if (text === undefined)
      throw new BnbError(
        `${this.#path} has no chat template: use generate() with a prompt of your own.`,
        "unsupported",
      );
    let parsed = this.#parsed.get(text);
    if (!parsed) {
      try {
        parsed = new Template(text);
      } catch (cause) {
        throw new BnbError(`${this.#path}: the chat template is damaged: ${(cause as Error).message}.`, "invalid", {
          cause,
        });
      }
      this.#parsed.set(text, parsed);
    }
    return parsed;
  }
}

/** By name; a single one is called `default`. One in a file of its own wins. */
function templatesOf({ chat_template: given }: JsonObject, file: string | undefined): Map<string, string> {
  const templates = new Map<string, string>();
  if (typeof given === "string") templates.set("default", given);
  else if (Array.isArray(given))
    for (const one of given)
      if (typeof one?.name === "string" && typeof one?.template === "string") templates.set(one.name, one.template);
  if (file !== undefined) templates.set("default", file);
  return templates;
}
