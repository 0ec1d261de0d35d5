// The C ABI as Bun sees it: csrc/bnb.h, one row for each function. test/abi.test.ts holds the two together.
import { type CString, FFIType, type Pointer } from "bun:ffi";
import { BnbError, statuses } from "./error.ts";
import { openLibrary } from "./open.ts";

const { ptr, i32, u32, u64, f32, f64, cstring, void: nothing } = FFIType;

/** A `size_t` argument: a number crosses as `ptr` in 2 ns, as `u64` in 14. As a result it is a `u64`, a bigint. */
const usize = ptr;

export const symbols = {
  bnb_last_status: { args: [], returns: i32 },
  bnb_last_error: { args: [], returns: cstring },
  bnb_version: { args: [], returns: cstring },

  bnb_device_kind: { args: [u32], returns: cstring },
  bnb_device_open: { args: [cstring], returns: ptr },
  bnb_device_lacks_kernels: { args: [cstring], returns: i32 },
  bnb_device_take_kernels: { args: [cstring, ptr, usize], returns: i32 },
  bnb_device_name: { args: [ptr], returns: cstring },
  bnb_device_describe: { args: [ptr], returns: cstring },
  bnb_device_wait: { args: [ptr], returns: i32 },
  bnb_device_idle: { args: [ptr], returns: i32 },
  bnb_device_size: { args: [ptr, i32, f64], returns: f64 },
  bnb_device_counter: { args: [ptr, i32], returns: f64 },
  bnb_device_fallbacks: { args: [ptr], returns: cstring },

  bnb_tensor_zeros: { args: [ptr, i32, usize, usize], returns: ptr },
  bnb_tensor_from: { args: [ptr, i32, usize, usize, ptr, usize], returns: ptr },
  bnb_tensor_from_file: { args: [ptr, i32, usize, usize, i32, usize, cstring, i32], returns: ptr },
  bnb_tensor_from_gguf: { args: [ptr, u32, usize, usize, ptr, usize, i32], returns: ptr },
  bnb_tensor_write: { args: [ptr, ptr, usize], returns: i32 },
  bnb_tensor_read: { args: [ptr, ptr, usize], returns: i32 },
  bnb_tensor_host: { args: [ptr], returns: ptr },
  bnb_tensor_to: { args: [ptr, ptr], returns: ptr },
  bnb_tensor_reshape: { args: [ptr, usize, usize], returns: ptr },
  bnb_tensor_slice: { args: [ptr, usize, usize], returns: ptr },
  bnb_tensor_put: { args: [ptr, usize, ptr], returns: i32 },
  bnb_tensor_dtype: { args: [ptr], returns: i32 },
  bnb_tensor_rows: { args: [ptr], returns: u64 },
  bnb_tensor_columns: { args: [ptr], returns: u64 },
  bnb_tensor_free: { args: [ptr], returns: nothing },

  bnb_codebook_named: { args: [cstring], returns: ptr },
  bnb_codebook_from: { args: [ptr, usize], returns: ptr },
  bnb_codebook_dynamic: { args: [i32, u32, u32], returns: ptr },
  bnb_codebook_linear: { args: [i32, u32, i32], returns: ptr },
  bnb_codebook_fp8: { args: [i32, u32, u32, u32], returns: ptr },
  bnb_codebook_normal: { args: [f64, i32, u32], returns: ptr },
  bnb_codebook_size: { args: [ptr], returns: u64 },
  bnb_codebook_read: { args: [ptr, ptr, usize], returns: i32 },
  bnb_codebook_free: { args: [ptr], returns: nothing },

  bnb_quantized_from: {
    args: [ptr, usize, usize, ptr, usize, ptr, ptr, ptr, usize, ptr, f32, ptr, ptr],
    returns: ptr,
  },
  bnb_quantized_part: { args: [ptr, i32], returns: ptr },
  bnb_quantized_rows: { args: [ptr], returns: u64 },
  bnb_quantized_columns: { args: [ptr], returns: u64 },
  bnb_quantized_block: { args: [ptr], returns: u64 },
  bnb_quantized_nested_block: { args: [ptr], returns: u64 },
  bnb_quantized_offset: { args: [ptr], returns: f32 },
  bnb_quantized_free: { args: [ptr], returns: nothing },
  bnb_record: { args: [ptr], returns: i32 },
  bnb_record_end: { args: [], returns: ptr },
  bnb_replay: { args: [ptr], returns: i32 },
  bnb_recording_free: { args: [ptr], returns: nothing },

  bnb_cast: { args: [ptr, i32], returns: ptr },
  bnb_quantize: { args: [ptr, ptr, usize, usize, i32, ptr], returns: ptr },
  bnb_quantize_affine: { args: [ptr, u32, usize], returns: ptr },
  bnb_dequantize: { args: [ptr, i32], returns: ptr },
  bnb_matmul: { args: [ptr, ptr, ptr, i32], returns: ptr },
  bnb_matmul_quantized: { args: [ptr, ptr, ptr, i32], returns: ptr },
  bnb_matmul_backward: { args: [ptr, ptr], returns: ptr },
  bnb_matmul_quantized_backward: { args: [ptr, ptr], returns: ptr },
  bnb_matmul_backward_weight: { args: [ptr, ptr, i32], returns: ptr },
  bnb_embedding: { args: [ptr, ptr, i32], returns: ptr },
  bnb_embedding_quantized: { args: [ptr, ptr, i32], returns: ptr },
  bnb_embedding_backward: { args: [ptr, ptr, usize, i32, i32], returns: ptr },
  bnb_layer_norm: { args: [ptr, ptr, ptr, f32], returns: ptr },
  bnb_layer_norm_backward: { args: [ptr, ptr, ptr, f32], returns: ptr },
  bnb_layer_norm_backward_weight: { args: [ptr, ptr, f32], returns: ptr },
  bnb_add: { args: [ptr, ptr, f32], returns: ptr },
  bnb_mul: { args: [ptr, ptr], returns: ptr },
  bnb_exp: { args: [ptr], returns: ptr },
  bnb_sigmoid: { args: [ptr], returns: ptr },
  bnb_transpose: { args: [ptr], returns: ptr },
  bnb_softmax: { args: [ptr], returns: ptr },
  bnb_int8_outliers: { args: [ptr, f32], returns: ptr },
  bnb_int8_stats: { args: [ptr, f32, i32], returns: ptr },
  bnb_int8_vectorwise_quant: { args: [ptr, ptr, f32, ptr, i32], returns: ptr },
  bnb_int8_vectorwise_dequant: { args: [ptr, ptr, i32], returns: ptr },
  bnb_int8_linear_matmul: { args: [ptr, ptr], returns: ptr },
  bnb_int8_mm_dequant: { args: [ptr, ptr, ptr, ptr, i32], returns: ptr },
  bnb_int8_scaled_mm: { args: [ptr, ptr, ptr, ptr, ptr, i32], returns: ptr },
  bnb_int8_mixed_scaled_mm: { args: [ptr, ptr, ptr, ptr, ptr, ptr, ptr], returns: ptr },
  bnb_int8_matmul: { args: [ptr, ptr, ptr, f32, ptr], returns: ptr },
  bnb_rms_norm: { args: [ptr, ptr, f32, ptr, f32, f32], returns: ptr },
  bnb_activate: { args: [ptr, ptr, i32, i32], returns: ptr },
  bnb_cache_new: { args: [ptr, i32, usize, usize, usize, usize, usize], returns: ptr },
  bnb_cache_resize: { args: [ptr, usize, usize], returns: i32 },
  bnb_cache_read: { args: [ptr, usize, usize, ptr, usize], returns: i32 },
  bnb_cache_write: { args: [ptr, usize, usize, ptr, usize], returns: i32 },
  bnb_cache_row_bytes: { args: [ptr], returns: u64 },
  bnb_cache_free: { args: [ptr], returns: nothing },
  bnb_attention: { args: [ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, u32, ptr], returns: ptr },
  bnb_topk: { args: [ptr, usize], returns: ptr },
  bnb_route: { args: [ptr, usize, i32], returns: ptr },
  bnb_scatter_add: { args: [ptr, ptr, ptr, ptr], returns: i32 },
  bnb_tensor_join: { args: [ptr, ptr], returns: ptr },
  bnb_quantized_join: { args: [ptr, ptr], returns: ptr },
  bnb_compare: { args: [ptr, ptr], returns: ptr },
  bnb_optimizer_step: { args: [i32, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr], returns: i32 },

  bnb_deallocator: { args: [], returns: ptr },
} as const;

