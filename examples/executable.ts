// A program for machines that have neither Bun nor this package: it quantises a file of float32 numbers in 4 bits and
// says what that costs.
// `bun build --compile --no-compile-autoload-dotenv --no-compile-autoload-bunfig examples/executable.ts
// --outfile quantise && ./quantise numbers.f32`
import { compare, currentDevice, dequantize4bit, quantize4bit, Tensor, version } from "bunsandbytes";

const [path] = process.argv.slice(2);
const numbers = path
  ? new Float32Array(await Bun.file(path).arrayBuffer())
  : Float32Array.from({ length: 1 << 20 }, (_, i) => Math.sin(i * i));

using x = Tensor.from(numbers);
using q = quantize4bit(x, { compressStatistics: true });
using back = dequantize4bit(q);
const { rms, rmsError } = compare(x, back);

console.log(`bunsandbytes ${version} on ${currentDevice()}: ${currentDevice().description}`);
console.log(`${x.byteLength} bytes became ${q.byteLength}, off by ${((100 * rmsError) / rms).toFixed(1)} %`);
