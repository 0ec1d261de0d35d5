// What a model's thread and the thread of the connections say to each other.
import type { BnbErrorCode } from "../error.ts";
import type { TextFormat } from "../model/constraint.ts";
import type { FinishReason, GenerateOptions, Usage } from "../model/generation.ts";
import type { Message } from "../model/tokenizer.ts";
import type { Precision } from "../native.ts";
import type { EngineState } from "./engine.ts";

/** How a model is loaded, and how many texts it writes at once. */
export interface HostOptions {
  readonly path: string;
  readonly slots: number;
  readonly capacity?: number | undefined;
  readonly queue: number;
  readonly quantType?: "nf4" | "fp4" | "int8" | undefined;
  /** Of products with 4-bit weights: `"high"` by default. */
  readonly precision?: Precision | undefined;
}

/** What can go over to another thread of {@link GenerateOptions}. */
export type PlainOptions = Omit<GenerateOptions, "signal" | "logitsProcessor">;

/** What a text is to continue: a conversation, a text, or ids. */
export type Prompt =
  | { readonly messages: readonly Message[]; readonly tools?: readonly unknown[] | undefined }
  | { readonly text: string }
  | { readonly ids: readonly number[] };

export interface TextRequest {
  readonly prompt: Prompt;
  readonly options: PlainOptions;
  readonly format?: TextFormat | undefined;
}

/** A token with its spelling. */
export interface ListedToken {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: readonly number[];
}

export interface ListedChoice extends ListedToken {
  readonly top: readonly ListedToken[];
}

/** What the other threads need to know of a model. */
export interface ModelInfo {
  readonly family: string;
  readonly kind: "decoder" | "encoder";
  readonly positions: number;
  readonly device: string;
  readonly bytes: number;
  /** How it asks for functions to be called; undefined where its template knows no tools. */
  readonly tools: ToolStyle | undefined;
}

/** How a family writes calls of functions. */
export type ToolStyle = "hermes" | "llama3" | "mistral";

export type ToHost =
  | { readonly type: "text"; readonly id: number; readonly request: TextRequest }
  | {
      readonly type: "embed";
      readonly id: number;
      readonly inputs: readonly (string | readonly number[])[];
      readonly base64: boolean;
    }
  | { readonly type: "cancel"; readonly id: number }
  | { readonly type: "state"; readonly id: number }
  | { readonly type: "drain"; readonly id: number };

export type FromHost =
  | { readonly type: "ready"; readonly info: ModelInfo }
  | { readonly type: "text"; readonly id: number; readonly text: string; readonly logprobs: readonly ListedChoice[] }
  | { readonly type: "end"; readonly id: number; readonly reason: FinishReason; readonly usage: Usage }
  | { readonly type: "embeddings"; readonly id: number; readonly data: string; readonly tokens: number }
  | { readonly type: "state"; readonly id: number; readonly state: EngineState | undefined }
  | { readonly type: "drained"; readonly id: number }
  | { readonly type: "error"; readonly id: number | undefined; readonly error: PlainError };

/** An error, as it crosses threads. */
export interface PlainError {
  readonly message: string;
  readonly code: BnbErrorCode | undefined;
  /** Too many wait already. */
  readonly busy: boolean;
}
