// Where a model is that a person named: the folder itself, or what the Hugging Face cache keeps for a repository.
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { BnbError } from "../error.ts";
import { readText } from "./folder.ts";

/** A commit's name has 40 characters; a line more is no reference. */
const referenceBytesMax = 1000;

/**
 * The folder of a model: of a repository's folder of the Hugging Face cache (`models--org--name`) the snapshot that its
 * main branch is at, or the only one; any other path as it is.
 *
 * @throws BnbError where there are several snapshots and none is the main one
 */
export function snapshotOf(path: string): string {
  const snapshots = join(path, "snapshots");
  if (!isFolder(path) || !isFolder(snapshots) || existsSync(join(path, "config.json"))) return path;
  const reference = join(path, "refs", "main");
  const main = existsSync(reference) ? readText(reference, referenceBytesMax).trim() : undefined;
  const all = readdirSync(snapshots).filter((name) => isFolder(join(snapshots, name)));
  const taken = all.includes(main ?? "") ? main! : all.length === 1 ? all[0]! : undefined;
  if (taken !== undefined) return join(snapshots, taken);
  const which =
    all.length === 0 ? "no snapshot: fetch the model again" : `several: name one, such as ${join(snapshots, all[0]!)}`;
  throw new BnbError(`${path} is a repository's folder of the Hugging Face cache with ${which}.`);
}

function isFolder(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ?? false;
}
