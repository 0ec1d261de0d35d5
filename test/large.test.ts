// The tests of large sizes: beyond 2^31 elements, and checkpoints larger than the memory that they may take. They
// need 12 GB of memory, 3 GB of disk and a minute: `bun run test:large`.
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { Codebook, matmulBlockwise, QuantizedTensor, quantize4bit, Tensor } from "../src/index.ts";

const enabled = process.env.BNB_TEST_LARGE === "1";
const columns = 2 ** 30 + 4096;

test.skipIf(!enabled)(
  "a matrix of more than 2^31 elements quantises to its last block",
  () => {
    using x = Tensor.zeros([2, columns], { dtype: "bfloat16" });
    using q = quantize4bit(x);
    using codes = q.codes;
    const bytes = codes.read();
    expect(bytes.length).toBe(columns);
    expect(bytes.every((byte) => byte === 0x77)).toBe(true);
  },
  120_000,
);

test.skipIf(!enabled)(
  "a product reaches the last of more than 2^31 codes",
  () => {
    const dynamic = Codebook.named("dynamic");
    const bytes = new Uint8Array(2 * columns).fill(127); // the code of 0
    bytes[bytes.length - 1] = 255; // the code of 1
    using codes = Tensor.from(bytes, [bytes.length]);
    using absmax = Tensor.from(new Float32Array(bytes.length / 4096).fill(3), [bytes.length / 4096]);
    using w = QuantizedTensor.fromParts({ codes, absmax, code: dynamic, blocksize: 4096, shape: [2, columns] });
    const row = new Float16Array(columns);
    row[columns - 1] = 2;
    using x = Tensor.from(row, [1, columns]);
    using y = matmulBlockwise(x, w, { precision: "highest" });
    expect([...y.read()]).toEqual([0, 6]);
  },
  120_000,
);

test.skipIf(!enabled)(
  "a checkpoint of 1 GB is quantised and dequantised in memory for three of its tensors, not for all",
  async () => {
    const folder = mkdtempSync(join(tmpdir(), "bnb-large-"));
    try {
      const bytes = new Uint16Array(2 ** 25).map((_, i) => 0x3c00 + (i % 255)); // 64 MB of bfloat16
      const tensors = Array.from({ length: 16 }, (_, layer) => {
        return { name: `layers.${layer}.fc.weight`, dtype: "BF16" as const, shape: [8192, 4096], bytes };
      });
      const [model, quantized] = [join(folder, "model.safetensors"), join(folder, "nf4")];
      await writeSafetensors(model, tensors);
      const limit = 3 * bytes.byteLength + 150e6;
      expect(await peakBytes("quantize", model, "-o", quantized, "--double-quant")).toBeLessThan(limit);
      expect(
        await peakBytes("dequantize", join(quantized, "model.safetensors"), "-o", join(folder, "out")),
      ).toBeLessThan(limit);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
  120_000,
);

/** Runs the command line and gives the most memory that it had resident at once. */
async function peakBytes(...args: string[]): Promise<number> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "../src/cli/main.ts"), ...args, "--quiet"]);
  expect(await child.exited).toBe(0);
  return child.resourceUsage()!.maxRSS;
}
