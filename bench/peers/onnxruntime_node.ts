// The benchmark of onnxruntime in JavaScript: onnxruntime-node in Bun, on the models that onnxruntime_peer.py
// wrote.
import { existsSync } from "node:fs";
import { pathToFileURL } from "node:url";
import type { PeerCase } from "./protocol.ts";
import { activations, checkedWeight, productError, Skip, serve } from "./worker.ts";

const threads = Number(process.env.BNB_NUM_THREADS);
const block = 64;

/**
 * The part of onnxruntime-node's interface that is used; the package itself is in a folder that is not installed
 * here.
 */
interface Onnxruntime {
  env: { versions: { node: string } };
  InferenceSession: { create(path: string, options: object): Promise<Session> };
  Tensor: new (type: "float32", values: Float32Array, shape: number[]) => { data: Float32Array };
}
interface Session {
  run(feeds: object): Promise<Record<string, { data: Float32Array }>>;
}

const entry = Bun.resolveSync("onnxruntime-node", process.env.BNB_PEERS_MODULES!);
const { default: ort }: { default: Onnxruntime } = await import(pathToFileURL(entry).href);

/** What onnxruntime_peer.py's `int4` makes of the rows that are checked. */
function dequantized(w: Float32Array): Float32Array {
  const values = w.slice();
  for (let first = 0; first < values.length; first += block) {
    const one = values.subarray(first, first + block);
    const largest = one.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most));
    const scale = Math.fround(largest / -8);
    for (const [i, value] of one.entries()) one[i] = (Math.min(15, Math.round(value / scale + 8)) - 8) * scale;
  }
  return values;
}

async function make(peerCase: PeerCase, variant: string) {
  const { m, n, k, copies } = peerCase;
  const path = `${process.env.BNB_PEERS_INPUTS}/${variant}-${n}x${k}-${copies}.onnx`;
  if (!existsSync(path)) throw new Skip("its model is written by onnxruntime's Python package, which did not run");
  const options = { intraOpNumThreads: threads, interOpNumThreads: 1, executionProviders: ["cpu"] };
  const session = await ort.InferenceSession.create(path, options);
  const feeds = { x: new ort.Tensor("float32", activations(peerCase), [m, k]) };
  const { y0 } = await session.run(feeds);
  return {
    run: () => session.run(feeds),
    error: productError(peerCase, y0!.data, dequantized(checkedWeight(peerCase).w)),
  };
}

await serve({ description: `onnxruntime-node ${ort.env.versions.node}`, make });
