// Owns devices: which are here, why one is not, which one is current, and what each has done so far.
import { BnbError } from "./error.ts";
import { check, counters, lastError, type NativePointer, native, text } from "./native.ts";

/** What can compute. Where none is named, the first of these that is present is used, or the one that `BNB_DEVICE` names. */
export type DeviceKind = "metal" | "cuda" | "cpu";

/** A kind of device, and either what is here or why it is not. */
export type DeviceReport =
  | { readonly kind: DeviceKind; readonly available: true; readonly description: string }
  | { readonly kind: DeviceKind; readonly available: false; readonly reason: string };

/**
 * A processor and its memory. There is one object for each kind; devices live as long as the process.
 *
 * @example
 * ```ts
 * const cpu = Device.open("cpu");
 * using x = Tensor.from([1, 2, 3], [3], { device: cpu });
 * cpu.counters.bytes >= x.byteLength; // → true
 * cpu.fallbacks; // → []
 * ```
 */
export class Device {
  readonly kind: DeviceKind;
  /** One line for people, such as `2 threads, avx2 kernels`. */
  readonly description: string;
  /** @internal */
  readonly pointer: NativePointer;

  private constructor(pointer: NativePointer) {
    this.pointer = pointer;
    this.kind = text(native.bnb_device_name(pointer)) as DeviceKind;
    this.description = text(native.bnb_device_describe(pointer));
  }

  static readonly #open = new Map<NativePointer, Device>();

  /**
   * Opens a device, or the best one with `"auto"`. Opening twice gives the same object.
   *
   * @throws BnbError (`unsupported`) if it is absent; the message says why and what to do
   */
  static open(kind: DeviceKind | "auto" = "auto"): Device {
    const pointer = native.bnb_device_open(String(kind));
    if (pointer === null) throw lastError();
    const open = Device.#open.get(pointer);
    if (open) return open;
    const device = new Device(pointer);
    Device.#open.set(pointer, device);
    return device;
  }

  /** Blocks until everything enqueued is done. @throws BnbError for the first failure among it */
  wait(): void {
    check(native.bnb_device_wait(this.pointer));
  }

  /** Resolves when everything enqueued is done, without blocking the event loop. Rejects as {@link wait} throws. */
  async ready(): Promise<void> {
    while (!native.bnb_device_idle(this.pointer)) await new Promise((resolve) => setTimeout(resolve, 0));
    this.wait();
  }

  /** Bytes in use, at most so far, and freed but kept for reuse; operations run, and how many of them on the CPU instead. */
  get counters(): Record<keyof typeof counters, number> {
    const read = (counter: keyof typeof counters) => native.bnb_device_counter(this.pointer, counters[counter]);
    return {
      bytes: read("bytes"),
      peak: read("peak"),
      cached: read("cached"),
      operations: read("operations"),
      fallbacks: read("fallbacks"),
    };
  }

  /** What ran on the CPU because this GPU lacks a kernel: one line for each operation and reason. */
  get fallbacks(): string[] {
    return text(native.bnb_device_fallbacks(this.pointer)).split("\n").filter(Boolean);
  }

  toString(): string {
    return this.kind;
  }
}

/**
 * Every kind that this library knows, best first, present or not.
 *
 * @example
 * ```ts
 * for (const report of devices()) console.log(report.kind, report.available ? report.description : report.reason);
 * ```
 */
export function devices(): DeviceReport[] {
  const reports: DeviceReport[] = [];
  for (let index = 0; ; index++) {
    const kind = text(native.bnb_device_kind(index)) as DeviceKind | "";
    if (!kind) return reports;
    try {
      reports.push({ kind, available: true, description: Device.open(kind).description });
    } catch (error) {
      if (!(error instanceof BnbError)) throw error;
      reports.push({ kind, available: false, reason: error.message });
    }
  }
}

let current: Device | undefined;

/**
 * The device that new tensors go to where none is named: the best one here, until {@link setDevice} says otherwise.
 *
 * @example
 * ```ts
 * using x = Tensor.zeros([2, 2]);
 * x.device === currentDevice(); // → true
 * ```
 */
export function currentDevice(): Device {
  current ??= Device.open();
  return current;
}

/**
 * Makes a device the current one, and returns it.
 *
 * @example
 * ```ts
 * setDevice("cpu");
 * currentDevice().kind; // → "cpu"
 * ```
 *
 * @throws BnbError as {@link Device.open}
 */
export function setDevice(device: Device | DeviceKind | "auto"): Device {
  current = device instanceof Device ? device : Device.open(device);
  return current;
}
