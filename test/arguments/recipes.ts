// A call of every public function that succeeds: what the property test replaces one argument of.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  Codebook,
  checkpoint,
  currentDevice,
  Int8Weight,
  int8VectorwiseQuant,
  KvCache,
  nn,
  optim,
  Parameter,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
} from "../../src/index.ts";
import { wave } from "../cases.ts";
import { ggufFile, llamaDirectory, llamaGgufMetadata, llamaGgufTensors } from "../models.ts";
import { type Callable, callables, resolved } from "./callables.ts";

export interface Call {
  /** What a method is called on. */
  readonly on?: object;
  readonly args: unknown[];
}

const floats = (...shape: number[]) => Tensor.from(wave(shape.reduce((a, b) => a * b, 1)), shape);
const codes = (...shape: number[]) => Tensor.zeros(shape, { dtype: "int8" });
const indices = () => Tensor.from([1, 0], [2], { dtype: "int32" });
const w4 = () => quantize4bit(floats(32, 64));
const w8 = () => Int8Weight.quantize(floats(32, 64));
const x = () => floats(2, 64);
const dy = () => floats(2, 32);
const device = () => currentDevice();
const products = () => ({ bias: floats(32), precision: "highest" });
const init = () => ({ device: device(), dtype: "float32", seed: 1 });
const scales = () => ({ scales: "leastSquares", importance: Tensor.from(wave(64).map(Math.abs)) });

const cache = () => new KvCache({ layers: 1, heads: 2, columns: 8, capacity: 16 });
const seen = () => Tensor.from([0, 0, 0, 1, 0, 1, 0, 2], [2, 4], { dtype: "int32" });
const attentionOptions = () => ({
  ...{ heads: 8, kvHeads: 2, k: floats(2, 16), v: floats(2, 16), scale: 0.5, softcap: 30, cache: cache(), layer: 0 },
  ...{ rope: floats(4, 4), qNorm: floats(8), kNorm: floats(8), normEps: 1e-6, normOffset: 1, bias: floats(8, 3) },
});

const folder = mkdtempSync(join(tmpdir(), "bnb-arguments-"));
process.on("exit", () => rmSync(folder, { recursive: true }));

/** A checkpoint with a weight of each kind, and the keys of an adapter. */
async function makeCheckpoint(path: string): Promise<void> {
  const dense = (name: string, tensor: Tensor) => ({
    name,
    dtype: "F32" as const,
    shape: tensor.shape,
    bytes: tensor.read(),
  });
  await checkpoint.writeSafetensors(path, [
    ...checkpoint.toStateDict("four.weight", w4()),
    ...checkpoint.toStateDict("eight.weight", w8()),
    dense("table.weight", floats(32, 64)),
    dense("table.norm.weight", floats(64)),
    dense("table.norm.bias", floats(64)),
    dense("lora.lora_A.weight", floats(4, 64)),
    dense("lora.lora_B.weight", floats(32, 4)),
  ]);
}

const path = join(folder, "model.safetensors");
await makeCheckpoint(path);
export const opened = checkpoint.openCheckpoint(path);
const plain = join(folder, "plain");
const bert = join(import.meta.dir, "../fixtures/models/bert");
await llamaDirectory(plain);
const nf4 = join(folder, "nf4");
await checkpoint.quantizeCheckpoint(plain, { output: nf4 });
const gguf = join(folder, "model.gguf");
writeFileSync(gguf, ggufFile(llamaGgufMetadata, llamaGgufTensors));
const openedGguf = await checkpoint.openGguf(gguf);

const parts = () => {
  const { codes, absmax, blocksize, shape, state2, offset } = quantize4bit(floats(64, 512), {
    compressStatistics: true,
  }) as QuantizedTensor;
  const { absmax: outer, blocksize: group } = state2!;
  const nested = { absmax: outer, code: Codebook.named("dynamic"), blocksize: group, offset, offsetsAbsmax: outer };
  return { codes, absmax, offsets: absmax, code: Codebook.named("nf4"), blocksize, shape, dtype: "float32", nested };
};

const adam = () => {
  const parameter = new Parameter(floats(2, 64));
  parameter.grad = floats(2, 64);
  return new optim.Adam([parameter]);
};

