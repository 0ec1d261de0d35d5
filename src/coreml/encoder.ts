// An encoder of BERT's kin as an ML program of Core ML's: texts of one length in, vectors out.

import { inMlxOrder } from "../checkpoint/mlx.ts";
import { Codebook } from "../codebook.ts";
import { currentDevice } from "../device.ts";
import type { FloatDType } from "../dtype.ts";
import { add } from "../elementwise.ts";
import { BnbError } from "../error.ts";
import { Int8Weight } from "../int8_weight.ts";
import type { Architecture } from "../model/architecture.ts";
import type { Pooling } from "../model/pooling.ts";
import type { WeightSource } from "../model/weights.ts";
import { dequantizeBlockwise } from "../quantize.ts";
import { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";
import { type Int4, int4Block, int4Of, quantizeInt4 } from "./int4.ts";
import type { Constant, Program, Value } from "./program.ts";

/** What a program computes in: on the Neural Engine only float16. */
export type CoremlDtype = "float16" | "float32";

/** What goes into a program. */
export interface EncoderParts {
  readonly weights: WeightSource;
  readonly architecture: Architecture;
  readonly pooling: Pooling;
  readonly dtype: CoremlDtype;
  /** Of every text; shorter ones are filled up, and the mask says so. */
  readonly tokens: number;
  /** Whether every matrix becomes int4, quantised anew where it is not that already. */
  readonly int4: boolean;
}

const activations: Readonly<Record<string, readonly [type: string, mode?: string]>> = {
  gelu: ["gelu", "EXACT"],
  geluTanh: ["gelu", "TANH_APPROXIMATION"],
  relu: ["relu"],
};

/** @throws BnbError for a model of another make */
export function checkEncoder(architecture: Architecture, path: string): void {
  const { family, kind, layers, names, mlp } = architecture;
  const plain = layers.every(({ rope, window }) => rope === undefined && window === undefined);
  const isBert = kind === "encoder" && plain && names.positions && !names.relativeBias && names.norms.sumMlp;
  if (isBert && !mlp.gated && activations[mlp.activation]) return;
  throw new BnbError(
    `${path}: ${family} is not written for Core ML; bert, roberta and xlm-roberta are.`,
    "unsupported",
  );
}

/** Writes an encoder, a piece at a time; weights of 4 bits keep their codes. */
export class CoremlEncoder {
  /** Weights that are codes in the program; those of them that were quantised for it; codes that are floats in it. */
  readonly packed: string[] = [];
  readonly requantised: string[] = [];
  readonly unpacked: string[] = [];
  /** Whether codes are looked up in a table. */
  usesTables = false;
  /** Tensors that are floats in both. */
  kept = 0;
  readonly #program: Program;
  readonly #parts: EncoderParts;
  readonly #root: string;

  constructor(program: Program, parts: EncoderParts) {
    this.#program = program;
    this.#parts = parts;
    const { roots, embedding } = parts.architecture.names;
    const root = roots.find((one) => parts.weights.has(`${one}${embedding}.weight`));
    if (root === undefined) throw new BnbError(`${parts.weights.path} has no ${embedding}.weight; it is no encoder.`);
    this.#root = root;
  }

  /** The whole graph. @returns what it gives: a vector a token, and one for the text */
  build(): Value[] {
    const { architecture, tokens, pooling, dtype } = this.#parts;
    const program = this.#program;
    const ids = program.input("input_ids", "int32", [1, tokens]);
    const given = program.input("attention_mask", "int32", [1, tokens]);
    const mask = program.operation("cast", { x: given, dtype: dtype === "float16" ? "fp16" : "fp32" }, [1, tokens], {
      kind: dtype,
    });
    const less = program.operation("sub", { x: mask, y: this.#scalar(1) }, mask.shape);
    const far = program.operation("mul", { x: less, y: this.#scalar(1e4) }, mask.shape);
    const unseen = program.operation("reshape", { x: far, shape: [1, 1, 1, tokens] }, [1, 1, 1, tokens]);
    let x = this.#embed(ids);
    for (const index of architecture.layers.keys()) x = this.#layer(x, unseen, index);
    const vectors = program.operation("identity", { x }, x.shape, { name: "last_hidden_state" });
    if (pooling.mode !== "mean" && pooling.mode !== "cls") return [vectors];
    return [vectors, this.#pooled(x, mask)];
  }

  #embed(ids: Value): Value {
    const { architecture, tokens } = this.#parts;
    const { names, hidden, firstPosition } = architecture;
    const shape = [1, tokens, hidden];
    const table = this.#stored(`${names.embedding}.weight`);
    const words = this.#gather(table, ids, shape);
    const rows = this.#stored(`${names.positions}.weight`, [firstPosition, firstPosition + tokens]);
    let x = this.#program.operation("add", { x: words, y: rows }, shape);
    if (names.tokenTypes && this.#has(`${names.tokenTypes}.weight`))
      x = this.#program.operation("add", { x, y: this.#stored(`${names.tokenTypes}.weight`, [0, 1]) }, shape);
    return this.#norm(x, names.embeddingNorm!);
  }

  #gather(x: Value, indices: Value, shape: readonly number[]): Value {
    const how = { axis: 0, batch_dims: 0, validate_indices: false };
    return this.#program.operation("gather", { x, indices, ...how }, shape);
  }

  #layer(x: Value, unseen: Value, index: number): Value {
    const { names, mlp } = this.#parts.architecture;
    const prefix = names.layer.replace("{}", String(index));
    const modules = names.qkv.find((some) => some.length === 3 && this.#has(`${prefix}${some[0]}.weight`));
    const inner = names.mlpIn.find((some) => some.length === 1 && this.#has(`${prefix}${some[0]}.weight`));
    if (!modules || !inner)
      throw new BnbError(`${this.#parts.weights.path} has no ${prefix}${names.qkv[0]![0]}.weight; it is incomplete.`);
    const seen = this.#attend(
      x,
      unseen,
      modules.map((module) => prefix + module),
    );
    const out = this.#linear(seen, prefix + names.attentionOut);
    const sum = this.#program.operation("add", { x: out, y: x }, x.shape);
    const middle = this.#norm(sum, prefix + names.norms.sumAttention!);
    const wide = this.#linear(middle, prefix + inner[0]!);
    const [type, mode] = activations[mlp.activation]!;
    const active = this.#program.operation(type, { x: wide, ...(mode !== undefined && { mode }) }, wide.shape);
    const narrow = this.#linear(active, prefix + names.mlpOut);
    const total = this.#program.operation("add", { x: narrow, y: middle }, x.shape);
    return this.#norm(total, prefix + names.norms.sumMlp!);
  }

  /** softmax(scale · q·k + mask) · v of every head; queries are scaled first, so that float16 has room for products. */
  #attend(x: Value, unseen: Value, modules: readonly string[]): Value {
    const { heads, headDim, attention } = this.#parts.architecture;
    const { tokens } = this.#parts;
    const program = this.#program;
    const apart = [1, tokens, heads, headDim];
    const byHead = [1, heads, tokens, headDim];
    const [q, k, v] = modules.map((module) => {
      const rows = program.operation("reshape", { x: this.#linear(x, module), shape: apart }, apart);
      return program.operation("transpose", { x: rows, perm: [0, 2, 1, 3] }, byHead);
    }) as [Value, Value, Value];
    const scaled = program.operation("mul", { x: q, y: this.#scalar(attention.scale) }, byHead);
    const square = [1, heads, tokens, tokens];
    const scores = program.operation("matmul", { x: scaled, y: k, transpose_x: false, transpose_y: true }, square);
    const masked = program.operation("add", { x: scores, y: unseen }, square);
    const shares = program.operation("softmax", { x: masked, axis: -1 }, square);
    const sums = program.operation("matmul", { x: shares, y: v, transpose_x: false, transpose_y: false }, byHead);
    const rows = program.operation("transpose", { x: sums, perm: [0, 2, 1, 3] }, apart);
    return program.operation("reshape", { x: rows, shape: x.shape }, [1, tokens, heads * headDim]);
  }

  #pooled(x: Value, mask: Value): Value {
    const { architecture, tokens, pooling } = this.#parts;
    const program = this.#program;
    const shape = [1, architecture.hidden];
    const name = "embedding";
    const first = () => {
      const how = { axis: 1, batch_dims: 0, validate_indices: false };
      return program.operation("gather", { x, indices: 0, ...how }, shape);
    };
    const mean = () => {
      const count = program.operation("reduce_sum", { x: mask, axes: [1], keep_dims: true }, [1, 1]);
      const share = program.operation("real_div", { x: mask, y: count }, mask.shape);
      const row = program.operation("reshape", { x: share, shape: [1, 1, tokens] }, [1, 1, tokens]);
      const how = { transpose_x: false, transpose_y: false };
      const sum = program.operation("matmul", { x: row, y: x, ...how }, [1, 1, architecture.hidden]);
      return program.operation("reshape", { x: sum, shape }, shape);
    };
    const one = pooling.mode === "cls" ? first() : mean();
    if (!pooling.normalize) return program.operation("identity", { x: one }, shape, { name });
    const squares = program.operation("mul", { x: one, y: one }, shape);
    const sum = program.operation("reduce_sum", { x: squares, axes: [1], keep_dims: true }, [1, 1]);
    const over = program.operation("rsqrt", { x: sum, epsilon: this.#scalar(0) }, [1, 1]);
    return program.operation("mul", { x: one, y: over }, shape, { name });
  }

  #norm(x: Value, module: string): Value {
    const [gamma, beta] = [this.#stored(`${module}.weight`), this.#stored(`${module}.bias`)];
    const epsilon = this.#scalar(this.#parts.architecture.norm.eps);
    return this.#program.operation("layer_norm", { x, axes: [-1], gamma, beta, epsilon }, x.shape);
  }

  #linear(x: Value, module: string): Value {
    const weight = this.#weight(`${module}.weight`);
    const bias = this.#has(`${module}.bias`) ? { bias: this.#stored(`${module}.bias`) } : {};
    return this.#program.operation("linear", { x, weight, ...bias }, [...x.shape.slice(0, -1), weight.shape[0]!]);
  }

  #has(name: string): boolean {
    return this.#parts.weights.has(this.#root + name);
  }

  #load(name: string): Tensor | QuantizedTensor | Int8Weight {
    return this.#parts.weights.load(this.#root + name, currentDevice());
  }

  /** A matrix: its codes and scales, where it is of 4 bits in blocks that lie in rows; else floats. */
  #weight(name: string): Value {
    using w = this.#load(name);
    const packed = w instanceof QuantizedTensor && isPackable(w) ? this.#codes(name, w) : undefined;
    if (packed) return packed;
    if (this.#parts.int4 && w.shape[1]! % int4Block === 0) {
      this.requantised.push(name);
      using dense = floatsOf(w, "float32");
      using q = quantizeInt4(dense);
      return this.#codes(name, q)!;
    }
    if (w instanceof Tensor) this.kept++;
    else this.unpacked.push(name);
    return this.#program.stored(name, this.#floats(w));
  }

  /** Integers less a zero point, or else codes by a table, where those may be; then scales. */
  #codes(name: string, w: QuantizedTensor): Value | undefined {
    using scales = scalesOf(w);
    const int4 = int4Of(w, scales);
    if (!int4 && (this.#parts.int4 || w.stores.offsets)) return undefined;
    this.packed.push(name);
    return int4 ? this.#integers(name, w, int4, scales) : this.#looked(name, w, scales);
  }

  #integers(name: string, w: QuantizedTensor, { codes, zeros }: Int4, scales: Tensor<FloatDType>): Value {
    const [rows, columns] = w.shape as readonly [number, number];
    const blocks = [rows, columns / w.blocksize];
    const { dtype: kind } = this.#parts;
    const data: Constant = { kind: "uint4", shape: [rows, columns], bytes: codes };
    const scale = this.#floats(scales, blocks);
    const offset = (): Constant => {
      if (zeros instanceof Uint8Array) return { kind: "uint4", shape: blocks, bytes: zeros };
      using floats = Tensor.from(zeros);
      return this.#floats(floats, blocks);
    };
    const args = { data, scale, offset: offset() };
    return this.#program.constexpr("constexpr_blockwise_shift_scale", args, { name, kind, shape: [rows, columns] });
  }

  #looked(name: string, w: QuantizedTensor, scales: Tensor<FloatDType>): Value {
    this.usesTables = true;
    const [rows, columns] = w.shape as readonly [number, number];
    using codes = w.codes;
    const indices: Constant = {
      kind: "uint4",
      shape: [rows, columns],
      bytes: inMlxOrder(codes.read() as Uint8Array, 4),
    };
    using table = Tensor.from(Float32Array.from(w.code));
    const lut = this.#floats(table, [1, 1, 16, 1]);
    const shape = [rows, columns];
    const { dtype: kind } = this.#parts;
    const data = this.#program.constexpr(
      "constexpr_lut_to_dense",
      { indices, lut },
      { name: `${name}_codes`, kind, shape },
    );
    const scale = this.#floats(scales, [rows, columns / w.blocksize]);
    return this.#program.constexpr("constexpr_blockwise_shift_scale", { data, scale }, { name, kind, shape });
  }

  /** A tensor of floats, or some of its rows, as one text has them. */
  #stored(name: string, rows?: readonly [from: number, to: number]): Value {
    using w = this.#load(name);
    const all = this.#floats(w);
    this.kept++;
    if (!rows) return this.#program.stored(name, all);
    const [, columns] = w.shape as readonly [number, number];
    const rowBytes = all.bytes.length / w.shape[0]!;
    const bytes = all.bytes.subarray(rows[0] * rowBytes, rows[1] * rowBytes);
    return this.#program.stored(name, { kind: all.kind, shape: [1, rows[1] - rows[0], columns], bytes });
  }

  #floats(w: Tensor | QuantizedTensor | Int8Weight, shape: readonly number[] = w.shape): Constant {
    const { dtype } = this.#parts;
    using made = floatsOf(w, dtype);
    const values = made.read();
    return { kind: dtype, shape, bytes: new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice() };
  }

  #scalar(value: number): Constant {
    using made = Tensor.from(Float32Array.of(value));
    return this.#floats(made, []);
  }
}

