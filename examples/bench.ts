// How much faster a 4-bit layer is than a dense one on this machine, measured in turns: bun examples/bench.ts
import { currentDevice, linear, matmul4bit, quantize4bit, Tensor } from "bunsandbytes";
import { ratio } from "bunsandbytes/bench";

const [n, k] = [4096, 4096];
using w = Tensor.from(
  Float32Array.from({ length: n * k }, () => Math.random() - 0.5),
  [n, k],
);
using q = quantize4bit(w);
const device = currentDevice();
console.log(`${device.kind}, ${device.description}: nf4 against dense float32, [${n}, ${k}]`);

for (const rows of [1, 4, 32]) {
  using x = Tensor.from(
    Float32Array.from({ length: rows * k }, () => Math.random() - 0.5),
    [rows, k],
  );
  const result = await ratio(
    () => matmul4bit(x, q),
    () => linear(x, w),
    { rounds: 5 },
  );
  const [lowest, highest] = result.range.map((value) => value.toFixed(2));
  console.log(
    `${rows} rows: ${result.ratio.toFixed(2)}× (${lowest} to ${highest}), ${result.a.medianMs.toFixed(3)} ms`,
  );
}
