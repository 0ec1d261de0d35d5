// How layers take their weights out of a checkpoint: as one of the kinds that they can hold.
import { Checkpoint } from "../checkpoint/checkpoint.ts";
import { loadWeight } from "../checkpoint/statedict.ts";
import { currentDevice, type Device, type DeviceName, deviceOf } from "../device.ts";
import type { Int8Weight } from "../int8_weight.ts";
import type { QuantizedTensor } from "../quantized.ts";
import type { Signature } from "../signature.ts";
import { Tensor } from "../tensor.ts";

/** Where a layer goes: a device, the name of one, or the current one. */
type Where = Device | DeviceName | undefined;

/** A class of weights. */
type Kind<T> = abstract new (...parameters: never) => T;

/** A weight of a checkpoint that is of one of these classes. @throws BnbError if there is none, or it is of another */
export function loadKind<T>(
  me: Signature,
  checkpoint: Checkpoint,
  name: string,
  device: Where,
  ...kinds: Kind<T>[]
): T {
  me.object(checkpoint, "checkpoint", Checkpoint);
  if (!checkpoint.quantized.has(me.text(name, "name")) && !checkpoint.tensors.has(name))
    throw me.fail(`name leads to ${JSON.stringify(name)}, which ${checkpoint.path} has not.`);
  const weight = loadWeight(checkpoint, name, device === undefined ? currentDevice() : deviceOf(me, device));
  const kind = kinds.find((kind) => weight instanceof kind);
  if (kind) return weight as T;
  weight.dispose();
  throw me.fail(
    `name is ${JSON.stringify(name)}, which is ${weight}, expected ${kinds.map(({ name }) => name).join(" or ")}.`,
  );
}

/**
 * A layer made of a weight of a checkpoint: one that is quantised as the layer wants it, or a dense one, which the
 * layer quantises and which is freed then.
 */
export function loadLayer<W extends QuantizedTensor | Int8Weight, L>(
  me: Signature,
  checkpoint: Checkpoint,
  name: string,
  device: Where,
  kind: Kind<W>,
  make: (weight: Tensor | W) => L,
): L {
  const weight = loadKind<Tensor | W>(me, checkpoint, `${me.text(name, "name")}.weight`, device, kind, Tensor);
  const layer = make(weight);
  if (weight instanceof Tensor) weight.dispose();
  return layer;
}

/** A dense tensor of a checkpoint. @throws BnbError if there is none, or it is quantised */
export function loadDense(me: Signature, checkpoint: Checkpoint, name: string, device: Where): Tensor {
  return loadKind<Tensor>(me, checkpoint, name, device, Tensor);
}

/** The bias that stands beside a weight, or undefined. */
export function loadBias(me: Signature, checkpoint: Checkpoint, name: string, device: Where): Tensor | undefined {
  return checkpoint.tensors.has(`${name}.bias`) ? loadDense(me, checkpoint, `${name}.bias`, device) : undefined;
}
