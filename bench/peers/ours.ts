// This library's side of the benchmark, through the functions that its users call.
import {
  currentDevice,
  dequantize4bit,
  dequantizeBlockwise,
  type FloatDType,
  Int8Weight,
  matmul4bit,
  matmul8bit,
  optim,
  Parameter,
  type QuantizedTensor,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
  version,
} from "../../src/index.ts";
import type { Precision } from "../../src/native.ts";
import type { Operation, PeerCase } from "./protocol.ts";
import { activations, type Contestant, checkedWeight, load, productError, relative, serve, weight } from "./worker.ts";

const device = currentDevice();

/** Runs, frees and waits: a GPU's work would otherwise only be enqueued. */
function timed(run: () => Disposable): () => void {
  return () => {
    run()[Symbol.dispose]();
    device.wait();
  };
}

const weightTensor = (peerCase: PeerCase) => Tensor.from(weight(peerCase), [peerCase.n, peerCase.k]);
const floats = (tensor: Tensor) => tensor.cast("float32").read();

function matmul(peerCase: PeerCase, variant: string): Contestant {
  const { m, k, copies } = peerCase;
  const precision = variant as Precision;
  using w = weightTensor(peerCase);
  const layers: QuantizedTensor[] = Array.from({ length: copies }, () => quantize4bit(w));
  const x = Tensor.from(activations(peerCase), [m, k]);
  const run = () => {
    for (const layer of layers) matmul4bit(x, layer, { precision }).dispose();
    device.wait();
  };
  const y = floats(matmul4bit(x, layers[0]!, { precision }));
  const checked = checkedWeight(peerCase);
  const dequantized = floats(dequantize4bit(quantize4bit(Tensor.from(checked.w, [checked.rows, k]))));
  return { run, error: productError(peerCase, y, dequantized) };
}

function int8(peerCase: PeerCase, variant: string): Contestant {
  const w = weightTensor(peerCase);
  const x = Tensor.from(activations(peerCase), [peerCase.m, peerCase.k]).cast(variant as FloatDType);
  const coded = Int8Weight.quantize(w);
  const run = () => matmul8bit(x, coded, { threshold: 6 });
  return { run: timed(run), error: productError(peerCase, floats(run()), weight(peerCase)) };
}

function adam8bit(peerCase: PeerCase): Contestant {
  const { n, k } = peerCase;
  const gradient = load("g", n * k);
  const parameter = new Parameter(weightTensor(peerCase));
  parameter.grad = Tensor.from(gradient, [n, k]);
  const optimizer = new optim.Adam8bit([parameter], { lr: 1e-3 });
  const before = weight(peerCase);
  optimizer.step();
  const moved = floats(parameter.data).map((value, i) => value - before[i]!);
  const expected = gradient.map((g) => (-1e-3 * g) / (Math.abs(g) + 1e-8)); // Adam's first step (Kingma and Ba 2015)
  const run = () => {
    optimizer.step();
    device.wait();
  };
  return { run, error: relative(moved, expected) };
}

/** A quantiser, or with `back` its inverse, held to what went in. */
function coding(quantize: (w: Tensor) => QuantizedTensor, back?: (q: QuantizedTensor) => Tensor) {
  return (peerCase: PeerCase): Contestant => {
    const w = weightTensor(peerCase);
    const q = quantize(w);
    const decoded = back ? back(q) : q.bits === 4 ? dequantize4bit(q) : dequantizeBlockwise(q);
    const run = timed(back ? () => back(q) : () => quantize(w));
    return { run, error: relative(floats(decoded), weight(peerCase)) };
  };
}

const to8bit = (w: Tensor) => quantizeBlockwise(w, { blocksize: 256 });

const operations: Record<Operation, (peerCase: PeerCase, variant: string) => Contestant> = {
  matmul,
  int8,
  adam8bit,
  quantize4bit: coding(quantize4bit),
  dequantize4bit: (peerCase, variant) =>
    coding(quantize4bit, (q) => dequantize4bit(q, { dtype: variant as FloatDType }))(peerCase),
  quantize8bit: coding(to8bit),
  dequantize8bit: coding(to8bit, (q) => dequantizeBlockwise(q)),
};

await serve({
  description: `bunsandbytes ${version} (${device.description})`,
  make: (peerCase, variant) => operations[peerCase.operation](peerCase, variant),
});
