// Steps of decoding that are recorded: a token more of each of some texts asks the device for the same operations every
// time, at other places, so that they are run again at little more than the cost of their kernels.
import type { Device } from "../device.ts";
import { Recording } from "../recording.ts";
import { Tensor } from "../tensor.ts";
import type { PipelineRows } from "./pipeline.ts";
import type { Rows } from "./stack.ts";

type Floats = Tensor<"float32">;

/** How a decoder has such a step done, which is recorded. */
interface Recorder {
  readonly device: Device;
  place(rows: Rows): PipelineRows;
  /** The logits after each row. */
  run(ids: Tensor<"int32">, rows: PipelineRows): Floats;
}

/** One of them, with what differs from one time to the next in tensors of its own. */
export class RecordedStep implements Disposable {
  readonly #ids: Tensor<"int32">;
  readonly #rows: PipelineRows;
  readonly #logits: Floats;
  readonly #recording: Recording;
  #given: Floats | undefined;

  /** Does the step for the first time, with these numbers. */
  constructor(ids: Int32Array, rows: Rows, recorder: Recorder) {
    using made = new DisposableStack();
    const { device } = recorder;
    this.#ids = made.use(Tensor.from(ids, undefined, { device }));
    this.#rows = made.use(recorder.place(rows));
    let logits: Floats | undefined;
    this.#recording = made.use(
      Recording.of(() => {
        logits = recorder.run(this.#ids, this.#rows);
      }, device),
    );
    this.#logits = logits!;
    made.move();
  }

  /** Whether somebody still has what the last time gave: another would write over it. */
  get isInUse(): boolean {
    return this.#given?.disposed === false;
  }

  /** What the last time gave, for the caller to dispose of before the next. */
  get logits(): Floats {
    this.#given = this.#logits.reshape(this.#logits.shape) as Floats;
    return this.#given;
  }

  /** Does it again. */
  run(ids: Int32Array, rows: Rows): void {
    this.#ids.write(ids);
    this.#rows.write(rows);
    this.#recording.run();
  }

  [Symbol.dispose](): void {
    for (const part of [this.#recording, this.#logits, this.#rows, this.#ids]) part[Symbol.dispose]();
  }
}

/** So many are kept; which one was used last longest ago goes first. */
const keptMost = 16;

/** Those of one cache, whose memory they write to. */
export class RecordedSteps {
  readonly #steps = new Map<string, RecordedStep>();

  /** The one of a shape. */
  get(shape: string): RecordedStep | undefined {
    const step = this.#steps.get(shape);
    if (!step) return undefined;
    this.#steps.delete(shape); // and in again, as the last that was used
    this.#steps.set(shape, step);
    return step;
  }

  set(shape: string, step: RecordedStep): void {
    this.#steps.set(shape, step);
    if (this.#steps.size <= keptMost) return;
    const [oldest] = this.#steps.keys();
    this.#steps.get(oldest!)![Symbol.dispose]();
    this.#steps.delete(oldest!);
  }

  /** Forgets all of them. */
  clear(): void {
    for (const step of this.#steps.values()) step[Symbol.dispose]();
    this.#steps.clear();
  }
}
