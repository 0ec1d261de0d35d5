// Mixtures of experts: each row goes through the few that its router chooses.

import { sigmoid } from "../elementwise.ts";
import { embedding } from "../embedding.ts";
import { Tensor } from "../tensor.ts";
import { route, scatterAdd } from "../topk.ts";
import type { Architecture } from "./architecture.ts";
import { Mlp } from "./stack.ts";
import type { Linear, Loader } from "./weights.ts";

type Floats = Tensor<"float32">;

/** A layer's experts, their router, and the one that all rows go through, where there is one. */
export class Experts implements Disposable {
  readonly #spec: NonNullable<Architecture["experts"]>;
  readonly #router: Linear;
  readonly #experts: Mlp[] = [];
  readonly #shared: { gate: Linear; mlp: Mlp } | undefined;

  constructor(loader: Loader, architecture: Architecture, prefix: string) {
    const names = architecture.names.experts!;
    this.#spec = architecture.experts!;
    this.#router = loader.linear([prefix + names.router], { dense: true });
    const nameOf = (pattern: string, expert: number) => prefix + pattern.replace("{}", String(expert));
    for (let i = 0; i < this.#spec.count; i++) {
      const into = [nameOf(names.gate, i), nameOf(names.up, i)];
      this.#experts.push(new Mlp(loader, architecture, into, nameOf(names.down, i)));
    }
    if (!names.shared) return;
    const mlp = prefix + names.shared.mlp;
    this.#shared = {
      gate: loader.linear([prefix + names.shared.gate], { dense: true }),
      mlp: new Mlp(loader, architecture, [`${mlp}gate_proj`, `${mlp}up_proj`], `${mlp}down_proj`),
    };
  }

  apply(x: Floats): Floats {
    const { perToken, normalised } = this.#spec;
    using logits = this.#router.one(x);
    const { indices, values } = route(logits, perToken, { normalised });
    const sum = Tensor.zeros(x.shape, { device: x.device });
    for (const [expert, { rows, weights }] of byExpert(indices, values, perToken)) {
      using chosen = Tensor.from(Int32Array.from(rows), undefined, { device: x.device });
      using shares = Tensor.from(Float32Array.from(weights), undefined, { device: x.device });
      using input = embedding(chosen, x, { dtype: "float32" });
      using output = this.#experts[expert]!.apply(input);
      scatterAdd(sum, output, chosen, shares);
    }
    if (this.#shared) this.#addShared(x, sum);
    return sum;
  }

  /** The sigmoid of a gate's logit weighs what the shared expert makes of a row. */
  #addShared(x: Floats, sum: Floats): void {
    using gate = this.#shared!.gate.one(x);
    using output = this.#shared!.mlp.apply(x);
    using shares = sigmoid(gate);
    using weights = shares.reshape([-1]);
    using rows = Tensor.from(
      Int32Array.from({ length: weights.size }, (_, i) => i),
      undefined,
      { device: x.device },
    );
    scatterAdd(sum, output, rows, weights);
  }

  [Symbol.dispose](): void {
    for (const part of [this.#router, ...this.#experts, this.#shared?.gate, this.#shared?.mlp])
      part?.[Symbol.dispose]();
  }
}

interface Sent {
  rows: number[];
  weights: number[];
}

/** The rows that each expert is sent, in the order of experts. */
function byExpert(indices: Int32Array, values: Float32Array, perToken: number): [expert: number, sent: Sent][] {
  const sent = new Map<number, Sent>();
  for (const [i, expert] of indices.entries()) {
    const to = sent.get(expert) ?? { rows: [], weights: [] };
    sent.set(expert, to);
    to.rows.push(Math.floor(i / perToken));
    to.weights.push(values[i]!);
  }
  return [...sent].sort(([a], [b]) => a - b);
}
