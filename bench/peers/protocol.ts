// What the benchmark's driver and its workers say to each other: one JSON value a line, an answer to each command.

/** What is timed. Every worker makes its own weights of the same inputs. */
export interface PeerCase {
  readonly operation: Operation;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  /** Weights that a run multiplies one after another: more than one, to find each out of the caches. */
  readonly copies: number;
}

export type Operation =
  | "matmul"
  | "int8"
  | "quantize4bit"
  | "dequantize4bit"
  | "quantize8bit"
  | "dequantize8bit"
  | "adam8bit";

/** `key` names what `prepare` makes; `variant` is a worker's own name for a precision. */
export type Command =
  | { readonly do: "prepare"; readonly key: string; readonly variant: string; readonly case: PeerCase }
  | { readonly do: "measure"; readonly key: string; readonly milliseconds: number }
  | { readonly do: "release"; readonly key: string };

/**
 * `description` is the first answer, before any command. `skip` says why a peer or a case is left out. `error` is that
 * of what was computed: of a product against float64 with the worker's own dequantised weights; of a quantiser against
 * what was quantised; of an optimizer's first step against Adam's formula. `samples` are milliseconds of one run each.
 */
export interface Answer {
  readonly description?: string;
  readonly skip?: string;
  readonly error?: number;
  readonly samples?: readonly number[];
}