/** The options of an optimizer by its name, as far as it has some of its own. */
function optimizerOptions(name: string): Record<string, unknown> {
  const family = name.replace(/^Paged|(8|32)bit$/g, "");
  const bits = /\dbit$/.test(name) ? {} : { optimBits: 8 };
  const everyones = { lr: 0.1, weightDecay: 0.1, min8bitSize: 4096, skipZeros: true, ...bits };
  if (/^(Adam|AdamW)$/.test(family)) return { ...everyones, betas: [0.9, 0.99], eps: 1e-8 };
  if (family === "LAMB") return { ...everyones, betas: [0.9, 0.99], eps: 1e-8, maxUnorm: 1 };
  if (family === "AdEMAMix")
    return { ...everyones, betas: [0.9, 0.99, 0.999], eps: 1e-8, alpha: 5, tAlpha: 10, tBeta3: 10 };
  if (family === "Lion") return { ...everyones, betas: [0.9, 0.99] };
  if (family === "SGD") return { ...everyones, momentum: 0.9 };
  if (family === "LARS") return { ...everyones, momentum: 0.9, maxUnorm: 0.1 };
  if (family === "RMSprop") return { ...everyones, alpha: 0.9, eps: 1e-8 };
  return { ...everyones, eps: 1e-8 };
}

const four = () => ({ quantStorage: "uint8", quantType: "nf4", blocksize: 64, compressStatistics: true, ...scales() });
const linear4bit = () => new nn.Linear4bit(floats(32, 64));
const lora = () => nn.Lora.init(linear4bit(), { r: 4 });