/** The enums of bnb.h, under the names that TypeScript uses. */
export const dtypes = { float32: 0, float16: 1, bfloat16: 2, int8: 3, uint8: 4, int32: 5 } as const;
export const floatDtypes = { float32: dtypes.float32, float16: dtypes.float16, bfloat16: dtypes.bfloat16 } as const;
export const namedPrecisions = { highest: 1, high: 2, medium: 3 } as const;
export const precisions = { default: 0, ...namedPrecisions } as const;
export const scaleRules = { absmax: 0, leastSquares: 1 } as const;
export const parts = {
  codes: 0,
  absmax: 1,
  code: 2,
  nestedAbsmax: 3,
  nestedCode: 4,
  offsets: 5,
  nestedOffsets: 6,
  offsetsAbsmax: 7,
} as const;
export const optimizers = { adam: 0, ademamix: 1, momentum: 2, lion: 3, rmsprop: 4, adagrad: 5 } as const;
export const activations = { silu: 0, gelu: 1, geluTanh: 2, tanh: 3 } as const;
export const counters = { bytes: 0, peak: 1, cached: 2, operations: 3, fallbacks: 4, mapped: 5, room: 6 } as const;

/** Where a GPU's products change from one kernel to the next. */
export const sizes = {
  vectorsMost: 0,
  skinnyMost: 1,
  wideVectors: 2,
  byteTable: 3,
  tilesWanted: 4,
  splitLeast: 5,
} as const;

