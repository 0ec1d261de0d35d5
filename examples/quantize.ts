// Quantise a weight to 4 bits, look at what that saves and costs, and get it back.
import { dequantize4bit, quantize4bit, Tensor } from "bunsandbytes";

const weights = Float32Array.from({ length: 512 * 256 }, (_, i) => Math.sin(i) * 0.05);
using w = Tensor.from(weights, [512, 256]);
using q = quantize4bit(w, { quantType: "nf4", compressStatistics: true });
using back = dequantize4bit(q);

const values = back.readFloat32();
const worst = values.reduce((most, value, i) => Math.max(most, Math.abs(value - weights[i]!)), 0);
console.log(String(q));
console.log(`${w.byteLength} bytes became ${q.byteLength}: ${q.bitsPerElement.toFixed(2)} bits an element`);
console.log(`largest error ${worst.toFixed(4)}, of a largest weight ${Math.max(...weights).toFixed(4)}`);
