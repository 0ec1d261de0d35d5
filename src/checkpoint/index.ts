// What the package exports of checkpoints: files, whole models, state dicts, and ways from one to another.
export { type CoremlOptions, exportCoreml } from "../coreml/export.ts";
export { type AdapterLayer, type SaveAdapterOptions, saveAdapter } from "./adapter.ts";
export { type Checkpoint, openCheckpoint } from "./checkpoint.ts";
export { type GgufModel, type GgufTensor, openGguf } from "./gguf.ts";
export { loadGguf } from "./gguf_weight.ts";
export type { StateGptq, StoredGptq } from "./gptq.ts";
export type { SafetensorsDtype } from "./header.ts";
export { type FetchOptions, fetchModel } from "./hub.ts";
export {
  type InspectOptions,
  inspectCheckpoint,
  type VerifyReport,
  verifyCheckpoint,
  type WeightError,
  type WeightReport,
} from "./inspect.ts";
export type { MlxMode, StateMlx, StoredMlx } from "./mlx.ts";
export type { State4bit, StateBlockwise } from "./packed_state.ts";
export {
  openSafetensors,
  type SafetensorsFile,
  type SafetensorsTensor,
  type SafetensorsValues,
} from "./safetensors.ts";
export {
  findQuantized,
  type StorageDtype,
  type Stored,
  type Stored4bit,
  type StoredBlockwise,
  type StoredInt8,
} from "./state.ts";
export { fromStateDict, type LoadWeightOptions, loadWeight, type StateDictOptions, toStateDict } from "./statedict.ts";
export {
  convertGguf,
  dequantizeCheckpoint,
  mergeAdapter,
  type Progress,
  type QuantizeOptions,
  quantizeCheckpoint,
  type TransformOptions,
  type TransformReport,
} from "./transform.ts";
export { type MlxOptions, quantizeToMlx } from "./transform_mlx.ts";
export {
  type SafetensorsOptions,
  SafetensorsWriter,
  type TensorSource,
  type TensorSpec,
  writeSafetensors,
} from "./writer.ts";