const recipes: Record<string, () => Call> = {
  add: () => ({ args: [x(), x(), { scale: 2 }] }),
  mul: () => ({ args: [x(), x()] }),
  exp: () => ({ args: [x()] }),
  sigmoid: () => ({ args: [x()] }),
  softmax: () => ({ args: [x()] }),
  scale: () => ({ args: [x(), 2] }),
  compare: () => ({ args: [x(), x()] }),
  setDevice: () => ({ args: [device()] }),
  "Device.open": () => ({ args: ["cpu"] }),

  "Tensor.from": () => ({ args: [[1, 2, 3, 4], [2, 2], { device: device(), dtype: "float32" }] }),
  "Tensor.zeros": () => ({ args: [[2, 2], { device: device(), dtype: "float32" }] }),
  "Tensor.write": () => ({ on: floats(4), args: [wave(4)] }),
  "Tensor.cast": () => ({ on: floats(4), args: ["float16"] }),
  "Tensor.reshape": () => ({ on: floats(4), args: [[2, -1]] }),
  "Tensor.view": () => ({ on: floats(4), args: [(values: ArrayLike<number>) => values.length] }),
  "Tensor.slice": () => ({ on: floats(4, 2), args: [1, 3] }),
  concat: () => ({ args: [[floats(2, 3), floats(1, 3)]] }),
  "Tensor.to": () => ({ on: floats(4), args: [device()] }),
  Parameter: () => ({ args: [x(), { requiresGrad: true }] }),
  "Parameter.to": () => ({ on: new Parameter(x()), args: [device()] }),

  "Codebook.named": () => ({ args: ["nf4"] }),
  "Codebook.from": () => ({ args: [[-1, 0, 0.5, 1]] }),
  createDynamicMap: () => ({ args: [true, 7, 8] }),
  createLinearMap: () => ({ args: [true, 8, true] }),
  createFp8Map: () => ({ args: [true, 4, 3, 8] }),
  createNormalMap: () => ({ args: [0.96, true, 4] }),

  quantize4bit: () => ({
    args: [x(), { quantType: "nf4", blocksize: 64, compressStatistics: true, ...scales() }],
  }),
  quantizeAffine: () => ({ args: [x(), { bits: 4, blocksize: 64 }] }),
  quantizeBlockwise: () => ({
    args: [x(), { code: Codebook.named("nf3"), blocksize: 64, nested: true, ...scales() }],
  }),
  dequantize4bit: () => ({ args: [w4(), { dtype: "float16" }] }),
  dequantizeBlockwise: () => ({ args: [w4(), { dtype: "float16" }] }),
  "QuantizedTensor.fromParts": () => ({ args: [parts()] }),
  "QuantizedTensor.matmul": () => ({ on: w4(), args: [x(), products()] }),
  "QuantizedTensor.to": () => ({ on: w4(), args: [device()] }),

  matmul4bit: () => ({ args: [x(), w4(), products()] }),
  matmulBlockwise: () => ({ args: [x(), quantizeBlockwise(floats(32, 64)), products()] }),
  matmul: () => ({ args: [x(), w8(), products()] }),
  matmulBackward: () => ({ args: [dy(), w4()] }),
  linear: () => ({ args: [x(), floats(32, 64), products()] }),
  matmul4bitBackward: () => ({ args: [dy(), w4()] }),
  matmulBlockwiseBackward: () => ({ args: [dy(), w4()] }),
  linearBackward: () => ({ args: [dy(), floats(32, 64)] }),
  linearBackwardWeight: () => ({ args: [dy(), x(), { dtype: "float16" }] }),
  linearBackwardBias: () => ({ args: [dy(), { dtype: "float16" }] }),

  embedding: () => ({ args: [indices(), w4(), { dtype: "float16" }] }),
  embeddingBackward: () => ({ args: [x(), indices(), 32, { dtype: "float16", paddingIdx: 0 }] }),
  rmsNorm: () => ({ args: [x(), floats(64), { eps: 1e-6, offset: 1, residual: x(), scale: 0.5 }] }),
  activate: () => ({ args: [x(), "silu", { up: x(), gated: true }] }),
  attention: () => ({ args: [x(), seen(), attentionOptions()] }),
  KvCache: () => ({
    args: [{ layers: 1, heads: 2, columns: 8, slots: 1, capacity: 16, dtype: "int8", device: device() }],
  }),
  "KvCache.resize": () => ({ on: cache(), args: [{ slots: 2, capacity: 32 }] }),
  "KvCache.read": () => ({ on: cache(), args: [0, 16] }),
  "KvCache.write": () => ({ on: cache(), args: [0, 1, new Uint8Array(cache().rowBytes)] }),
  topK: () => ({ args: [x(), 4] }),
  route: () => ({ args: [x(), 4, { normalised: true }] }),
  scatterAdd: () => ({ args: [x(), floats(1, 64), Tensor.from([1], [1], { dtype: "int32" }), floats(1)] }),
  joinRows: () => ({ args: [[x(), floats(1, 64)]] }),
  layerNorm: () => ({ args: [x(), floats(64), floats(64), { eps: 1e-5 }] }),
  layerNormBackward: () => ({ args: [x(), x(), floats(64), { eps: 1e-5 }] }),

  int8VectorwiseQuant: () => ({ args: [x(), { threshold: 6 }] }),
  int8DoubleQuant: () => ({ args: [x(), { threshold: 6 }] }),
  int8VectorwiseDequant: () => ({ args: [codes(2, 64), floats(2), { dtype: "float16" }] }),
  int8LinearMatmul: () => ({ args: [codes(2, 64), codes(32, 64)] }),
  int8MmDequant: () => ({
    args: [Tensor.zeros([2, 32], { dtype: "int32" }), floats(2), floats(32), { bias: floats(32), dtype: "float32" }],
  }),
  int8ScaledMm: () => ({
    args: [codes(2, 64), codes(32, 64), floats(2), floats(32), { bias: floats(32), dtype: "float32" }],
  }),
  int8MixedScaledMm: () => {
    const { quantized, rowStats, outlierCols } = int8VectorwiseQuant(x(), { threshold: 0.9 });
    return { args: [x(), quantized, codes(32, 64), rowStats, floats(32), { outlierCols, bias: floats(32) }] };
  },
  Int8Weight: () => ({ args: [codes(32, 64), floats(32)] }),
  "Int8Weight.quantize": () => ({ args: [floats(32, 64)] }),
  "Int8Weight.dequantize": () => ({ on: w8(), args: [{ dtype: "float32" }] }),
  "Int8Weight.matmul": () => ({ on: w8(), args: [x(), products()] }),
  "Int8Weight.to": () => ({ on: w8(), args: [device()] }),
  matmul8bit: () => ({ args: [x(), w8(), { threshold: 6, bias: floats(32) }] }),
  matmul8bitFp: () => ({ args: [x(), w8(), products()] }),

  Embedding: () => ({ args: [floats(32, 64), { paddingIdx: 0 }] }),
  "Embedding.init": () => ({ args: [32, 64, { paddingIdx: 0, ...init() }] }),
  "Embedding.load": () => ({ args: [opened, "table", { paddingIdx: 0, device: device() }] }),
  "Embedding.forward": () => ({ on: new nn.Embedding(floats(32, 64)), args: [indices()] }),
  "Embedding.backward": () => ({ on: new nn.Embedding(floats(32, 64)), args: [x(), indices()] }),
  StableEmbedding: () => ({ args: [floats(32, 64), { paddingIdx: 0, norm: nn.LayerNorm.init(64) }] }),
  "StableEmbedding.init": () => ({ args: [32, 64, { paddingIdx: 0, ...init() }] }),
  "StableEmbedding.load": () => ({ args: [opened, "table", { paddingIdx: 0, device: device() }] }),
  "StableEmbedding.forward": () => ({ on: new nn.StableEmbedding(floats(32, 64)), args: [indices()] }),
  "StableEmbedding.backward": () => ({ on: new nn.StableEmbedding(floats(32, 64)), args: [x(), indices()] }),
  Embedding4bit: () => ({ args: [floats(32, 64), { dtype: "float32", ...four() }] }),
  "Embedding4bit.init": () => ({ args: [32, 64, { ...four(), ...init() }] }),
  "Embedding4bit.load": () => ({ args: [opened, "four", { dtype: "float32", ...four(), device: device() }] }),
  "Embedding4bit.forward": () => ({ on: new nn.Embedding4bit(floats(32, 64)), args: [indices()] }),
  EmbeddingNF4: () => ({ args: [floats(32, 64), { dtype: "float32", quantStorage: "uint8", blocksize: 64 }] }),
  EmbeddingFP4: () => ({ args: [floats(32, 64), { dtype: "float32", quantStorage: "uint8", blocksize: 64 }] }),
  Embedding8bit: () => ({ args: [floats(32, 64), { dtype: "float32" }] }),
  "Embedding8bit.init": () => ({ args: [32, 64, init()] }),
  "Embedding8bit.load": () => ({ args: [opened, "eight", { dtype: "float32", device: device() }] }),
  "Embedding8bit.forward": () => ({ on: new nn.Embedding8bit(floats(32, 64)), args: [indices()] }),
  "Layer.stateDict": () => ({ on: linear4bit(), args: ["layer"] }),
  "Layer.to": () => ({ on: linear4bit(), args: [device()] }),
  LayerNorm: () => ({ args: [floats(64), floats(64), { eps: 1e-5 }] }),
  "LayerNorm.init": () => ({ args: [64, { eps: 1e-5, device: device() }] }),
  "LayerNorm.load": () => ({ args: [opened, "table.norm", { eps: 1e-5, device: device() }] }),
  "LayerNorm.forward": () => ({ on: nn.LayerNorm.init(64), args: [x()] }),
  "LayerNorm.backward": () => ({ on: nn.LayerNorm.init(64), args: [x(), x()] }),
  Linear4bit: () => ({
    args: [floats(32, 64), { bias: floats(32), computeDtype: "float16", precision: "high", ...four() }],
  }),
  "Linear4bit.init": () => ({ args: [64, 32, { computeDtype: "float16", ...four(), ...init() }] }),
  "Linear4bit.load": () => ({
    args: [opened, "four", { computeDtype: "float16", precision: "high", device: device() }],
  }),
  "Linear4bit.forward": () => ({ on: linear4bit(), args: [x()] }),
  "Linear4bit.backward": () => ({ on: linear4bit(), args: [dy()] }),
  Linear: () => ({ args: [floats(32, 64), { bias: floats(32), precision: "high" }] }),
  "Linear.forward": () => ({ on: new nn.Linear(floats(32, 64)), args: [x()] }),
  "Linear.backward": () => ({ on: new nn.Linear(floats(32, 64)), args: [dy()] }),
  loadLinear: () => ({
    args: [opened, "four", { device: device(), computeDtype: "float16", precision: "high", threshold: 6 }],
  }),
  LinearNF4: () => ({ args: [floats(32, 64), { bias: floats(32), computeDtype: "float16" }] }),
  LinearFP4: () => ({ args: [floats(32, 64), { bias: floats(32), computeDtype: "float16" }] }),
  Linear8bitLt: () => ({ args: [floats(32, 64), { bias: floats(32), threshold: 6 }] }),
  "Linear8bitLt.init": () => ({ args: [64, 32, { threshold: 6, ...init() }] }),
  "Linear8bitLt.load": () => ({ args: [opened, "eight", { threshold: 6, device: device() }] }),
  "Linear8bitLt.forward": () => ({ on: new nn.Linear8bitLt(floats(32, 64)), args: [x()] }),
  "Linear8bitLt.backward": () => ({ on: new nn.Linear8bitLt(floats(32, 64)), args: [dy()] }),
  Lora: () => ({ args: [linear4bit(), floats(4, 64), floats(32, 4), { alpha: 8 }] }),
  "Lora.init": () => ({ args: [linear4bit(), { r: 4, alpha: 8, dtype: "float32", seed: 1 }] }),
  "Lora.load": () => ({ args: [linear4bit(), opened, "lora", { alpha: 8 }] }),
  "Lora.forward": () => ({ on: lora(), args: [x()] }),
  "Lora.backward": () => ({ on: lora(), args: [dy(), x()] }),

  "GlobalOptimManager.overrideConfig": () => ({
    on: optim.GlobalOptimManager.getInstance(),
    args: [[new Parameter(floats(4))], { lr: 0.1, betas: [0.9, 0.99], optimBits: 8, skipZeros: false }],
  }),
  "GlobalOptimManager.overridesOf": () => ({
    on: optim.GlobalOptimManager.getInstance(),
    args: [new Parameter(floats(4))],
  }),
  "Optimizer.step": () => ({ on: adam(), args: [{ gnormScale: 0.5 }] }),
  "Optimizer.loadStateDict": () => {
    const optimizer = adam();
    optimizer.step();
    return { on: adam(), args: [optimizer.stateDict()] };
  },
  "Optimizer.to": () => ({ on: adam(), args: [device()] }),
};

