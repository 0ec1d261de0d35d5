// The task of examples/train.ts: vectors of 384 numbers scatter around 48 centres, three to a class, so that no class
// has a direction of its own; the first 16 outputs of the model are to say which class it is.
import { Tensor } from "bunsandbytes";

export const [width, classes] = [384, 16];

/**
 * Random numbers that are the same in every run: a multiplicative generator (Lehmer 1949), and Box and Muller's
 * normal.
 */
function generator(seed: number) {
  let state = seed;
  const uniform = () => {
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return { uniform, normal };
}

const { normal } = generator(1);
const centres = Array.from({ length: 3 * classes }, () => Float32Array.from({ length: width }, normal));

/**
 * As many batches as there are steps, of vectors that are a centre and twice as much noise each, with the class of
 * each.
 */
export function* batches(steps: number, count = 128): Generator<{ x: Tensor<"float32">; labels: number[] }> {
  const { uniform, normal } = generator(3);
  for (let step = 0; step < steps; step++) {
    const which = Array.from({ length: count }, () => Math.floor(uniform() * centres.length));
    const values = Float32Array.from({ length: count * width }, (_, i) => {
      return centres[which[Math.floor(i / width)]!]![i % width]! + 2 * normal();
    });
    yield { x: Tensor.from(values, [count, width]), labels: which.map((centre) => centre % classes) };
  }
}

/** Cross-entropy of the first outputs, and its gradient. */
export function score(outputs: Tensor<"float32">, labels: number[]) {
  const y = outputs.read();
  const gradient = new Float32Array(y.length);
  let loss = 0;
  for (const [row, label] of labels.entries()) {
    const logits = y.subarray(row * width, row * width + classes);
    const most = Math.max(...logits);
    const sum = logits.reduce((total, logit) => total + Math.exp(logit - most), 0);
    loss += (most + Math.log(sum) - logits[label]!) / labels.length;
    for (const [i, logit] of logits.entries())
      gradient[row * width + i] = (Math.exp(logit - most) / sum - Number(i === label)) / labels.length;
  }
  return { loss, dy: Tensor.from(gradient, outputs.shape) };
}
