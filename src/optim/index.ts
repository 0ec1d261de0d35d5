// What the package exports as optim: bitsandbytes' optimizers, in 8 and 32 bits.
export { Adagrad, Adagrad8bit, Adagrad32bit, type AdagradOptions } from "./adagrad.ts";
export { Adam, Adam8bit, Adam32bit, type AdamOptions, PagedAdam, PagedAdam8bit, PagedAdam32bit } from "./adam.ts";
export { AdamW, AdamW8bit, AdamW32bit, PagedAdamW, PagedAdamW8bit, PagedAdamW32bit } from "./adamw.ts";
export {
  AdEMAMix,
  AdEMAMix8bit,
  AdEMAMix32bit,
  type AdEMAMixOptions,
  PagedAdEMAMix,
  PagedAdEMAMix8bit,
  PagedAdEMAMix32bit,
} from "./ademamix.ts";
export type { BitsOption, CommonOptions, Config, PagedOption } from "./config.ts";
export { LAMB, LAMB8bit, LAMB32bit, type LAMBOptions } from "./lamb.ts";
export { LARS, LARS8bit, LARS32bit, type LARSOptions } from "./lars.ts";
export { Lion, Lion8bit, Lion32bit, type LionOptions, PagedLion, PagedLion8bit, PagedLion32bit } from "./lion.ts";
export { GlobalOptimManager } from "./manager.ts";
export {
  Optimizer,
  type OptimizerClass,
  type OptimizerStateDict,
  type ParamGroup,
  type Params,
  type SavedGroup,
  type StepOptions,
} from "./optimizer.ts";
export { RMSprop, RMSprop8bit, RMSprop32bit, type RMSpropOptions } from "./rmsprop.ts";
export { SGD, SGD8bit, SGD32bit, type SGDOptions } from "./sgd.ts";
export type { StateEntry, StateTensors } from "./state.ts";
