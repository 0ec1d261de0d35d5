// Files that are renamed over while they are opened, in a process of its own: `bun renamed.ts <folder> <seconds>`.
// Two files, each with its own header and data, take turns under one name, as an update of a model does, while that is
// opened and read. Each time header and data must be of one file. Prints JSON with what was tried.
import { linkSync, mkdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { isMainThread, workerData } from "node:worker_threads";
import { openSafetensors } from "../../src/checkpoint/safetensors.ts";
import { writeSafetensors } from "../../src/checkpoint/writer.ts";
import { BnbError } from "../../src/error.ts";

export interface RenamedReport {
  opened: number;
  refused: number;
  /** Whose turn it was when it was opened. */
  readonly files: number[];
}

/** Of a length that differs, so that one's data under the other's header would be seen. */
const lengthOf = (which: number) => 1000 + 500 * which;

async function open(folder: string, seconds: number): Promise<RenamedReport> {
  mkdirSync(folder, { recursive: true });
  for (const which of [0, 1]) {
    const bytes = new Uint8Array(lengthOf(which)).fill(which + 1);
    await writeSafetensors(join(folder, String(which)), [{ name: "x", dtype: "U8", shape: [bytes.length], bytes }]);
  }
  linkSync(join(folder, "0"), join(folder, "model"));
  const renaming = new Worker(import.meta.url, { workerData: folder } as WorkerOptions);
  await new Promise((resolve) => renaming.addEventListener("message", resolve, { once: true }));
  const report: RenamedReport = { opened: 0, refused: 0, files: [0, 0] };
  const until = performance.now() + 1000 * seconds;
  for (; performance.now() < until; report.opened++) {
    try {
      using file = openSafetensors(join(folder, "model"));
      const { bytes } = file.tensor("x");
      const which = bytes[0]! - 1;
      if (bytes.length !== lengthOf(which) || !bytes.every((byte) => byte === which + 1))
        throw new Error(`a header of ${bytes.length} bytes came with the data of file ${which}`);
      report.files[which]!++;
    } catch (error) {
      if (!(error instanceof BnbError) || !/was replaced/.test(error.message)) throw error;
      report.refused++;
    }
  }
  return report;
}

/** In a thread of its own: puts the files under the name in turn, for as long as the process lives. */
function rename(folder: string): void {
  postMessage("begins");
  // Never the file that is there: renaming one name of a file over another does nothing.
  for (let turn = 1; ; turn = 1 - turn) {
    linkSync(join(folder, String(turn)), join(folder, "next"));
    renameSync(join(folder, "next"), join(folder, "model"));
  }
}

if (isMainThread) {
  const [folder, seconds] = process.argv.slice(2) as [string, string];
  console.log(JSON.stringify(await open(folder, Number(seconds))));
  process.exit();
} else rename(workerData);
