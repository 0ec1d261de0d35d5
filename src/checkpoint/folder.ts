// What is read of a model's folder, which may come from a stranger: ordinary files only, of a size that is known,
// and links that stay inside.
import fs from "node:fs";
import { basename, dirname, join, resolve, sep } from "node:path";
import { BnbError } from "../error.ts";
import { damaged } from "./header.ts";
import { parseJson } from "./json.ts";

/** The longest config.json, adapter_config.json and so on; real ones have some KB. */
export const configBytesMax = 2 ** 24;

/**
 * Opens an ordinary file for reading and gives its descriptor. What else there is, a pipe, a device, a folder, is
 * refused at once: opening or reading it might wait for ever.
 *
 * @throws BnbError for what is no file; the system's error where it can't be opened
 */
export function openRegular(path: string): number {
  const { O_RDONLY, O_NONBLOCK, O_NOCTTY } = fs.constants; // without waiting for who writes into a pipe
  const descriptor = fs.openSync(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
  const opened = fs.fstatSync(descriptor);
  if (opened.isFile()) return descriptor;
  fs.closeSync(descriptor);
  if (opened.isDirectory()) throw new BnbError(`${path} is a folder, expected a file: name one that is in it.`);
  throw new BnbError(`${path} is no ordinary file: copy what it gives into one.`);
}

/** The whole text of an ordinary file of at most so many bytes. @throws BnbError if it is longer, or not UTF-8 */
export function readText(path: string, most: number): string {
  const descriptor = openRegular(path);
  const chunks: Buffer[] = [];
  let length = 0;
  try {
    // Until its end and not to its size, since a file of /proc has none.
    for (let got = -1; got !== 0 && length <= most; length += got) {
      const chunk = Buffer.allocUnsafe(Math.min(1 << 16, most + 1 - length));
      got = fs.readSync(descriptor, chunk, 0, chunk.length, length);
      chunks.push(chunk.subarray(0, got));
    }
  } finally {
    fs.closeSync(descriptor);
  }
  if (length > most) throw new BnbError(`${path} has more than ${most} bytes: it is not what its name says.`);
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Buffer.concat(chunks));
  } catch {
    throw damaged(path, "it is not UTF-8");
  }
}

/** Whether a path, which has no links in it, is the folder or lies in it. */
export function isInside(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder.endsWith(sep) ? folder : folder + sep);
}

/**
 * Where links of a folder may lead: into itself, and from a snapshot of the Hugging Face cache into that model's blobs.
 */
function rootsOf(folder: string): string[] {
  const real = fs.realpathSync(folder);
  const snapshots = dirname(real);
  const isHub = basename(snapshots) === "snapshots" && /^models--/.test(basename(dirname(snapshots)));
  return isHub ? [real, join(dirname(snapshots), "blobs")] : [real];
}

/** A path without links. @throws BnbError where its links lead out of the roots, nowhere, or in a circle */
function withoutLinks(path: string, roots: readonly string[]): string {
  let real: string;
  try {
    real = fs.realpathSync(path);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ELOOP") throw new BnbError(`${path} is a link that leads in a circle: remove it.`);
    if (code !== "ENOENT" || !isLink(path)) throw cause;
    throw new BnbError(`${path} is a link to ${fs.readlinkSync(path)}, which does not exist: remove it.`);
  }
  if (roots.some((root) => isInside(real, root))) return real;
  throw new BnbError(`${path} leads to ${real}, outside of the model's folder: put the file itself there.`);
}

/** What stands under a name, a link as itself; `undefined` where nothing does. */
export function found(path: string): fs.Stats | undefined {
  if (path.includes("\0")) return undefined; // no file has such a name, but an index can say anything
  try {
    return fs.lstatSync(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return undefined; // the second where it is below a file
    if (code === "ENAMETOOLONG") return undefined; // as above
    throw error;
  }
}

/** Whether nothing can ever stand under a name. */
export function isTooLong(path: string): boolean {
  try {
    fs.lstatSync(path);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ENAMETOOLONG";
  }
}

export function isLink(path: string): boolean {
  return found(path)?.isSymbolicLink() ?? false;
}

/** The path of a file that a model's folder has, or `undefined`. @throws BnbError where it is a link that leads out */
export function fileIn(folder: string, name: string): string | undefined {
  const path = join(folder, name);
  if (!found(path)) return undefined;
  withoutLinks(path, rootsOf(folder));
  return path;
}

/** A file of a folder that comes along into another. */
export interface OtherFile {
  /** Relative to the folder. */
  readonly name: string;
  /** Without links. */
  readonly path: string;
  readonly bytes: number;
  readonly mode: number;
}

/** Weights in every format there is, which have no place in a model that has other weights. */
const weightsFile =
  /\.(safetensors|safetensors\.index\.json|bin|bin\.index\.json|pth?|gguf|h5|msgpack|onnx|ot|tflite)$/;

/**
 * The folders of the parts that a model of sentence-transformers has behind its transformer, with weights of their own.
 */
function partsOf(folder: string): string[] {
  const path = fileIn(folder, "modules.json");
  if (path === undefined) return [];
  let modules: unknown;
  try {
    modules = parseJson(Buffer.from(readText(path, configBytesMax)));
  } catch (cause) {
    throw damaged(path, `it is not JSON (${(cause as Error).message})`);
  }
  const paths = Array.isArray(modules) ? modules.map((module) => Object(module).path) : [];
  return paths.filter((part) => typeof part === "string" && part !== "");
}

/**
 * A model folder's other files (tokenizer, templates, licence, model card, …): everything except weights in any format,
 * config.json, and hidden entries; and the weights of what sentence-transformers puts behind the model.
 *
 * @throws BnbError or the system's error for the first that can't be read, or leads out of the folder
 */
export function otherFiles(folder: string): OtherFile[] {
  const roots = rootsOf(resolve(folder));
  const parts = partsOf(folder);
  const walk = (prefix: string, above: readonly string[]): OtherFile[] => {
    const here = withoutLinks(join(folder, prefix), roots);
    if (above.includes(here)) throw new BnbError(`${join(folder, prefix)} leads into itself: remove that link.`);
    return fs
      .readdirSync(here)
      .sort()
      .filter((entry) => !entry.startsWith(".") && (parts.includes(prefix) || !weightsFile.test(entry)))
      .map((entry) => join(prefix, entry))
      .filter((name) => name !== "config.json")
      .flatMap((name) => {
        const path = withoutLinks(join(folder, name), roots);
        const entry = fs.statSync(path);
        if (entry.isDirectory()) return walk(name, [...above, here]);
        if (!entry.isFile()) throw new BnbError(`${join(folder, name)} is no ordinary file: move it elsewhere.`);
        fs.accessSync(path, fs.constants.R_OK);
        return [{ name, path, bytes: entry.size, mode: entry.mode & 0o777 }];
      });
  };
  return walk("", []);
}
