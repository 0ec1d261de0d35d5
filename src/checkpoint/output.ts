// The folder that a model is written into, as a transaction: planned, staged, committed. Every writer of one goes
// through it.
import fs from "node:fs";
import { dirname, join } from "node:path";
import { isWeightsName } from "./checkpoint.ts";
import { commitFolder } from "./commit.ts";
import { type OtherFile, openRegular } from "./folder.ts";
import { type OutputJob, type OutputOptions, planOutput } from "./plan.ts";
import { about, Staging, syncTree } from "./staging.ts";

/** What came with the files that were made. */
export interface OutputReport {
  /** Files of the input that came along, relative to the folder. */
  readonly carried: readonly string[];
  /** What a person should know. */
  readonly notes: readonly string[];
}

/**
 * Fills a folder beside the target and then puts it in the target's place.
 *
 * @param job what will be written, as far as it is known before
 * @param fill gets the folder to write into: files by `SafetensorsWriter` or `writeText`
 * @throws BnbError before any work for all that can be foreseen; nothing is left at the output then
 */
export async function intoDirectory<T>(
  options: OutputOptions,
  job: OutputJob,
  fill: (directory: string) => Promise<T>,
): Promise<T & OutputReport> {
  const plan = planOutput(options, job);
  using staging = new Staging(plan);
  fs.mkdirSync(staging.path);
  const result = await fill(staging.path);
  for (const file of plan.carried) carry(file, staging);
  syncTree(staging.path);
  const notes = commitFolder(staging, plan, { isWeights: isWeightsName });
  return { ...result, carried: plan.carried.map(({ name }) => name), notes: [...staging.notes, ...notes] };
}

/** Copies a file into the stage, unless one of that name was made. */
function carry({ name, path, mode }: OtherFile, staging: Staging): void {
  const to = join(staging.path, name);
  if (fs.existsSync(to)) return;
  fs.mkdirSync(dirname(to), { recursive: true });
  staging.wrote(to);
  const from = openRegular(path);
  const descriptor = fs.openSync(to, "wx", mode);
  try {
    const chunk = new Uint8Array(1 << 20);
    for (let got = fs.readSync(from, chunk); got > 0; got = fs.readSync(from, chunk))
      for (let done = 0; done < got; ) done += fs.writeSync(descriptor, chunk, done, got - done);
    fs.fsyncSync(descriptor);
  } catch (error) {
    throw about(error, to);
  } finally {
    fs.closeSync(from);
    fs.closeSync(descriptor);
  }
}
