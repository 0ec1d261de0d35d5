// Whole models: loaded from a folder, they continue texts, converse, and turn texts into vectors.

import { checkTransform } from "../checkpoint/arguments.ts";
import type { TransformReport } from "../checkpoint/transform.ts";
import type { Device } from "../device.ts";
import { BnbError } from "../error.ts";
import { Signature } from "../signature.ts";
import type { Architecture } from "./architecture.ts";
import { Chat, type ChatOptions } from "./chat.ts";
import { type Constraint, constraintsOf, type TextFormat } from "./constraint.ts";
import { Decoder } from "./decoder.ts";
import { Encoder, type EncoderInput } from "./encoder.ts";
import {
  type FinishReason,
  type GeneratedToken,
  type GenerateOptions,
  Generation,
  step,
  type Usage,
} from "./generation.ts";
import { defined, type LoadOptions, loadParts, type ModelParts, type Saving } from "./load.ts";
import { PagedCache, type SessionOptions } from "./pages.ts";
import { type Pooling, pool } from "./pooling.ts";
import { type SaveOptions, saveModel } from "./save.ts";
import { Session } from "./session.ts";
import { TextGeneration } from "./text.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Options of {@link Model.generate}. */
export interface ModelGenerateOptions extends GenerateOptions, SessionOptions {
  /** The form that the text must have: JSON, JSON of a schema, or what a grammar allows. */
  format?: TextFormat | undefined;
  /**
   * Continue this session, and read only what it does not hold yet. By default the text gets a session of its own,
   * which ends with it.
   */
  session?: Session | undefined;
}

/** Options of {@link Model.embed}. */
export interface EmbedOptions {
  /** Cut a text that is longer than the model reads; by default that is an error. */
  truncate?: boolean | undefined;
  /** How token vectors become one vector; by default as the model's files say. */
  pooling?: Partial<Pooling> | undefined;
  signal?: AbortSignal | undefined;
}

/** Tokens of texts that go through an encoder together. */
const batchTokens = 1024;

/** The text that one of several prompts was continued with. */
export interface Completion {
  readonly text: string;
  readonly ids: readonly number[];
  readonly logprobs: readonly GeneratedToken[];
  readonly finishReason: FinishReason;
  readonly usage: Usage;
}

/**
 * A language model or an encoder, with its tokenizer. Loaded by {@link Model.load}.
 *
 * @example
 * ```ts
 * using model = await Model.load("./tiny-llama");
 * const generation = model.generate("Hello", { maxTokens: 8, temperature: 0 });
 * for await (const text of generation) console.log(text);
 * generation.usage.completionTokens <= 8; // → true
 * ```
 */
export class Model implements Disposable {
  readonly architecture: Architecture;
  /** The device that the model is on; the first, if there are several. */
  readonly device: Device;
  /** The devices that the layers are on, in order. */
  readonly devices: readonly Device[];
  /** The options that apply unless others are given: what the model's generation_config.json recommends. */
  readonly defaults: GenerateOptions;
  readonly #path: string;
  readonly #tokenizer: Tokenizer | string;
  readonly #network: Decoder | Encoder;
  readonly #pooling: Pooling;
  readonly #saving: Saving;
  #disposed = false;

  private constructor(parts: ModelParts) {
    this.#saving = parts.saving;
    this.#path = parts.path;
    this.architecture = parts.architecture;
    this.device = parts.network.device;
    this.devices = parts.devices;
    this.defaults = parts.defaults;
    this.#tokenizer = parts.tokenizer;
    this.#network = parts.network;
    this.#pooling = parts.pooling;
  }

  /**
   * Loads a model from a folder in Hugging Face's layout: config.json, tokenizer.json, and safetensors with dense
   * weights or in the formats of bitsandbytes and MLX. Or from a GGUF file, or any part of a split one: its weights
   * stay as they are if their type can be held exactly, and become float16 if not.
   *
   * @throws BnbError if something is missing or damaged; (`unsupported`) naming the family if it is not known, or the
   * part of an adapter that can't run beside the weights
   */
  static async load(path: string, options: LoadOptions = {}): Promise<Model> {
    return new Model(await loadParts(path, options));
  }

