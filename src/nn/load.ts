// Owns how layers take their weights out of a checkpoint: as one of the kinds that they can hold.
import type { Checkpoint } from "../checkpoint/checkpoint.ts";
import { loadWeight } from "../checkpoint/statedict.ts";
import type { Device } from "../device.ts";
import { BnbError } from "../error.ts";
import type { Int8Weight } from "../int8_weight.ts";
import type { QuantizedTensor } from "../quantized.ts";
import { Tensor } from "../tensor.ts";

/** A class of weights. */
type Kind<T> = abstract new (...parameters: never) => T;

/** A weight of a checkpoint that is of one of these classes. @throws BnbError if there is none, or it is of another */
export function loadKind<T>(checkpoint: Checkpoint, name: string, device: Device | undefined, ...kinds: Kind<T>[]): T {
  const weight = loadWeight(checkpoint, name, device);
  const kind = kinds.find((kind) => weight instanceof kind);
  if (kind) return weight as T;
  weight.dispose();
  throw new BnbError(`${name} is ${weight}, expected ${kinds.map((kind) => kind.name).join(" or ")}.`);
}

/**
 * A layer made of a weight of a checkpoint: one that is quantised as the layer wants it, or a dense one, which the layer
 * quantises and which is freed then.
 */
export function loadLayer<W extends QuantizedTensor | Int8Weight, L>(
  checkpoint: Checkpoint,
  name: string,
  device: Device | undefined,
  kind: Kind<W>,
  make: (weight: Tensor | W) => L,
): L {
  const weight = loadKind<Tensor | W>(checkpoint, `${name}.weight`, device, kind, Tensor);
  const layer = make(weight);
  if (weight instanceof Tensor) weight.dispose();
  return layer;
}

/** A dense tensor of a checkpoint. @throws BnbError if there is none, or it is quantised */
export function loadDense(checkpoint: Checkpoint, name: string, device: Device | undefined): Tensor {
  return loadKind<Tensor>(checkpoint, name, device, Tensor);
}

/** The bias that stands beside a weight, or undefined. */
export function loadBias(checkpoint: Checkpoint, name: string, device: Device | undefined): Tensor | undefined {
  return checkpoint.tensors.has(`${name}.bias`) ? loadDense(checkpoint, `${name}.bias`, device) : undefined;
}
