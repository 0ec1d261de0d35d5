// Writes to standard output and standard error: nothing gets there but what was escaped, and whatever can't be
// written is an error.
import fs from "node:fs";
import { styleText } from "node:util";
import { printable, printableLines } from "../printable.ts";

/** Text that may be printed as it is: it was escaped, or is this program's own. */
export class Printable {
  constructor(readonly text: string) {}

  toString(): string {
    return this.text;
  }
}

const safe = (value: unknown) => (value instanceof Printable ? value.text : printable(String(value)));

/** A template of this program's own text; values that are no {@link Printable} are escaped. */
export function line(own: TemplateStringsArray, ...values: readonly unknown[]): Printable {
  return new Printable(String.raw({ raw: own }, ...values.map(safe)));
}

/** Text in a colour or style, where standard output is a terminal. */
export function styled(format: Parameters<typeof styleText>[0], text: string): Printable {
  return new Printable(styleText(format, printable(text), { stream: process.stdout }));
}

/** Writes lines to standard output. */
export function print(...lines: readonly (string | Printable)[]): void {
  put(`${lines.map(safe).join("\n")}\n`);
}

/**
 * Writes a piece of a text that a model writes to standard output: its lines stay, what a terminal would obey is
 * escaped.
 */
export function printPiece(text: string | Printable): void {
  put(text instanceof Printable ? text.text : printableLines(text));
}

/** Writes lines to standard error. That nobody reads them, or there is no room, ends no work: it could not be told. */
export function warn(...lines: readonly (string | Printable)[]): void {
  complain(`${lines.map(safe).join("\n")}\n`);
}

function complain(text: string): void {
  try {
    writeAll(process.stderr.fd, text);
  } catch (error) {
    if (!(error instanceof Error && "syscall" in error)) throw error;
  }
}

/** Writes a value as JSON to standard output; text in it has JSON's escapes for whatever a terminal would obey. */
export function printJson(value: unknown, indent?: number): void {
  put(`${printableLines(JSON.stringify(value, null, indent))}\n`);
}

/** A complaint of commander's, of several lines, which quotes what was typed: that stays on one. */
function complaint(text: string): string {
  const typed = process.argv.slice(2).filter((argument) => argument.includes("\n"));
  return printableLines(typed.reduce((rest, argument) => rest.replaceAll(argument, printable(argument)), text));
}

/** For commander: help as it is, complaints escaped. */
export const output = {
  writeOut: put,
  writeErr: complain,
  outputError: (text: string, write: (text: string) => void) => write(complaint(text)),
};

/** Standard output that can't be written to. */
export class OutputError extends Error {
  readonly syscall = "write";
}

/** How a process ends that writes into a pipe which nobody reads: as the system's signal for that would end it. */
const pipeClosedStatus = 128 + 13;
const waitMs = 5;

function put(text: string): void {
  try {
    writeAll(process.stdout.fd, text);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === "EPIPE") process.exit(pipeClosedStatus);
    throw new OutputError(`${message} (standard output)`, { cause });
  }
}

function writeAll(descriptor: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let done = 0; done < bytes.length; ) {
    try {
      done += fs.writeSync(descriptor, bytes, done);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, waitMs); // a pipe that is full for now
    }
  }
}
