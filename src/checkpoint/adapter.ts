// Adapters as PEFT saves them: adapter_config.json, and tensors under names that wrappers have left their marks on.
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { BnbError } from "../error.ts";
import { Layer } from "../nn/layer.ts";
import { isOptions } from "../signature.ts";
import { signatures } from "./arguments.ts";
import { type Checkpoint, openCheckpoint } from "./checkpoint.ts";
import { configBytesMax, fileIn, readText } from "./folder.ts";
import { damaged } from "./header.ts";
import { isObject, parseJson } from "./json.ts";
import { intoDirectory } from "./output.ts";
import { endingPattern } from "./pattern.ts";
import type { OutputOptions } from "./plan.ts";
import type { SafetensorsTensor } from "./safetensors.ts";
import { writeText } from "./staging.ts";
import { specBytes, type TensorSource, writeSafetensors } from "./writer.ts";

const configName = "adapter_config.json";
const weightsName = "adapter_model.safetensors";

/** What PEFT puts before every name of a model's. */
const prefix = "base_model.model.";

/** What an adapter does beside `alpha / r · B · A`. */
export interface AdapterSettings {
  readonly path: string;
  /** Weights are stored by columns, as GPT-2's kin have them. */
  readonly fanInFanOut: boolean;
  readonly dora: boolean;
  readonly bias: boolean;
  /** What A's product with B is multiplied by, for a module and the rank that its A has. */
  scaling(module: string, rank: number): number;
}

/**
 * Options of PEFT's that change nothing once an adapter is trained, or that are read below. Any other one that is set
 * is refused by its name: what it does is not known here.
 */
const harmless = new Set([
  ...["alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying"],
  ...["eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern"],
  ...[
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
  ],
  ...[
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
  ],
  ...["target_modules", "task_type", "use_dora", "use_rslora"],
]);

const isUnset = (value: unknown) =>
  value === null || value === false || (typeof value === "object" && Object.keys(value).length === 0);

/** An adapter_config.json. @throws BnbError naming the option that is not supported, or that makes no sense */
export function readSettings(path: string): AdapterSettings {
  let said: unknown;
  try {
    said = parseJson(Buffer.from(readText(path, configBytesMax)));
  } catch (cause) {
    if (cause instanceof BnbError) throw cause;
    throw damaged(path, `it is not JSON (${(cause as Error).message})`);
  }
  if (!isObject(said)) throw damaged(path, "it is not an object");
  if (said.peft_type !== undefined && said.peft_type !== "LORA")
    throw new BnbError(`${path}: peft_type is ${JSON.stringify(said.peft_type)}; LORA is supported.`, "unsupported");
  for (const [key, value] of Object.entries(said))
    if (!harmless.has(key) && !isUnset(value))
      throw new BnbError(`${path}: ${key} is set, which is not supported: save the adapter without it.`, "unsupported");
  const number = (key: string, value: unknown) => {
    if (typeof value === "number" && Number.isFinite(value)) return value;
    throw damaged(path, `its ${key} is ${JSON.stringify(value)}, expected a number`);
  };
  const pattern = (key: string) => {
    const found = said[key] ?? {};
    if (!isObject(found)) throw damaged(path, `its ${key} is ${JSON.stringify(found)}, expected an object`);
    const each = Object.entries(found).map(([name, value]) => {
      return [endingPattern(name, key), number(`${key}'s ${name}`, value)] as const;
    });
    return (module: string) => each.find(([matches]) => matches(module))?.[1];
  };
  const [rankOf, alphaOf] = [pattern("rank_pattern"), pattern("alpha_pattern")];
  const r = number("r", said.r ?? 8);
  const alpha = number("lora_alpha", said.lora_alpha ?? 8);
  const root = said.use_rslora === true;
  const scaling = (module: string, rank: number) => {
    const expected = rankOf(module) ?? r;
    if (expected !== rank) throw damaged(path, `it says rank ${expected} of ${module}, whose lora_A has ${rank} rows`);
    return (alphaOf(module) ?? alpha) / (root ? Math.sqrt(rank) : rank);
  };
  return {
    path,
    fanInFanOut: said.fan_in_fan_out === true,
    dora: said.use_dora === true,
    bias: said.lora_bias === true,
    scaling,
  };
}

/** The settings beside an adapter's weights, or `undefined` where there is no adapter_config.json. */
export function settingsIn(directory: string): AdapterSettings | undefined {
  const path = fileIn(directory, configName);
  return path === undefined ? undefined : readSettings(path);
}

/** The parts of an adapter for one module; of a module that is saved whole, its tensors. */
export interface AdaptedModule {
  readonly module: string;
  /** By the last part of the name: `lora_A`, `lora_B`, `lora_B.bias`, `lora_magnitude_vector`, `weight`, `bias`, … */
  readonly parts: ReadonlyMap<string, SafetensorsTensor>;
}

/** An adapter that is open. */
export interface Adapter extends Disposable {
  readonly path: string;
  readonly settings: AdapterSettings;
  readonly modules: ReadonlyMap<string, AdaptedModule>;
}

/** Opens an adapter's folder. @throws BnbError for what is none, or uses an option that is not supported */
export function openAdapter(path: string): Adapter {
  const isFolder = existsSync(path) && statSync(path).isDirectory();
  const settings = isFolder ? settingsIn(path) : undefined;
  if (!settings) throw new BnbError(`${path} has no ${configName}; expected the folder of an adapter of PEFT's.`);
  const weights = fileIn(path, weightsName);
  if (weights === undefined) throw new BnbError(`${path} has no ${weightsName}; save the adapter as safetensors.`);
  const checkpoint = openCheckpoint(weights);
  try {
    return { path, settings, modules: adaptedModules(checkpoint), [Symbol.dispose]: () => checkpoint.close() };
  } catch (error) {
    checkpoint.close();
    throw error;
  }
}

