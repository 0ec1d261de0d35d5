// Owns whole models: loaded from a folder, they continue texts, converse, and turn texts into vectors.
import { currentDevice, type Device, type DeviceName } from "../device.ts";
import { BnbError } from "../error.ts";
import type { Precision } from "../native.ts";
import { Signature } from "../signature.ts";
import { Adapter } from "./adapter.ts";
import type { Architecture } from "./architecture.ts";
import type { Placed } from "./cache.ts";
import { Chat, type ChatOptions } from "./chat.ts";
import { type JsonObject, readArchitecture } from "./config.ts";
import { type Constraint, constraintsOf, type TextFormat } from "./constraint.ts";
import { Decoder } from "./decoder.ts";
import { Encoder, type EncoderInput } from "./encoder.ts";
import { openModel } from "./files.ts";
import {
  type FinishReason,
  type GeneratedToken,
  type GenerateOptions,
  Generation,
  step,
  type Usage,
} from "./generation.ts";
import { PagedCache, type SessionOptions } from "./pages.ts";
import { type DevicePlace, layOut, Pipeline } from "./pipeline.ts";
import { type Pooling, pool } from "./pooling.ts";
import { Session } from "./session.ts";
import { TextGeneration } from "./text.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { Loader, type QuantizeOnLoad, type WeightSource } from "./weights.ts";

