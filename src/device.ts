// Devices: which are here, why one is not, which one is current, and what each has done so far.
import { NativeObject } from "./handle.ts";
import { inspect } from "./inspect.ts";
import { cudaKernels } from "./library.ts";
import { counters, lastError, type NativePointer, native, size, text } from "./native.ts";
import { Signature } from "./signature.ts";
import { tuningOf, writeSizes } from "./tuning.ts";

/** The kinds of device. Unless one is named, the first of these that is present is used, or the one in `BNB_DEVICE`. */
export type DeviceKind = "metal" | "cuda" | "cpu";

/**
 * How a device is named: by its kind, by kind and number for further GPUs ("cuda:1"), by "mps", torch's word for Metal,
 * or by "auto", the best device here.
 */
export type DeviceName = [...typeof deviceNames, `${DeviceKind}:${number}`][number];

/** Every one of them: an array, so that tsc names the choices where one is wrong. */
export const deviceNames = ["auto", "metal", "mps", "cuda", "cpu"] as const;

/** One kind of device: what it is here, or why it is absent. */
export type DeviceReport =
  | { readonly kind: DeviceKind; readonly available: true; readonly description: string }
  | { readonly kind: DeviceKind; readonly available: false; readonly reason: string };

/**
 * A processor and its memory. Each has one object, which lives as long as the process.
 *
 * @example
 * ```ts
 * const cpu = Device.open("cpu");
 * using x = Tensor.from([1, 2, 3], [3], { device: cpu });
 * cpu.counters.bytes >= x.byteLength; // → true
 * cpu.fallbacks; // → []
 * ```
 */
export class Device extends NativeObject {
  readonly kind: DeviceKind;
  /** One line for people, such as `2 threads, avx2 kernels`. */
  readonly description: string;

  private constructor(pointer: NativePointer) {
    super("Device", pointer);
    this.kind = text(native.bnb_device_name(pointer)) as DeviceKind;
    this.description = text(native.bnb_device_describe(pointer));
  }

  static readonly #open = new Map<NativePointer, Device>();

  /**
   * Opens a device, or the best one with `"auto"`. Opening twice gives the same object. `"mps"`, torch's word, is
   * metal.
   *
   * @throws BnbError (`unsupported`) if it is absent; the message says why and what to do
   */
  static open(kind: DeviceName = "auto"): Device {
    return Device.named(signatures.open, kind, "kind");
  }

  /** @internal The device that an argument names. */
  static named(me: Signature, name: unknown, argument: string): Device {
    const further = typeof name === "string" && /^(metal|cuda|cpu):\d{1,3}$/.test(name) ? name : undefined; // a second GPU, "cuda:1"
    const kind = further ?? me.choice(name, argument, deviceNames);
    return Device.#over(me.made(open(kind)));
  }

  /** @internal A device of this kind, or why it is absent. */
  static find(kind: DeviceKind): Device | string {
    const pointer = open(kind);
    return pointer === null ? lastError().message : Device.#over(pointer);
  }

  static #over(pointer: NativePointer): Device {
    const open = Device.#open.get(pointer);
    if (open) return open;
    const device = new Device(pointer);
    if (device.kind !== "cpu") {
      const tuning = tuningOf(device.description);
      if (tuning.state === "tuned") writeSizes(pointer, tuning.sizes);
    }
    Device.#open.set(pointer, device);
    return device;
  }

  /** Blocks until everything enqueued is done. @throws BnbError for the first failure among it */
  wait(): void {
    signatures.wait.check(native.bnb_device_wait(this.pointer));
  }

  /** Resolves when everything enqueued is done, without blocking the event loop. Rejects as {@link wait} throws. */
  async ready(): Promise<void> {
    const since = performance.now();
    while (!native.bnb_device_idle(this.pointer)) {
      // A timer takes a millisecond, in which a GPU does much; the CPU's own work wants the processor itself.
      const isSoon = this.kind !== "cpu" && performance.now() - since < askingMilliseconds;
      await new Promise((resolve) => (isSoon ? setImmediate(resolve) : setTimeout(resolve, 0)));
    }
    this.wait();
  }

  /**
   * Counts since the start. `bytes` are in use, `peak` is the most that were, `cached` bytes were freed and are kept
   * for reuse, and `mapped` are bytes of files that stand in place of memory. `room` is about how many bytes a GPU can
   * still give, and 0 of a CPU. `operations` is how many have run, `fallbacks` how many of them ran on the CPU instead.
   */
  get counters(): Record<keyof typeof counters, number> {
    const read = (counter: keyof typeof counters) => native.bnb_device_counter(this.pointer, counters[counter]);
    return {
      bytes: read("bytes"),
      peak: read("peak"),
      cached: read("cached"),
      mapped: read("mapped"),
      room: read("room"),
      operations: read("operations"),
      fallbacks: read("fallbacks"),
    };
  }

  /** What ran on the CPU because this GPU lacks a kernel: one line for each operation and reason. */
  get fallbacks(): string[] {
    return text(native.bnb_device_fallbacks(this.pointer)).split("\n").filter(Boolean);
  }

  override toString(): string {
    return this.kind;
  }

  /** What console.log shows. */
  [inspect](): string {
    return `Device(${this.kind}: ${this.description})`;
  }

  /** Its kind. */
  toJSON(): DeviceKind {
    return this.kind;
  }
}

/**
 * Opens by name, after handing over CUDA's kernels where the library has found a GPU for them. Of those that are
 * damaged, opening says so.
 */
function open(kind: string): NativePointer | null {
  const kernels = native.bnb_device_lacks_kernels(kind) ? cudaKernels() : undefined;
  if (kernels) native.bnb_device_take_kernels(kind, kernels, size(kernels.length));
  return native.bnb_device_open(kind);
}

/** So long `ready` asks a GPU whenever the event loop comes round, then by a timer. */
const askingMilliseconds = 20;

const signatures = {
  open: new Signature("Device.open"),
  wait: new Signature("Device.wait"),
  set: new Signature("setDevice"),
};

/**
 * Every kind of device that this library knows, best first, whether it is present or not.
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
    const found = Device.find(kind);
    reports.push(
      typeof found === "string"
        ? { kind, available: false, reason: found }
        : { kind, available: true, description: found.description },
    );
  }
}

/**
 * @internal The current device, then the others of its kind, then the CPU: where a model may stand that is larger than
 * one of them.
 */
export function allDevices(): Device[] {
  const here = currentDevice();
  if (here.kind === "cpu") return [here];
  const found = [here];
  const kind = here.kind.replace(/:.*/, "");
  for (let index = 0; ; index++) {
    const next = Device.find(`${kind}:${index}` as DeviceKind);
    if (typeof next === "string") return [...found, Device.open("cpu")];
    if (!found.includes(next)) found.push(next);
  }
}

let current: Device | undefined;

/**
 * The device that new tensors go to unless another is named: the best one here, until {@link setDevice} says otherwise.
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
export function setDevice(device: Device | DeviceName): Device {
  current = deviceOf(signatures.set, device);
  return current;
}

/** @internal The device that an argument is or names. */
export function deviceOf(me: Signature, device: Device | DeviceName, argument = "device"): Device {
  if (typeof device === "string") return Device.named(me, device, argument);
  me.device(device, argument);
  return device;
}