const loraPart =
  /^(.*)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.default)?(?:\.(weight|bias))?$/;

/** The tensors of an adapter by the module of the model that they belong to. */
export function adaptedModules({ path, tensors }: Pick<Checkpoint, "path" | "tensors">): Map<string, AdaptedModule> {
  const found = new Map<string, Map<string, SafetensorsTensor>>();
  for (const [name, tensor] of tensors) {
    const plain = plainName(name);
    const [, lora, part, kind] = loraPart.exec(plain) ?? [];
    const dot = plain.lastIndexOf(".");
    const module = lora ?? plain.slice(0, Math.max(0, dot));
    const key = part === undefined ? plain.slice(dot + 1) : kind === "bias" ? `${part}.bias` : part;
    const parts = found.get(module) ?? new Map<string, SafetensorsTensor>();
    if (parts.has(key)) throw damaged(path, `${module} has its ${key} twice`, name);
    found.set(module, parts.set(key, tensor));
  }
  return new Map([...found].map(([module, parts]) => [module, { module, parts }]));
}

/** A name without what PEFT, torch.compile and the wrappers of other adapters put into it. */
export function plainName(name: string): string {
  return name
    .replace(prefix, "")
    .replaceAll("_orig_mod.", "")
    .replaceAll(/\.modules_to_save(?:\.default)?(?=\.)/g, "")
    .replaceAll(/\.(?:base_layer|original_module)(?=\.)/g, "");
}

/** What {@link saveAdapter} needs of a layer. `nn.Lora` is such a layer. */
export interface AdapterLayer {
  readonly scaling: number;
  stateDict(name: string): TensorSource[];
}

/** Options of {@link saveAdapter}. */
export interface SaveAdapterOptions extends OutputOptions {
  /** The model that the adapter belongs to: a path, or an id on the hub. */
  readonly base?: string | undefined;
}

/**
 * Writes adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors, which
 * `PeftModel.from_pretrained` loads.
 *
 * @example
 * ```ts
 * using layer = nn.Lora.init(new nn.Linear4bit(Tensor.zeros([64, 64])), { r: 4, alpha: 8 });
 * await checkpoint.saveAdapter({ "model.layers.0.self_attn.q_proj": layer }, { output: "./adapter" });
 * ```
 *
 * @param layers by the names of their modules in the model
 * @returns notes for the user, such as that a leftover of an earlier run was removed
 */
export async function saveAdapter(
  layers: Readonly<Record<string, AdapterLayer>>,
  options: SaveAdapterOptions,
): Promise<{ readonly notes: readonly string[] }> {
  const me = signatures.saveAdapter;
  if (!isOptions(layers)) throw me.wrong("layers", layers, "an object of layers by their modules' names");
  const { output, force, base } = me.members(options, "options");
  me.text(output, "output");
  if (force !== undefined) me.boolean(force, "force");
  if (base !== undefined) me.text(base, "base");
  for (const [name, layer] of Object.entries(layers))
    if (!Layer.is(layer) || typeof layer.scaling !== "number")
      throw me.wrong(`layers[${JSON.stringify(name)}]`, layer, "a Lora");
  const tensors = Object.entries(layers).map(([name, layer]) => [name, layer.stateDict(prefix + name), layer] as const);
  if (tensors.length === 0) throw new BnbError("saveAdapter: layers is empty, expected at least one.");
  const ranks = new Map(
    tensors.map(([name, parts, { scaling }]) => {
      const rank = Number(parts.find((part) => part.name.endsWith(".lora_A.weight"))?.shape[0]);
      return [name, { rank, alpha: scaling * rank }] as const;
    }),
  );
  const all = tensors.flatMap(([, parts]) => parts);
  const bytes = all.reduce((sum, part) => sum + specBytes(part), 0);
  const { notes } = await intoDirectory(options, { bytes }, async (directory) => {
    await writeSafetensors(join(directory, weightsName), all);
    writeText(join(directory, configName), `${JSON.stringify(configOf(ranks, options.base), null, 2)}\n`);
    return {};
  });
  return { notes };
}

/** The adapter_config.json of layers by their modules' names: what differs from the first stands in patterns. */
function configOf(layers: ReadonlyMap<string, { rank: number; alpha: number }>, base: string | undefined): object {
  const [first] = layers.values();
  // PEFT takes a key as a regular expression that matches the end of a module's name.
  const exactly = (name: string) => `^${name.replaceAll(".", "\\.")}`;
  const differing = (of: "rank" | "alpha") =>
    Object.fromEntries(
      [...layers].filter(([, layer]) => layer[of] !== first![of]).map(([name, layer]) => [exactly(name), layer[of]]),
    );
  return {
    alpha_pattern: differing("alpha"),
    base_model_name_or_path: base ?? null,
    bias: "none",
    fan_in_fan_out: false,
    inference_mode: true,
    lora_alpha: first!.alpha,
    lora_dropout: 0,
    modules_to_save: null,
    peft_type: "LORA",
    r: first!.rank,
    rank_pattern: differing("rank"),
    target_modules: [...layers.keys()],
    task_type: null,
    use_dora: false,
    use_rslora: false,
  };
}