/** The members of `bnb_hyperparameters`, all doubles, in their order: an array of doubles is one. */
export const hyperparameters = [
  "lr",
  "beta1",
  "beta2",
  "beta3",
  "alpha",
  "eps",
  "weightDecay",
  "gnormScale",
  "maxUnorm",
  "skipZeros",
  "step",
] as const;

/** The same of `bnb_attention_options`. */
export const attentionOptions = ["heads", "kvHeads", "scale", "softcap", "normOffset", "normEps"] as const;

/**
 * The least accuracy of a matrix product, in torch's words. `"highest"`: products in fp32. `"high"`: activations and
 * codebook as 16-bit integers, error 2e-4, and at most 5e-4. `"medium"`: as 8-bit integers, 1e-2, and at most 3e-2. The
 * default is `"highest"` for float32 activations and `"high"` for float16 and bfloat16, whose own rounding is coarser
 * than that.
 */
export type Precision = keyof typeof namedPrecisions;

export const native = openLibrary(symbols);

/** The library's last failure on this thread. Must be asked for right after the call that failed. */
export function lastError(): BnbError {
  const status = statuses[native.bnb_last_status()];
  return new BnbError(text(native.bnb_last_error()), status === "ok" ? "invalid" : status);
}

/** A JavaScript string of what a function returned as `const char *`. */
export function text(string: CString | string | null): string {
  return string === null ? "" : String(string);
}

/** A number as a `size_t` argument. */
export function size(value: number): NativePointer {
  return value as Pointer;
}

/** A native address: a number, or a bigint past 2^53. */
export type NativePointer = Pointer | bigint;
