// Models of known shapes with noise for weights, made on the device: what speed depends on, without a file.
import type { Device } from "../../src/device.ts";
import { Tensor } from "../../src/index.ts";
import { readArchitecture } from "../../src/model/config.ts";
import { Decoder } from "../../src/model/decoder.ts";
import { Pipeline } from "../../src/model/pipeline.ts";
import { Loader, type LoaderOptions, type WeightSource } from "../../src/model/weights.ts";

interface Shape {
  readonly hidden: number;
  readonly middle: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly vocabulary: number;
}

/** Llama 3 8B, Llama 3.2 1B and SmolLM2 135M. */
export const shapes = {
  "8b": { hidden: 4096, middle: 14336, layers: 32, heads: 32, kvHeads: 8, vocabulary: 128256 },
  "1b": { hidden: 2048, middle: 8192, layers: 16, heads: 32, kvHeads: 8, vocabulary: 128256 },
  "135m": { hidden: 576, middle: 1536, layers: 30, heads: 9, kvHeads: 3, vocabulary: 49152 },
} satisfies Record<string, Shape>;

export type ShapeName = keyof typeof shapes;

/** @throws Error for a name that is none */
export function shapeNamed(name: string): ShapeName {
  if (Object.hasOwn(shapes, name)) return name as ShapeName;
  throw new Error(`--shape is ${name}, expected ${Object.keys(shapes).join(", ")}`);
}

const configOf = (shape: Shape) => ({
  ...{ model_type: "llama", hidden_act: "silu", rms_norm_eps: 1e-5, tie_word_embeddings: shape.hidden < 4096 },
  ...{ hidden_size: shape.hidden, intermediate_size: shape.middle, num_hidden_layers: shape.layers },
  ...{ num_attention_heads: shape.heads, num_key_value_heads: shape.kvHeads, head_dim: shape.hidden / shape.heads },
  ...{ vocab_size: shape.vocabulary, max_position_embeddings: 8192, bos_token_id: 1, eos_token_id: 2 },
  rope_parameters: { rope_theta: 5e5, rope_type: "default" },
});

/** Noise about as large as weights are. */
function noise(elements: number): Float16Array<ArrayBuffer> {
  let state = 1;
  return Float16Array.from({ length: elements }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 0.04;
  });
}

/** Every weight of a shape, cut out of the same noise. */
function sourceOf(shape: Shape, device: Device): WeightSource & Disposable {
  const values = new Float16Array(Math.max(shape.vocabulary, shape.middle) * shape.hidden);
  const piece = noise(1 << 20);
  for (let at = 0; at < values.length; at += piece.length)
    values.set(piece.subarray(0, Math.min(piece.length, values.length - at)), at);
  const all = Tensor.from(values, undefined, { device });
  const shapeOf = (name: string): [number, number] | undefined => {
    const { hidden, middle, heads, kvHeads, vocabulary } = shape;
    const module = name.replace(/\.weight$/, "").replace(/^.*\./, "");
    const kv = (hidden / heads) * kvHeads;
    const known: Record<string, [number, number]> = {
      ...{ embed_tokens: [vocabulary, hidden], lm_head: [vocabulary, hidden], q_proj: [hidden, hidden] },
      ...{ k_proj: [kv, hidden], v_proj: [kv, hidden], o_proj: [hidden, hidden], gate_proj: [middle, hidden] },
      ...{ up_proj: [middle, hidden], down_proj: [hidden, middle] },
    };
    return known[module];
  };
  const isTied = (name: string) => name.startsWith("lm_head") && configOf(shape).tie_word_embeddings;
  return {
    path: "noise",
    has: (name) => name.endsWith(".weight") && (/norm\./.test(name) || shapeOf(name) !== undefined) && !isTied(name),
    bytesOf: () => 0,
    load: (name, device) => {
      const sides = shapeOf(name);
      if (!sides) return Tensor.from(new Float32Array(shape.hidden).fill(1), undefined, { device });
      const [rows, width] = sides;
      using column = all.reshape([all.size, 1]);
      using part = column.slice(0, rows * width);
      return part.reshape([rows, width]);
    },
    [Symbol.dispose]: () => all.dispose(),
  };
}

/** A decoder of a shape on a device, quantised as its options say. */
export async function shapedDecoder(
  name: ShapeName,
  device: Device,
  options: Pick<LoaderOptions, "quantType" | "doubleQuant" | "precision"> & { layers?: number | undefined },
): Promise<Decoder> {
  const shape = { ...shapes[name], layers: options.layers ?? shapes[name].layers };
  const architecture = readArchitecture(configOf(shape), name);
  using source = sourceOf(shape, device);
  const loader = new Loader(source, device, "model.", { ...options, threshold: 6, kept: new Map() });
  const pipeline = await Pipeline.load(loader, architecture, [{ device, layers: shape.layers }], async () => {});
  return new Decoder(loader, architecture, pipeline);
}