for (const name of Object.keys(optim))
  if (name in optim && !["Optimizer", "GlobalOptimManager"].includes(name))
    recipes[name] = () => ({ args: [[new Parameter(floats(4))], optimizerOptions(name)] });

/** Whole models and what they hand out: test/model. */
const wholeModels = ["Model", "Session", "Chat", "Tokenizer", "TextGeneration"];

let written = 0;
const output = () => join(folder, `written-${written++}`);
const transformed = () => ({ output: output(), force: false, dtype: "float32", shardBytes: 1e9, onProgress: () => {} });
const quantized = () => ({
  ...transformed(),
  ...{ quantType: "nf4", blocksize: 64, doubleQuant: true, scales: "absmax", quantStorage: "uint8", skip: ["head"] },
});
const spec = (name: string) => ({ name, dtype: "F32" as const, shape: [2], bytes: wave(2) });

Object.assign(recipes, {
  openCheckpoint: () => ({ args: [path] }),
  openSafetensors: () => ({ args: [path] }),
  openGguf: () => ({ args: [gguf] }),
  loadGguf: () => ({ args: [openedGguf, "model.norm.weight", { device: device(), dtype: "float16" }] }),
  findQuantized: () => ({ args: [opened.tensors] }),
  fromStateDict: () => ({ args: [opened.quantized.get("four.weight"), device()] }),
  loadWeight: () => ({ args: [opened, "eight.weight", device()] }),
  toStateDict: () => ({ args: ["x.weight", w4(), { quantStorage: "uint8" }] }),
  inspectCheckpoint: () => ({ args: [nf4, { errorAgainst: plain, onProgress: () => {} }] }),
  verifyCheckpoint: () => ({ args: [path, { onProgress: () => {} }] }),
  quantizeCheckpoint: () => ({ args: [plain, quantized()] }),
  dequantizeCheckpoint: () => ({ args: [path, transformed()] }),
  quantizeToMlx: () => ({ args: [plain, { ...transformed(), bits: 4, blocksize: 64 }] }),
  exportCoreml: () => ({
    args: [bert, { output: `${output()}.mlpackage`, force: false, dtype: "float16", tokens: 8 }],
  }),
  convertGguf: () => ({ args: [gguf, quantized()] }),
  saveAdapter: () => ({ args: [{ "model.q": lora() }, { output: output(), force: false, base: "model" }] }),
  writeSafetensors: () => ({ args: [output(), [spec("x")], { metadata: { format: "pt" } }] }),
  SafetensorsWriter: () => ({ args: [output(), [spec("x")]] }),
  "SafetensorsWriter.write": () => ({
    on: new checkpoint.SafetensorsWriter(output(), [spec("x")]),
    args: ["x", wave(2)],
  }),
} satisfies Record<string, () => Call>);

/** What asks the network, and what needs a model and an adapter: they share their checks with what is tried. */
const otherFiles = ["checkpoint.fetchModel", "checkpoint.mergeAdapter"];

/** What this table has no call of. */
export const isExempt = ({ exported }: Callable) =>
  exported === "BnbError" || otherFiles.includes(exported) || wholeModels.includes(exported);

/** A call of a function that succeeds; undefined where the table has none. */
export const recipeOf = ({ name }: Callable): (() => Call) | undefined => recipes[name];

/** Names of the table that no function has. */
export const stale = Object.keys(recipes).filter((name) => !callables.some((callable) => callable.name === name));

/** Calls it. */
export function run({ exported, kind, name }: Callable, { on, args }: Call): unknown {
  const value = resolved(exported) as Record<string, (...args: unknown[]) => unknown>;
  const member = name.slice(name.lastIndexOf(".") + 1);
  if (kind === "constructor") return Reflect.construct(value as unknown as new () => unknown, args);
  if (kind === "function") return (value as unknown as (...args: unknown[]) => unknown)(...args);
  if (kind === "static") return value[member]!(...args);
  return (on as typeof value)[member]!(...args);
}
