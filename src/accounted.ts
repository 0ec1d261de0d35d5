// How much native memory the collector is told of. It collects the more often the more it is told, and each time
// costs as much as a large result's kernel: so of memory that was freed and is taken again it hears nothing.

/** Bytes that it was told of and that were freed by hand since. */
let freed = 0;

/**
 * At most so many of them stand for what is taken next: a program that forgets to dispose after one that did not piles
 * up no more than this before the collector hears of it.
 */
export const freedMost = 2 ** 28;

/** What the collector is to be told where `bytes` are taken: what goes beyond that which was freed. */
export function toldOf(bytes: number): number {
  const known = Math.min(bytes, freed);
  freed -= known;
  return bytes - known;
}

/** To be called where bytes that were taken are freed before the collector does it. */
export function freedByHand(bytes: number): void {
  freed = Math.min(freed + bytes, freedMost);
}
