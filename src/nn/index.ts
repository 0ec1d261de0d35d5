// What the package exports as nn: bitsandbytes' layers, each made of its weight.
export { Embedding, type EmbeddingOptions, StableEmbedding } from "./embedding.ts";
export { Embedding4bit, type Embedding4bitOptions, EmbeddingFP4, EmbeddingNF4 } from "./embedding4bit.ts";
export { Embedding8bit, type Embedding8bitOptions } from "./embedding8bit.ts";
export type { InitOptions } from "./gradient.ts";
export { Layer, type LinearLayer } from "./layer.ts";
export { LayerNorm } from "./layer_norm.ts";
export { Linear, type LinearOptions, type LoadLinearOptions, loadLinear } from "./linear.ts";
export { Linear4bit, type Linear4bitOptions, LinearFP4, LinearNF4 } from "./linear4bit.ts";
export { Linear8bitLt, type Linear8bitLtOptions } from "./linear8bit.ts";
export { Lora } from "./lora.ts";
