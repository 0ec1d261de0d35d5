// Owns the directory that a checkpoint is written into: whether it may be, and that it appears whole or not at all.
import { existsSync, mkdirSync, readdirSync, realpathSync, rmSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { BnbError } from "../error.ts";
import { isWeightsName } from "./checkpoint.ts";
import { Staging } from "./staging.ts";

export interface OutputOptions {
  /** Where to write. It must not exist, or be empty, unless `force`. */
  readonly output: string;
  /** Replace the weights, config.json and other files of the same names that are there. */
  readonly force?: boolean | undefined;
}

/**
 * Fills a directory beside the target and then puts it in the target's place.
 *
 * @param input the directory of a checkpoint that is read meanwhile, which the output must not replace
 * @param fill gets the directory to write into
 */
export async function intoDirectory<T>(
  { output, force = false }: OutputOptions,
  input: string | undefined,
  fill: (directory: string) => Promise<T>,
): Promise<T> {
  checkTarget(output, force, input);
  mkdirSync(dirname(resolve(output)), { recursive: true });
  using staging = new Staging(output);
  mkdirSync(staging.path);
  const result = await fill(staging.path);
  if (existsSync(output)) removeWeights(output);
  staging.commit(isWeightsName);
  return result;
}

function checkTarget(output: string, force: boolean, input: string | undefined): void {
  if (!existsSync(output)) return;
  if (!statSync(output).isDirectory()) throw new BnbError(`output ${output} is a file, expected a directory.`);
  if (input !== undefined && realpathSync(output) === realpathSync(input)) {
    throw new BnbError(`output ${output} is where the input is; choose another directory.`);
  }
  if (readdirSync(output).length > 0 && !force) {
    throw new BnbError(`output ${output} is not empty; choose another directory, or replace its files with --force.`);
  }
}

/** Shards of the checkpoint that was here would mix with the new ones. */
function removeWeights(directory: string): void {
  for (const name of readdirSync(directory)) {
    if (isWeightsName(name)) rmSync(join(directory, name));
  }
}
