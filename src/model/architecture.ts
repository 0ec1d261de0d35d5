// What a model is made of, as one record: everything in which families differ is a field here, and code is the
// same.
import type { Activation } from "../activate.ts";

/** How positions turn into angles (RoPE, Su et al. 2021). */
export interface RopeSpec {
  /** Columns of a head that are rotated. */
  readonly rotated: number;
  readonly theta: number;
  /** How frequencies are stretched for long texts: transformers' `rope_type`, with its parameters. */
  readonly type: "default" | "linear" | "dynamic" | "llama3" | "yarn" | "longrope";
  readonly factor: number;
  readonly originalPositions: number;
  /** Of yarn and longrope: what cosines and sines are multiplied by. */
  readonly attentionFactor: number;
  /** Of llama3. */
  readonly lowFrequency: number;
  readonly highFrequency: number;
  /** Of yarn. */
  readonly betaFast: number;
  readonly betaSlow: number;
  readonly truncate: boolean;
  /** Of longrope: a factor for each frequency, within the original positions and beyond. */
  readonly shortFactors: readonly number[];
  readonly longFactors: readonly number[];
}

/** One layer, as far as it may differ from the others. */
export interface LayerSpec {
  /** Keys further away than this are not seen; undefined: all are. */
  readonly window: number | undefined;
  readonly rope: RopeSpec | undefined;
  /** Whether its MLP is a mixture of experts. */
  readonly sparse: boolean;
  /** Whether it normalises before attention. ModernBERT's first layer does not. */
  readonly attentionNorm: boolean;
}

/**
 * Names of modules in the checkpoint. Inside a layer they follow its prefix; where several are given, the first that is
 * there.
 */
export interface ModuleNames {
  /** What may stand before every name, such as `model.` or `bert.`. */
  readonly roots: readonly string[];
  readonly embedding: string;
  readonly positions?: string;
  readonly tokenTypes?: string;
  readonly embeddingNorm?: string;
  readonly relativeBias?: string;
  /** With `{}` for the number. */
  readonly layer: string;
  /** One module, or three that are joined. */
  readonly qkv: readonly (readonly string[])[];
  readonly attentionOut: string;
  readonly qNorm?: string;
  readonly kNorm?: string;
  /** Before and after attention, before and after the MLP: those that the family has. */
  readonly norms: Readonly<Partial<Record<NormPlace, string>>>;
  /** Gate and up, apart or as one; or what the activation is taken of. */
  readonly mlpIn: readonly (readonly string[])[];
  readonly mlpOut: string;
  readonly finalNorm?: string;
  readonly head?: string;
  readonly experts?: ExpertNames;
}

export interface ExpertNames {
  readonly router: string;
  /** With `{}` for the number. */
  readonly gate: string;
  readonly up: string;
  readonly down: string;
  /** One that every row goes to, weighed by a sigmoid of its own. */
  readonly shared?: { readonly gate: string; readonly mlp: string };
}

/**
 * Where norms stand. `before…` is taken of what goes in. `after…` of what comes out, before it is added to the stream.
 * `sum…` of the stream when it has been added, as BERT has it.
 */
export type NormPlace = "beforeAttention" | "afterAttention" | "sumAttention" | "beforeMlp" | "afterMlp" | "sumMlp";

/** Everything that the decoder and the encoder need to know about a model. */
export interface Architecture {
  /** transformers' `model_type`. */
  readonly family: string;
  readonly kind: "decoder" | "encoder";
  readonly vocabulary: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** The longest text, in tokens. */
  readonly positions: number;
  readonly layers: readonly LayerSpec[];
  readonly norm: { readonly kind: "rms" | "layer"; readonly eps: number; readonly offset: number };
  /** Norms of queries and keys: of each head, or over all of them; `false`: none. */
  readonly qkNorm: "head" | "all" | false;
  readonly attention: { readonly scale: number; readonly softcap: number };
  readonly mlp: { readonly activation: Activation; readonly gated: boolean };
  /** Attention and MLP take the same input, and both are added. */
  readonly parallel: boolean;
  readonly experts: { readonly count: number; readonly perToken: number; readonly normalised: boolean } | undefined;
  readonly multipliers: {
    readonly embedding: number;
    readonly residual: number;
    /** Logits are multiplied by it. */
    readonly logits: number;
  };
  /** Logits become c · tanh(logit / c). 0: they stay. */
  readonly logitSoftcap: number;
  /** The head is the embedding. */
  readonly tied: boolean;
  /** The first row of learned positions that a token gets. */
  readonly firstPosition: number;
  /** Buckets of MPNet's relative positions. */
  readonly relativeBuckets: number;
  readonly tokens: {
    readonly bos: number | undefined;
    readonly eos: readonly number[];
    readonly pad: number | undefined;
  };
  readonly names: ModuleNames;
}
