// A quantised linear layer: y = x · wᵀ + bias, with w kept in 4 bits, waiting without blocking the event loop.
import { linear, matmul4bit, quantize4bit, Tensor } from "bunsandbytes";

const [rows, inputs, outputs] = [8, 1024, 2048];
const uniform = (length: number) => Float32Array.from({ length }, () => 2 * Math.random() - 1);

using x = Tensor.from(uniform(rows * inputs), [rows, inputs], { dtype: "float16" });
using weight = Tensor.from(uniform(outputs * inputs), [outputs, inputs]);
using bias = Tensor.from(uniform(outputs), [outputs]);

using q = quantize4bit(weight);
using y = matmul4bit(x, q, { bias });
await y.ready();

using exact = linear(x, weight, { bias });
const [got, want] = [y.readFloat32(), exact.readFloat32()];
const error = Math.hypot(...got.map((value, i) => value - want[i]!)) / Math.hypot(...want);
console.log(`${y}, ${q.bitsPerElement} bits a weight: off by ${(100 * error).toFixed(1)} % of the dense product`);
