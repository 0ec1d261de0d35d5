// Recordings: what a loop does again and again, recorded once and run again at little more than the cost of its
// kernels.
import { currentDevice, type Device } from "./device.ts";
import { Handle } from "./handle.ts";
import { type NativePointer, native } from "./native.ts";
import { Signature } from "./signature.ts";

/** What the collector is told of a recording; its memory is that of tensors, most of it. */
const recordingBytes = 1 << 16;

/**
 * Operations of a device, recorded once. What is to change from one run to the next lies in tensors that were made
 * before, which `write` fills; results that are still held as tensors hold those of the last run.
 *
 * @internal For whole models.
 */
export class Recording extends Handle {
  readonly device: Device;

  private constructor(pointer: NativePointer, device: Device) {
    super("Recording", pointer, recordingBytes);
    this.device = device;
  }

  /**
   * Does what `action` asks of the device, and records it: every operation on tensors of that device, and no reads,
   * writes or copies. `action` must not be asynchronous.
   *
   * @throws BnbError where an operation can't be recorded or fails, or whatever `action` throws
   */
  static of(action: () => void, device: Device = currentDevice()): Recording {
    const me = signatures.of;
    me.check(native.bnb_record(device.pointer));
    let pointer: NativePointer | null = null;
    let done = false;
    try {
      action();
      done = true;
    } finally {
      pointer = native.bnb_record_end();
      if (!done && pointer !== null) native.bnb_recording_free(pointer);
    }
    return new Recording(me.made(pointer), device);
  }

  /** Runs it all again: enqueued, like an operation. */
  run(): void {
    signatures.run.check(native.bnb_replay(this.pointer));
  }
}

const signatures = { of: new Signature("Recording.of"), run: new Signature("Recording.run") };
