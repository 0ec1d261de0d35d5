// The loading of a model: which files it is made of, where its layers go, and what becomes of its weights.
import { allDevices, currentDevice, type Device, type DeviceName } from "../device.ts";
import { BnbError } from "../error.ts";
import type { Precision } from "../native.ts";
import { Signature } from "../signature.ts";
import { Adapter } from "./adapter.ts";
import type { Architecture } from "./architecture.ts";
import type { Placed } from "./cache.ts";
import { type JsonObject, readArchitecture } from "./config.ts";
import { Decoder } from "./decoder.ts";
import { Encoder } from "./encoder.ts";
import { openModel } from "./files.ts";
import type { GenerateOptions } from "./generation.ts";
import { type DevicePlace, layOut, Pipeline } from "./pipeline.ts";
import type { Pooling } from "./pooling.ts";
import type { Kept, Origin } from "./save.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { Loader, type QuantizeOnLoad, type WeightSource } from "./weights.ts";

/** Options of {@link Model.load}. */
export interface LoadOptions extends QuantizeOnLoad {
  /** The current device by default. */
  device?: Device | DeviceName | undefined;
  /**
   * Several devices, for a model that is too large for one. Each gets a run of whole layers, in order: an equal share,
   * or as many as `{ device, layers }` says. The embedding is on the first, the head on the last. Activations go from
   * one to the next through the host; the results are those of a single device. `"auto"` fills the current device, then
   * the others of its kind, as far as their memory goes, and has the CPU take the rest.
   */
  devices?: readonly DevicePlace[] | "auto" | undefined;
  /**
   * The least accuracy of products with quantised weights, as in `matmul4bit`. `"high"` by default, which changed no
   * token of any text that was tried (docs/models.md). On an NVIDIA GPU it is `"medium"`: bfloat16 on the tensor cores,
   * as bitsandbytes computes there, which holds for dense halves too.
   */
  precision?: Precision | undefined;
  /**
   * Use the files' own pages as weights in place of copies, where the bytes are the same: see `checkpoint.loadWeight`.
   * Such weights are not joined, so that a token takes a little longer. The files must stay as they are while the model
   * lives. False by default.
   */
  mmap?: boolean | undefined;
  /** The folder of one of PEFT's LoRA adapters for this model, which runs beside the weights. */
  adapter?: string | undefined;
  /** Called after each layer, with how many are on the device and how many there are. */
  onProgress?: ((done: number, total: number) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** What is needed to write a model again. */
export interface Saving {
  readonly kept: ReadonlyMap<string, Kept>;
  readonly origin: Origin;
  readonly options: LoadOptions;
}

/** What a model is put together of. */
export interface ModelParts {
  readonly path: string;
  readonly architecture: Architecture;
  /** Or why there is none. */
  readonly tokenizer: Tokenizer | string;
  readonly network: Decoder | Encoder;
  /** Every device that layers stand on, in their order. */
  readonly devices: readonly Device[];
  readonly pooling: Pooling;
  /** How generation_config.json says to sample. */
  readonly defaults: GenerateOptions;
  readonly saving: Saving;
}

/** @throws BnbError as `Model.load` does */
export async function loadParts(path: string, options: LoadOptions): Promise<ModelParts> {
  const { precision, mmap = false, signal } = options;
  const places = placesOf(options);
  signal?.throwIfAborted();
  using files = await openModel(path);
  const { config, generation, tokenizer, pooling, weights } = files;
  const architecture = readArchitecture(config, files.configPath, generation);
  const { roots } = architecture.names;
  const placed = places === "auto" ? undefined : layOut(signatures.load, places, architecture.layers.length);
  using adapter = options.adapter === undefined ? undefined : new Adapter(options.adapter, roots);
  const { quantType, blocksize, doubleQuant } = options;
  const kept = new Map<string, Kept>();
  const loader = new Loader(weights, placed?.[0]?.device ?? currentDevice(), rootOf(weights, architecture), {
    ...{ quantType, blocksize, doubleQuant, precision, adapter, kept },
    mmap: signatures.load.boolean(mmap, "mmap"),
    threshold: thresholdOf(config),
  });
  const network = await build(loader, architecture, placed, options);
  adapter?.checkAllTaken();
  const devices = [...new Set(network.placed.map(({ device }) => device))];
  const saving = { kept, origin: files.origin, options };
  const defaults = defaultsOf(generation);
  return { path, architecture, tokenizer, network, devices, pooling, defaults, saving };
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
  placed: readonly Placed[] | undefined,
  { onProgress, signal }: LoadOptions,
): Promise<Decoder | Encoder> {
  const onLayer = async (index: number) => {
    onProgress?.(index + 1, architecture.layers.length);
    await new Promise(setImmediate);
    signal?.throwIfAborted();
  };
  const pipeline = placed
    ? await Pipeline.load(loader, architecture, placed, onLayer)
    : await Pipeline.fill(loader, architecture, allDevices(), tableBytes(loader, architecture), onLayer);
  const Network = architecture.kind === "decoder" ? Decoder : Encoder;
  return new Network(loader.on(pipeline.placed[0]!.device), architecture, pipeline);
}

/** Of the tables of tokens: the one where they go in, and the head, which may stand on the same device. */
function tableBytes(loader: Loader, { names, tied }: Architecture): number {
  const head = names.head && !tied ? [names.head] : [];
  return [names.embedding, ...head].reduce((sum, module) => sum + loader.tableBytes(module), 0);
}

/** The devices that options name. */
function placesOf({ device, devices }: LoadOptions): readonly DevicePlace[] | "auto" {
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
export function defined<T extends object>(options: T): T {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as T;
}

const signatures = { load: new Signature("Model.load") };