/** Options of {@link Model.load}. */
export interface LoadOptions extends QuantizeOnLoad {
  /** The current device by default. */
  device?: Device | DeviceName | undefined;
  /**
   * Several, for a model that is larger than one: runs of whole layers in their order, an equal share for each, or as
   * many as `{ device, layers }` says. Activations go from one to the next through the host, and the results are those
   * of one device. The embedding stands on the first, the head on the last.
   */
  devices?: readonly DevicePlace[] | undefined;
  /**
   * How exact products with 4-bit weights are at least, as in `matmul4bit`; `"high"` by default, which changed no token
   * of any text that it was tried on (docs/models.md).
   */
  precision?: Precision | undefined;
  /**
   * Weights as the files' own pages in place of copies, wherever their bytes are the files': see
   * `checkpoint.loadWeight`. They are not joined then, so that a token takes a little longer. The files must stay as
   * they are while the model lives. False by default.
   */
  mmap?: boolean | undefined;
  /** The folder of a LoRA adapter of PEFT's for this model, which then runs beside the weights. */
  adapter?: string | undefined;
  /** Called when so many of all layers are on the device. */
  onProgress?: ((done: number, total: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** Options of {@link Model.generate}. */
export interface ModelGenerateOptions extends GenerateOptions, SessionOptions {
  /** What the text must be: JSON, JSON of a schema, or what a grammar derives. */
  format?: TextFormat | undefined;
  /** Write on in this session, and read only what it does not hold yet; by default one that goes with the text. */
  session?: Session | undefined;
}

/** Options of {@link Model.embed}. */
export interface EmbedOptions {
  /** Leave off what is longer than the model reads; false by default: an error. */
  truncate?: boolean | undefined;
  /** What the model's files say by default. */
  pooling?: Partial<Pooling> | undefined;
  signal?: AbortSignal | undefined;
}

/** Tokens of texts that go through an encoder together. */
const batchTokens = 1024;

/** What one of several prompts became. */
export interface Completion {
  readonly text: string;
  readonly ids: readonly number[];
  readonly logprobs: readonly GeneratedToken[];
  readonly finishReason: FinishReason;
  readonly usage: Usage;
}

/**
 * A model with its tokenizer.
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
  /** Where it stands; of several devices the first. */
  readonly device: Device;
  /** Every device that layers stand on, in their order. */
  readonly devices: readonly Device[];
  /** How it samples where nothing else is said: what the model's generation_config.json recommends. */
  readonly defaults: GenerateOptions;
  readonly #path: string;
  readonly #tokenizer: Tokenizer | string;
  readonly #network: Decoder | Encoder;
  readonly #pooling: Pooling;

  private constructor(parts: {
    path: string;
    architecture: Architecture;
    tokenizer: Tokenizer | string;
    network: Decoder | Encoder;
    devices: readonly Device[];
    pooling: Pooling;
    defaults: GenerateOptions;
  }) {
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
   * Loads a model from a folder as Hugging Face has it: config.json, tokenizer.json, and safetensors with dense weights
   * or in the formats of bitsandbytes and MLX. Or from a GGUF file, whose weights stay as they are where their type can
   * be held, and are float16 else; of a split one any part.
   *
   * @throws BnbError if something is lacking or damaged; (`unsupported`) naming the family, if it is not known, or what
   * of an adapter can't run beside the weights
   */
  static async load(path: string, options: LoadOptions = {}): Promise<Model> {
    const { precision = "high", mmap = false, signal } = options;
    const places = placesOf(options);
    signal?.throwIfAborted();
    using files = await openModel(path);
    const { config, generation, tokenizer, pooling, weights } = files;
    const architecture = readArchitecture(config, files.configPath, generation);
    const { roots } = architecture.names;
    const placed = layOut(signatures.load, places, architecture.layers.length);
    using adapter = options.adapter === undefined ? undefined : new Adapter(options.adapter, roots);
    const { quantType, blocksize, doubleQuant } = options;
    const loader = new Loader(weights, placed[0]!.device, rootOf(weights, architecture), {
      ...{ quantType, blocksize, doubleQuant, precision, adapter },
      mmap: signatures.load.boolean(mmap, "mmap"),
      threshold: thresholdOf(config),
    });
    const network = await build(loader, architecture, placed, options);
    adapter?.checkAllTaken();
    const devices = [...new Set(placed.map(({ device }) => device))];
    return new Model({ path, architecture, tokenizer, network, devices, pooling, defaults: defaultsOf(generation) });
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

  /** Continues several texts at once, so that the weights are read once for a token of each. */
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

  /** Several that share a cache, and so can go through the model together. */
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

  [Symbol.dispose](): void {
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

/** What stands before the names of this checkpoint's modules. */
function rootOf(source: WeightSource, { names, family }: Architecture): string {
  const root = names.roots.find((root) => source.has(`${root}${names.embedding}.weight`));
  if (root !== undefined) return root;
  throw new BnbError(`${source.path} has no ${names.roots[0]}${names.embedding}.weight, which ${family} models have.`);
}

/** LLM.int8()'s threshold, as the checkpoint's quantization_config has it; transformers' own by default. */
function thresholdOf(json: JsonObject): number {
  const threshold = Object(json.quantization_config).llm_int8_threshold;
  return typeof threshold === "number" && threshold >= 0 ? threshold : 6;
}

/** Layer by layer, so that the event loop turns and a signal can stop it. */
async function build(
  loader: Loader,
  architecture: Architecture,
  placed: readonly Placed[],
  { onProgress, signal }: LoadOptions,
): Promise<Decoder | Encoder> {
  const pipeline = await Pipeline.load(loader, architecture, placed, async (index) => {
    onProgress?.(index + 1, architecture.layers.length);
    await new Promise(setImmediate);
    signal?.throwIfAborted();
  });
  const Network = architecture.kind === "decoder" ? Decoder : Encoder;
  return new Network(loader, architecture, pipeline);
}

/** The devices that options name. */
function placesOf({ device, devices }: LoadOptions): readonly DevicePlace[] {
  if (device !== undefined && devices !== undefined)
    throw new BnbError("Model.load: device and devices are both given, expected one of them.");
  return devices ?? [device ?? currentDevice()];
}

/** How generation_config.json says to sample; transformers samples only where it says so. */
function defaultsOf(generation: JsonObject): GenerateOptions {
  const number = (key: string) => (typeof generation[key] === "number" ? (generation[key] as number) : undefined);
  if (generation.do_sample !== true) return defined({ repetitionPenalty: number("repetition_penalty") });
  return defined({
    temperature: number("temperature") ?? 1,
    topK: number("top_k") ?? 50,
    topP: number("top_p"),
    minP: number("min_p"),
    repetitionPenalty: number("repetition_penalty"),
  });
}

/** Options without those that are undefined, which would hide a default. */
function defined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T;
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

const signatures = { load: new Signature("Model.load") };
