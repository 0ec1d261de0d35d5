// Owns what the package exports of whole models.
export { Chat, type ChatOptions } from "./chat.ts";
export type { FinishReason, GeneratedToken, GenerateOptions, Usage } from "./generation.ts";
export {
  type Completion,
  type EmbedOptions,
  type LoadOptions,
  Model,
  type ModelGenerateOptions,
  TextGeneration,
} from "./model.ts";
export type { Pooling, PoolingMode } from "./pooling.ts";
export type { SamplingOptions, TokenLogprob } from "./sample.ts";
export { Session, type SessionOptions } from "./session.ts";
export { type ChatTemplateOptions, type Message, Tokenizer } from "./tokenizer.ts";
export type { QuantizeOnLoad } from "./weights.ts";
