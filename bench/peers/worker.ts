// The JavaScript side of the benchmark's protocol: one contestant in a process of its own, as worker.py for
// Python.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Answer, Command, PeerCase } from "./protocol.ts";

/** What to time, and the error of what it computes. */
export interface Contestant {
  run(): unknown;
  readonly error: number;
}

export interface Worker {
  readonly description: string;
  /** @throws Skip where this worker can't run the case */
  make(peerCase: PeerCase, variant: string): Contestant | Promise<Contestant>;
}

/** This worker can't run this case, for a reason that is worth a sentence. */
export class Skip extends Error {}

const folder = process.env.BNB_PEERS_INPUTS!;

/** Rows and columns of a product that are held to float64. */
const [checkedRows, checkedColumns] = [8, 64];

const inputs = new Map<string, Float32Array<ArrayBuffer>>();

/** The first elements of an input that the driver wrote; shared, and not to be written to. */
export function load(name: string, length: number): Float32Array<ArrayBuffer> {
  const whole = inputs.get(name) ?? new Float32Array(new Uint8Array(readFileSync(`${folder}/${name}.f32`)).buffer);
  inputs.set(name, whole);
  return whole.subarray(0, length);
}

export const weight = ({ n, k }: PeerCase) => load("w", n * k);
export const activations = ({ operation, m, k }: PeerCase) => load(operation === "int8" ? "x_outliers" : "x", m * k);

/** ‖found − expected‖ / ‖expected‖. */
export function relative(found: ArrayLike<number>, expected: ArrayLike<number>): number {
  let [difference, whole] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference += (found[i]! - expected[i]!) ** 2;
    whole += expected[i]! ** 2;
  }
  return Math.sqrt(difference / whole);
}

/** The rows of the weight whose products are checked: those that {@link productError} wants to have dequantised. */
export function checkedWeight(peerCase: PeerCase): { rows: number; w: Float32Array<ArrayBuffer> } {
  const rows = Math.min(peerCase.n, checkedColumns);
  return { rows, w: weight(peerCase).subarray(0, rows * peerCase.k) };
}

/** The error of y [m, n] against float64 products with what the worker's own codes of the checked rows stand for. */
export function productError(peerCase: PeerCase, y: ArrayLike<number>, dequantized: ArrayLike<number>): number {
  const { m, n, k } = peerCase;
  const x = activations(peerCase);
  const [found, expected]: [number[], number[]] = [[], []];
  for (let row = 0; row < Math.min(m, checkedRows); row++)
    for (let column = 0; column < Math.min(n, checkedColumns); column++) {
      let sum = 0;
      for (let i = 0; i < k; i++) sum += x[row * k + i]! * dequantized[column * k + i]!;
      expected.push(sum);
      found.push(y[row * n + column]!);
    }
  return relative(found, expected);
}

/** Times of a run in milliseconds, as many as fit; runs of a few microseconds are timed in batches. */
async function measure(run: () => unknown, milliseconds: number): Promise<number[]> {
  const end = Bun.nanoseconds() + milliseconds * 1e6;
  const timed = async (batch: number) => {
    const began = Bun.nanoseconds();
    for (let i = 0; i < batch; i++) {
      const result = run();
      if (result instanceof Promise) await result;
    }
    return (Bun.nanoseconds() - began) / batch / 1e6;
  };
  const first = await timed(1); // it finds caches cold: counted only where there is no time for another
  const batch = Math.max(1, Math.floor(0.1 / first));
  const samples: number[] = [];
  while (Bun.nanoseconds() < end) samples.push(await timed(batch));
  return samples.length ? samples : [first];
}

async function obey(command: Command, worker: Worker, contestants: Map<string, Contestant>): Promise<Answer> {
  switch (command.do) {
    case "prepare":
      try {
        const contestant = await worker.make(command.case, command.variant);
        contestants.set(command.key, contestant);
        return { error: contestant.error };
      } catch (reason) {
        if (reason instanceof Skip) return { skip: reason.message };
        throw reason;
      }
    case "measure":
      return { samples: await measure(contestants.get(command.key)!.run, command.milliseconds) };
    case "release":
      contestants.delete(command.key);
      return {};
  }
}

/** Answers commands from standard input until it ends. */
export async function serve(worker: Worker): Promise<void> {
  const answer = (value: Answer) => process.stdout.write(`${JSON.stringify(value)}\n`);
  const contestants = new Map<string, Contestant>();
  answer({ description: worker.description });
  for await (const line of createInterface({ input: process.stdin }))
    answer(await obey(JSON.parse(line), worker, contestants));
}
