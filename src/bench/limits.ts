// This machine's limits: how fast its processor reads memory, measured, and what that leaves of a time.

/** How fast so much memory is read again and again, by all threads together. */
export interface ReadRate {
  readonly bytes: number;
  readonly gigabytesPerSecond: number;
}

/** What no code on this many threads of this machine can beat. */
export interface Limits {
  readonly threads: number;
  /** By the size of what is read, ascending: what fits a cache is read faster. */
  readonly reads: readonly ReadRate[];
  /** fp32 multiply-adds, counted as two operations; absent where it was not measured. */
  readonly gigaflops?: number | undefined;
}

/** The least that a case must move and compute. */
export interface Work {
  readonly bytes: number;
  readonly flops?: number;
}

const sizes = [1, 4, 8, 16, 32, 64, 256].map((megabytes) => megabytes * 2 ** 20);

/** Reads are timed for so long, so often, and the best counts: a limit is what the machine can do undisturbed. */
const [milliseconds, rounds] = [40, 3];

/**
 * Looks through bytes for one that is not there. JavaScriptCore's search is vectorised: against a C loop that adds
 * vectors up, it reads level in the caches and from memory.
 */
const reader = `
  let memory;
  onmessage = ({ data: { bytes, milliseconds } }) => {
    if (bytes) {
      memory = new Uint8Array(bytes).fill(1);
      return postMessage("ready");
    }
    const begin = performance.now();
    const end = begin + milliseconds;
    let [now, count] = [begin, 0];
    do {
      if (memory.indexOf(0) >= 0) throw new Error("memory changed");
      count += memory.length;
      now = performance.now();
    } while (now < end);
    postMessage(count / (now - begin) / 1e6);
  };
`;

/**
 * Measures how fast memory is read. Takes about a second.
 *
 * @param threads as many as the operations to be compared use
 */
export async function measureReads(threads: number): Promise<ReadRate[]> {
  const url = URL.createObjectURL(new Blob([reader], { type: "text/javascript" }));
  const workers = Array.from({ length: threads }, () => new Worker(url));
  const ask = (message: object) =>
    Promise.all(
      workers.map(
        (worker) =>
          new Promise<number>((resolve, reject) => {
            worker.onmessage = ({ data }) => resolve(data);
            worker.onerror = ({ message }) => reject(new Error(message));
            worker.postMessage(message);
          }),
      ),
    );
  try {
    const rates: ReadRate[] = [];
    for (const bytes of sizes) {
      await ask({ bytes: Math.ceil(bytes / threads) });
      let best = 0;
      for (let round = 0; round < rounds; round++) {
        const each = await ask({ milliseconds });
        best = Math.max(
          best,
          each.reduce((sum, rate) => sum + rate, 0),
        );
      }
      rates.push({ bytes, gigabytesPerSecond: best });
    }
    return rates;
  } finally {
    for (const worker of workers) worker.terminate();
    URL.revokeObjectURL(url);
  }
}

/** The rate at which so much memory can be read: that of the largest measured size that is not larger. */
export function readRate(limits: Limits, bytes: number): number {
  const rate = limits.reads.findLast((read) => read.bytes <= bytes) ?? limits.reads[0]!;
  return rate.gigabytesPerSecond;
}

/** The share of the machine's limit that a time reaches: of reading, or of multiplying where that takes longer. */
export function shareOfLimit(limits: Limits, { bytes, flops = 0 }: Work, ms: number): number {
  const reading = bytes / readRate(limits, bytes) / 1e6;
  const multiplying = limits.gigaflops ? flops / limits.gigaflops / 1e6 : 0;
  return Math.max(reading, multiplying) / ms;
}
