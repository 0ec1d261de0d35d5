// The layers of a model on all of its devices: which stand where, and how rows go from one device to the next.
import { type Device, type DeviceName, deviceOf } from "../device.ts";
import { BnbError } from "../error.ts";
import { isOptions, type Signature } from "../signature.ts";
import type { Architecture } from "./architecture.ts";
import { ModelCache, type Placed } from "./cache.ts";
import { type PlacedRows, type Rows, Stack, type Stream } from "./stack.ts";
import type { Loader } from "./weights.ts";

/** A device for some of a model's layers: as many as `layers` says, or an equal share of the rest. */
export type DevicePlace = Device | DeviceName | { readonly device: Device | DeviceName; readonly layers: number };

/**
 * Which layers stand where: runs of whole ones, in the order of the devices.
 *
 * @throws BnbError if they are more than the model's, or fewer, or a device would have none
 */
export function layOut(me: Signature, places: readonly DevicePlace[], count: number): Placed[] {
  if (!Array.isArray(places) || places.length === 0)
    throw me.wrong("devices", places, "an array of at least one device");
  const wanted = places.map((place, i) => {
    const { device, layers } = isOptions(place) ? (place as Exclude<DevicePlace, Device | string>) : { device: place };
    const argument = layers === undefined ? `devices[${i}]` : `devices[${i}].device`;
    return {
      device: deviceOf(me, device as Device | DeviceName, argument),
      layers: layers === undefined ? undefined : me.whole(layers, `devices[${i}].layers`, 1),
    };
  });
  const open = wanted.filter(({ layers }) => layers === undefined).length;
  const named = wanted.reduce((sum, { layers = 0 }) => sum + layers, 0);
  const rest = count - named;
  if (rest < open || (open === 0 && rest !== 0))
    throw new BnbError(
      `Model.load: devices name ${named} layers${open > 0 ? ` and ${open} devices for the rest` : ""}, and the model has ${count}: each device takes one or more.`,
    );
  let left = open;
  let remaining = rest;
  return wanted.map(({ device, layers }) => {
    if (layers !== undefined) return { device, layers };
    const share = Math.ceil(remaining / left--);
    remaining -= share;
    return { device, layers: share };
  });
}

/** What the rows of a pass are told to attention, on every device that layers stand on. */
export class PipelineRows implements Disposable {
  readonly parts: readonly PlacedRows[];

  constructor(stacks: readonly Stack[], rows: Rows, cache: ModelCache | undefined) {
    const parts: PlacedRows[] = [];
    this.parts = parts;
    try {
      for (const [i, stack] of stacks.entries()) parts.push(stack.place(rows, cache?.parts[i]));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Puts rows of the same number, with pages of the same shape, in their place. */
  write(rows: Rows): void {
    for (const part of this.parts) part.write(rows);
  }

  [Symbol.dispose](): void {
    for (const part of this.parts) part[Symbol.dispose]();
  }
}

/** Of the room that a device has before, one part of so many stays for what passes between layers. */
const workShare = 16;

/** A layer's keys and values of a text of usual length. */
const cacheBytes = ({ kvHeads, headDim, positions }: Architecture) => 4 * kvHeads * headDim * Math.min(positions, 2048);

/** All layers of a model, a stack of them on each device. */
export class Pipeline implements Disposable {
  readonly #architecture: Architecture;
  readonly #stacks: readonly Stack[];

  private constructor(architecture: Architecture, stacks: readonly Stack[]) {
    this.#architecture = architecture;
    this.#stacks = stacks;
  }

  /** Layer by layer; `onLayer` may wait, or stop it by throwing. */
  static async load(
    loader: Loader,
    architecture: Architecture,
    placed: readonly Placed[],
    onLayer: (index: number) => Promise<void>,
  ): Promise<Pipeline> {
    const stacks: Stack[] = [];
    let first = 0;
    try {
      for (const { device, layers } of placed) {
        const range = { first, last: first + layers - 1 };
        stacks.push(await Stack.load(loader.on(device), architecture, device, range, onLayer));
        first += layers;
      }
    } catch (error) {
      for (const stack of stacks) stack[Symbol.dispose]();
      throw error;
    }
    return new Pipeline(architecture, stacks);
  }

  /**
   * Layers go to each device as long as there is room for the largest so far with its keys and values, beside `kept`
   * bytes; the last device takes the rest. A device that takes none is left out.
   */
  static async fill(
    loader: Loader,
    architecture: Architecture,
    devices: readonly Device[],
    kept: number,
    onLayer: (index: number) => Promise<void>,
  ): Promise<Pipeline> {
    const stacks: Stack[] = [];
    const last = architecture.layers.length - 1;
    let [first, largest] = [0, 0];
    try {
      for (const device of devices) {
        const beside = kept + device.counters.room / workShare;
        let [had, taken] = [device.counters.bytes, 0];
        const hasRoom = () => {
          const { bytes, room } = device.counters;
          largest = Math.max(largest, bytes - had);
          had = bytes;
          return device === devices.at(-1) || room - beside > largest + ++taken * cacheBytes(architecture);
        };
        const stack = await Stack.load(loader.on(device), architecture, device, { first, last, hasRoom }, onLayer);
        if (stack.layers > 0) stacks.push(stack);
        first += stack.layers;
        if (first > last) break;
      }
    } catch (error) {
      for (const stack of stacks) stack[Symbol.dispose]();
      throw error;
    }
    return new Pipeline(architecture, stacks);
  }

  /** Where layers stand, in their order. */
  get placed(): readonly Placed[] {
    return this.#stacks.map(({ device, layers }) => ({ device, layers }));
  }

  /** A cache for all layers. */
  cache(options: { slots?: number; capacity: number; dtype?: ModelCache["dtype"] | undefined }): ModelCache {
    const { kvHeads: heads, headDim: columns } = this.#architecture;
    return new ModelCache(this.placed, { ...options, heads, columns });
  }

  /** A longer text than this turns its positions by other angles. */
  get shortMost(): number {
    return Math.min(...this.#stacks.map(({ shortMost }) => shortMost));
  }

  /** Whether a pass asks one device for nothing but operations, so that it can be recorded. */
  get isRecordable(): boolean {
    return this.#stacks.length === 1 && this.#stacks[0]!.isRecordable;
  }

  /** What rows are told to attention, on every device. */
  place(rows: Rows, cache?: ModelCache): PipelineRows {
    return new PipelineRows(this.#stacks, rows, cache);
  }

  /** Runs the rows of a stream through every layer, and yields between them; the stream ends on the last device. */
  *run(stream: Stream, { parts }: PipelineRows): Generator<void, void, void> {
    for (const [i, stack] of this.#stacks.entries()) {
      if (stream.x.device !== stack.device) stream.replace(stream.x.to(stack.device));
      yield* stack.run(stream, parts[i]!);
    }
  }

  [Symbol.dispose](): void {
    for (const stack of this.#stacks) stack[Symbol.dispose]();
  }
}
