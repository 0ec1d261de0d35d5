// The hook on every call by which this library changes files: what a process is killed at, another one let in at,
// or the disk full at, and what a power cut is worked out from.
import fs from "node:fs";
import { join, resolve } from "node:path";
import { libc } from "../../src/libc.ts";

/** Calls that change files, or make changes durable. Those that only read are not among them. */
const names = [
  ...["openSync", "writeSync", "fsyncSync", "renameSync", "linkSync", "symlinkSync", "copyFileSync", "mkdirSync"],
  ...["unlinkSync", "rmdirSync", "rmSync", "chmodSync", "chownSync", "utimesSync"],
] as const;

/** Of these, the calls that need room on the disk. */
export const needRoom = ["openSync", "writeSync", "fsyncSync", "linkSync", "symlinkSync", "copyFileSync", "mkdirSync"];

type Call = (name: string, args: readonly unknown[]) => void;

const isRead = (name: string, args: readonly unknown[]) =>
  name === "openSync" && (typeof args[1] === "number" || args[1] === "r" || args[1] === "r+");

/** Has each call of this process told before and after it is made. */
export function onCalls(before: Call, after: (name: string, args: readonly unknown[], result: unknown) => void): void {
  const hook = <T extends object>(object: T, name: keyof T & string) => {
    const original = object[name] as (...args: unknown[]) => unknown;
    Object.assign(object, {
      [name]: (...args: unknown[]) => {
        if (isRead(name, args)) {
          const descriptor = original(...args);
          after("openToRead", args, descriptor);
          return descriptor;
        }
        before(name, args);
        const result = original(...args);
        after(name, args, result);
        return result;
      },
    });
  };
  for (const name of names) hook(fs, name);
  hook(libc, "exchange");
}

/** A change of the disk, as a power cut may or may not leave it. Data is in base64. */
export type Change =
  | { readonly op: "create" | "mkdir" | "unlink" | "sync"; readonly path: string }
  | { readonly op: "write"; readonly path: string; readonly at: number; readonly data: string }
  | { readonly op: "rename" | "exchange" | "link"; readonly path: string; readonly to: string }
  | { readonly op: "symlink"; readonly path: string; readonly target: string };

/** Records all changes of this process; what the list has at the end is all of them. */
export function record(): Change[] {
  const changes: Change[] = [];
  const open = new Map<number, { path: string; end: number }>();
  const path = (value: unknown) => resolve(value as string);
  onCalls(
    (name, args) => {
      // One call that removes many: told one by one, while they are still there.
      if (name === "rmSync") for (const gone of below(path(args[0]))) changes.push({ op: "unlink", path: gone });
    },
    (name, args, result) => {
      const at = name === "fsyncSync" || name === "writeSync" ? open.get(args[0] as number) : undefined;
      if (name === "openSync" || name === "openToRead") open.set(result as number, { path: path(args[0]), end: 0 });
      if (name === "openSync") changes.push({ op: "create", path: path(args[0]) });
      if (name === "fsyncSync") changes.push({ op: "sync", path: at!.path });
      if (name === "mkdirSync" && (result !== undefined || !isRecursive(args[1])))
        changes.push({ op: "mkdir", path: path(args[0]) });
      if (name === "unlinkSync" || name === "rmdirSync") changes.push({ op: "unlink", path: path(args[0]) });
      if (name === "renameSync") changes.push({ op: "rename", path: path(args[0]), to: path(args[1]) });
      if (name === "linkSync") changes.push({ op: "link", path: path(args[0]), to: path(args[1]) });
      if (name === "exchange" && result) changes.push({ op: "exchange", path: path(args[0]), to: path(args[1]) });
      if (name === "symlinkSync") changes.push({ op: "symlink", path: path(args[1]), target: args[0] as string });
      if (name === "writeSync") {
        const start = (args[4] as number | undefined) ?? at!.end;
        const data = dataOf(args, result as number);
        changes.push({ op: "write", path: at!.path, at: start, data: data.toString("base64") });
        at!.end = start + data.length;
      }
    },
  );
  return changes;
}

const isRecursive = (options: unknown) => (Object(options) as { recursive?: boolean }).recursive === true;

function dataOf([, data, offset = 0]: readonly unknown[], length: number): Buffer {
  if (typeof data === "string") return Buffer.from(data).subarray(0, length);
  const view = data as Uint8Array;
  return Buffer.from(view.buffer, view.byteOffset + (offset as number), length);
}

/** Everything below a path and itself, what is inside before what it is in. */
function below(path: string): string[] {
  const found = fs.lstatSync(path, { throwIfNoEntry: false });
  if (!found) return [];
  const inner = found.isDirectory() ? fs.readdirSync(path).flatMap((name) => below(join(path, name))) : [];
  return [...inner, path];
}
