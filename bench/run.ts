// `bun run bench`: the command line's `bench`, with the peak of the processor's arithmetic and every format that
// is tested.
import type { BenchCase } from "../src/bench/cases.ts";
import { benchCommand } from "../src/cli/bench.ts";
import { runCommand } from "../src/cli/run.ts";
import { matmulBlockwise, quantizeBlockwise, Tensor } from "../src/index.ts";
import { blocksizes4, blocksizes8, codebooks4, codebooks8, codebooksOfOtherBits, normal } from "../test/cases.ts";
import { peak } from "./peak.ts";

const [n, k] = [2048, 2048];

/** Every format of test/cases.ts: quantised, and multiplied with one row. */
function formatCases(): BenchCase[] {
  let made: Record<"w" | "x", Tensor<"float32">> | undefined;
  const inputs = () => {
    made ??= { w: Tensor.from(normal(n * k), [n, k]), x: Tensor.from(normal(k, 2), [1, k]) };
    return made;
  };
  const groups = [
    [codebooks4, blocksizes4],
    [codebooksOfOtherBits, blocksizes4],
    [codebooks8, blocksizes8],
  ] as const;
  const formats = groups.flatMap(([codebooks, blocksizes]) =>
    Object.entries(codebooks).flatMap(([name, code]) => blocksizes.map((blocksize) => ({ name, code, blocksize }))),
  );
  return formats.flatMap(({ name, code, blocksize }) => {
    const quantize = () => quantizeBlockwise(inputs().w, { code, blocksize });
    return [
      {
        name: `format ${name}, block ${blocksize}: quantise`,
        make: () => ({ bytes: quantize().byteLength + 4 * n * k, run: quantize }),
      },
      {
        name: `format ${name}, block ${blocksize}: matmul 1 row`,
        make: () => {
          const q = quantize();
          return { bytes: q.byteLength + 4 * (n + k), flops: 2 * n * k, run: () => matmulBlockwise(inputs().x, q) };
        },
      },
    ];
  });
}

await runCommand(() => benchCommand({ formats: formatCases, peak }));
