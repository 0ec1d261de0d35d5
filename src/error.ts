// The one error class that the library throws, and the codes it carries.
import { printableLines } from "./printable.ts";

/** Why an operation failed; the order is that of `bnb_status` in csrc/bnb.h. */
export const statuses = ["ok", "invalid", "unsupported", "out_of_memory", "device_lost"] as const;

/** The kinds of failure that {@link BnbError} tells apart. */
export type BnbErrorCode = Exclude<(typeof statuses)[number], "ok">;

/**
 * A message quotes what it is about, which a file can make as long as it likes; so the middle is left out from here
 * on.
 */
const messageLengthMax = 2000;

function shortened(message: string): string {
  if (message.length <= messageLengthMax) return message;
  return `${message.slice(0, messageLengthMax / 2)} … ${message.slice(-messageLengthMax / 2)}`;
}

/**
 * What this library throws, but for the TypeError of an object that is used after `dispose()`.
 *
 * The message names the argument, what it was, what was expected and the next step; `code` is for programs:
 * - `"invalid"`: the caller broke a rule, or a file is damaged;
 * - `"unsupported"`: a correct request that nothing on this machine can serve;
 * - `"out_of_memory"`: the device could not give the memory;
 * - `"device_lost"`: the driver failed, and the process should open the device again.
 *
 * @example
 * ```ts
 * try {
 *   Tensor.from([1, 2, 3], [2, 2]);
 * } catch (error) {
 *   if (!(error instanceof BnbError)) throw error;
 *   error.code; // → "invalid"
 *   error.message; // → "Tensor.from: shape [2, 2] has 4 elements, but values has 3."
 * }
 * ```
 */
export class BnbError extends Error {
  override readonly name = "BnbError";

  constructor(
    message: string,
    readonly code: BnbErrorCode = "invalid",
    options?: ErrorOptions,
  ) {
    super(printableLines(shortened(message)), options);
  }
}
