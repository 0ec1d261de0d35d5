// What the package exports: bitsandbytes' vocabulary for Bun. Examples in docstrings need no more than these names
// imported, and test/docs.test.ts runs each and checks what its `// → value` comments say.

export { type ActivateOptions, type Activation, activate } from "./activate.ts";
export { type AttentionOptions, attention, type CacheDType, KvCache, type KvCacheOptions } from "./attention.ts";
export * as checkpoint from "./checkpoint/index.ts";
export {
  Codebook,
  type CodebookName,
  createDynamicMap,
  createFp8Map,
  createLinearMap,
  createNormalMap,
} from "./codebook.ts";
export { type Comparison, compare } from "./compare.ts";
export { concat } from "./concat.ts";
export {
  currentDevice,
  Device,
  type DeviceKind,
  type DeviceName,
  type DeviceReport,
  devices,
  setDevice,
} from "./device.ts";
export type { ArrayOf, DType, FloatDType, TensorValues } from "./dtype.ts";
export { add, exp, mul, scale, sigmoid, softmax } from "./elementwise.ts";
export { type EmbeddingBackwardOptions, embedding, embeddingBackward } from "./embedding.ts";
export { BnbError, type BnbErrorCode } from "./error.ts";
export {
  type Int8MmOptions,
  type Int8QuantOptions,
  type Int8Rows,
  type Int8RowsAndColumns,
  int8DoubleQuant,
  int8LinearMatmul,
  int8MixedScaledMm,
  int8MmDequant,
  int8ScaledMm,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
} from "./int8.ts";
export { Int8Weight, matmul8bit, matmul8bitFp } from "./int8_weight.ts";
export { joinRows } from "./join.ts";
export { type LayerNormGradients, layerNorm, layerNormBackward } from "./layer_norm.ts";
export { linear, type MatmulOptions, matmul4bit, matmulBlockwise } from "./matmul.ts";
export {
  linearBackward,
  linearBackwardBias,
  linearBackwardWeight,
  matmul4bitBackward,
  matmulBlockwiseBackward,
} from "./matmul_backward.ts";
export { Chat, type ChatOptions, type TurnOptions } from "./model/chat.ts";
export type { TextFormat } from "./model/constraint.ts";
export type { FinishReason, GeneratedToken, GenerateOptions, Usage } from "./model/generation.ts";
export type { LoadOptions } from "./model/load.ts";
export { type Completion, type EmbedOptions, Model, type ModelGenerateOptions } from "./model/model.ts";
export type { SessionOptions } from "./model/pages.ts";
export type { DevicePlace } from "./model/pipeline.ts";
export type { Pooling, PoolingMode } from "./model/pooling.ts";
export type { SamplingOptions, TokenLogprob } from "./model/sample.ts";
export type { SaveOptions } from "./model/save.ts";
export { Session } from "./model/session.ts";
export { TextGeneration } from "./model/text.ts";
export { type ChatTemplateOptions, type Message, Tokenizer } from "./model/tokenizer.ts";
export type { QuantizeOnLoad } from "./model/weights.ts";
export type { Precision } from "./native.ts";
export * as nn from "./nn/index.ts";
export * as optim from "./optim/index.ts";
export { Parameter } from "./parameter.ts";
export {
  type DequantizeOptions,
  dequantize4bit,
  dequantizeBlockwise,
  type Quantize4bitOptions,
  type QuantizeBlockwiseOptions,
  quantize4bit,
  quantizeBlockwise,
  type ScalesOptions,
} from "./quantize.ts";
export { type QuantizeAffineOptions, quantizeAffine } from "./quantize_affine.ts";
export { type NestedScales, type QuantizedParts, QuantizedTensor, type QuantType, type State2 } from "./quantized.ts";
export { type RmsNormOptions, rmsNorm } from "./rms_norm.ts";
export type { Shape } from "./shape.ts";
export { Tensor, type TensorOptions } from "./tensor.ts";
export { type Largest, route, scatterAdd, topK } from "./topk.ts";
export { version } from "./version.ts";
export { matmul, matmulBackward, type Weight } from "./weight.ts";