  /** @throws BnbError (`unsupported`) if the model came without one that is understood */
  get tokenizer(): Tokenizer {
    if (typeof this.#tokenizer !== "string") return this.#tokenizer;
    throw new BnbError(`${this.#tokenizer.replace(/\.$/, "")}; or give ids in place of texts.`, "unsupported");
  }

  /**
   * Continues a text, or the ids of one.
   *
   * @throws BnbError, when the text is read, if the prompt does not fit or an option is out of its range
   */
  generate(prompt: string | readonly number[], options: ModelGenerateOptions = {}): TextGeneration {
    return new TextGeneration(async () => {
      const constraint = options.format && (await this.constrain(options.format));
      const session = options.session ?? this.session(options);
      const done = () => {
        if (!options.session) session.dispose();
      };
      try {
        return { generation: this.generation(session, prompt, options, constraint), done };
      } catch (error) {
        done();
        throw error;
      }
    });
  }

  /** Continues several texts at once: each reading of the weights serves one token of every text. */
  async generateBatch(
    prompts: readonly (string | readonly number[])[],
    options: GenerateOptions & SessionOptions = {},
  ): Promise<Completion[]> {
    if (prompts.length === 0) return [];
    const sessions = this.sessions(prompts.length, options);
    try {
      const generations = prompts.map((prompt, i) => this.generation(sessions[i]!, prompt, options));
      const texts = prompts.map(() => "");
      for (let live = generations; live.length > 0; live = live.filter(({ finishReason }) => !finishReason))
        await step(live);
      for (const [i, generation] of generations.entries()) texts[i] = generation.take();
      return generations.map(({ ids, logprobs, finishReason, usage }, i) => {
        return { text: texts[i]!, ids, logprobs, finishReason: finishReason!, usage };
      });
    } finally {
      for (const session of sessions) session.dispose();
    }
  }

  /** @internal A text that grows by steps, with others that share its session's cache. */
  generation(
    session: Session,
    prompt: string | readonly number[],
    options: GenerateOptions,
    constraint?: Constraint,
  ): Generation {
    const ids = typeof prompt === "string" ? this.tokenizer.encode(prompt) : prompt;
    const tokenizer = typeof this.#tokenizer === "string" ? undefined : this.#tokenizer;
    return new Generation(session, ids, { ...this.defaults, ...defined(options) }, tokenizer, constraint);
  }

  /** @internal A form for one text. @throws BnbError if it can't be understood */
  async constrain(format: TextFormat): Promise<Constraint> {
    const { vocabulary, tokens } = this.architecture;
    const constraints = await constraintsOf(this.tokenizer, vocabulary, tokens.eos);
    return constraints.start(format);
  }

  /** A conversation. @throws BnbError (`unsupported`) for an encoder */
  chat(options: ChatOptions = {}): Chat {
    return new Chat(this, options);
  }

  /** A sequence of ids, and what the model remembers of it. @throws BnbError (`unsupported`) for an encoder */
  session(options: SessionOptions = {}): Session {
    return this.sessions(1, options)[0]!;
  }

  /** Several sequences that share a cache, so that they can go through the model together. */
  sessions(count: number, options: SessionOptions = {}): Session[] {
    const network = this.#network;
    if (!(network instanceof Decoder))
      throw new BnbError(
        `${this.#path} is ${this.architecture.family}, which writes no text: use embed().`,
        "unsupported",
      );
    const shared = new PagedCache(network, count, options);
    return Array.from({ length: count }, () => new Session(network, shared));
  }

  /**
   * Vectors of texts, or of ids of texts, pooled and normalised as the model's modules.json says.
   *
   * @example
   * ```ts
   * using model = await Model.load("./tiny-bert");
   * const [a, b] = await model.embed([[3, 4, 5], [6, 7]]);
   * a!.length; // → 32
   * ```
   *
   * @throws BnbError if a text is too long; (`unsupported`) for a decoder
   */
  async embed(
    texts: readonly (string | readonly number[])[],
    options: EmbedOptions = {},
  ): Promise<Float32Array<ArrayBuffer>[]> {
    const network = this.#network;
    if (!(network instanceof Encoder))
      throw new BnbError(
        `${this.#path} is ${this.architecture.family}, which is no encoder: use generate().`,
        "unsupported",
      );
    const pooling = { ...this.#pooling, ...defined(options.pooling ?? {}) };
    const inputs = texts.map((text) => this.#input(text, pooling, options.truncate ?? false));
    const vectors: Float32Array<ArrayBuffer>[] = [];
    for (const batch of batches(inputs)) {
      options.signal?.throwIfAborted();
      using hidden = await inTurns(network.steps(batch));
      await hidden.ready();
      const [values, columns] = [hidden.read(), this.architecture.hidden];
      let at = 0;
      for (const { ids } of batch) {
        vectors.push(pool(values.subarray(at, at + ids.length * columns), columns, pooling));
        at += ids.length * columns;
      }
    }
    return vectors;
  }

  #input(text: string | readonly number[], { maxTokens }: Pooling, truncate: boolean): EncoderInput {
    const ids = typeof text === "string" ? this.tokenizer.encode(text) : [...text];
    const most = Math.min(this.architecture.positions, maxTokens ?? Infinity);
    if (!truncate || ids.length <= most) return { ids };
    return { ids: [...ids.slice(0, most - 1), ids.at(-1)!] }; // the last stands for the end of a text
  }

  /**
   * Writes the model as it is into a folder that loads again to the same numbers, and that `checkpoint` reads: the
   * weights with their codes and scales, the tokenizer and the other files that it came with. A model that was
   * quantised while it loaded has an 8-bit head, which transformers can't read; for transformers, use
   * `quantizeCheckpoint`.
   *
   * @example
   * ```ts
   * using model = await Model.load("./tiny-llama", { quantType: "nf4" });
   * const { weights } = await model.save({ output: "./tiny-llama-nf4" });
   * using again = await Model.load("./tiny-llama-nf4");
   * ```
   *
   * @throws BnbError (`unsupported`) for a model with an adapter, and for weights in a form of GGUF's or MLX's
   */
  async save(options: SaveOptions): Promise<TransformReport> {
    checkTransform(signatures.save, options);
    const { kept, origin, options: loaded } = this.#saving;
    if (this.#disposed) throw new TypeError("Model used after dispose()");
    if (loaded.adapter !== undefined)
      throw new BnbError(
        `Model.save: the model has an adapter: merge it into its base (\`bunsandbytes merge ${this.#path} ${loaded.adapter} --output DIR\`).`,
        "unsupported",
      );
    return await saveModel(kept, origin, loaded, options);
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#network[Symbol.dispose]();
  }

  dispose(): void {
    this[Symbol.dispose]();
  }

  toString(): string {
    const { family, layers, hidden } = this.architecture;
    return `Model(${family}, ${layers.length} layers of ${hidden}, on ${this.devices.join(", ")})`;
  }
}

/** Texts that go through the encoder together, in their order. */
function* batches(inputs: readonly EncoderInput[]): Generator<EncoderInput[]> {
  let batch: EncoderInput[] = [];
  let tokens = 0;
  for (const input of inputs) {
    if (batch.length > 0 && tokens + input.ids.length > batchTokens) {
      yield batch;
      [batch, tokens] = [[], 0];
    }
    batch.push(input);
    tokens += input.ids.length;
  }
  if (batch.length > 0) yield batch;
}

/** Runs to the end, and lets others in between where it takes long. */
async function inTurns<T>(steps: Generator<void, T, void>): Promise<T> {
  let since = performance.now();
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
    if (performance.now() - since < 8) continue;
    await new Promise(setImmediate);
    since = performance.now();
  }
}

const signatures = {
  save: new Signature("Model.save", { options: ["output", "force", "shardBytes", "onProgress"] }),
};
