// Owns the test that sizes beyond 2^31 elements work. It needs 12 GB and half a minute: `bun run test:large`.
import { expect, test } from "bun:test";
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