/** Whether Core ML has the weight's layout: codes of 4 bits, and a scale for each block of a row. */
function isPackable({ bits, blocksize, shape, stores }: QuantizedTensor): boolean {
  const { nested, offsets } = stores;
  const areReadable = offsets !== "uint8" && (!nested || (nested.bits === 8 && !nested.hasOffsets));
  return bits === 4 && areReadable && shape[1]! % blocksize === 0;
}

function floatsOf(w: Tensor | QuantizedTensor | Int8Weight, dtype: CoremlDtype): Tensor<FloatDType> {
  if (w instanceof QuantizedTensor) return dequantizeBlockwise(w, { dtype });
  if (w instanceof Int8Weight) return w.dequantize({ dtype });
  return (w as Tensor<FloatDType>).cast(dtype);
}

/** The scales of a weight as floats, nested ones too. */
function scalesOf(w: QuantizedTensor): Tensor<FloatDType> {
  const { absmax, state2 } = w;
  if (!state2) return absmax as Tensor<FloatDType>;
  using codes = absmax as Tensor<"uint8">;
  using over = state2.absmax;
  const code = Codebook.from(state2.code);
  using q = QuantizedTensor.fromParts({ codes, absmax: over, code, blocksize: state2.blocksize, shape: codes.shape });
  using scales = dequantizeBlockwise(q, { dtype: "float32" });
  using offset = Tensor.from(new Float32Array(codes.size).fill(w.offset), codes.shape);
  return add(scales, offset);
}
