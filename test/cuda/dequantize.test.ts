// Dequantising 4-bit codes on simulated NVIDIA GPUs: the kernel of cuda/ by itself and its place in the library, whose
// bits are the portable kernel's and the CPU's.
import { describe, expect, test } from "bun:test";
import { codebooks4, floatDTypes } from "../cases.ts";
import { Store, wide } from "../metal/arguments.ts";
import { launch, runs } from "../metal/launch.ts";
import { bytesOf, type Coded, load, randomCodes, store, weightsOf } from "../metal/memory.ts";
import { run as script, simulates } from "./child.ts";

/** Not beside the simulated GPU, which brings a simulator of its own into the process. */
const hasSimulator = process.platform === "linux" && process.arch === "x64" && !process.env.BNB_CUDA_LIBRARY;

describe.skipIf(!hasSimulator).each(runs)("dequantize4, $mode, seed $seed", (run) => {
  function dequantized(coded: Coded, count: number, dtype: (typeof floatDTypes)[number]) {
    const y = store(new Float32Array(count).fill(Number.NaN), dtype);
    const groups = Math.ceil((Math.floor(count / 1024) + Math.ceil((count % 1024) / 32)) / 8);
    launch({
      ...{ ...run, family: "dequantize4", kernel: "dequantize4", large: true, grid: [groups, 1, 1], group: 256 },
      constants: [Store.codes(4), Store[dtype], coded.nested, 0],
      ...{ args: [...wide(count), ...coded.args], buffers: [...coded.buffers, y], behind: coded.offsets },
    });
    return y;
  }

  const cases = floatDTypes.flatMap((dtype) =>
    [0, 256, 2].flatMap((nestedBlock) => [32, 64, 4096].map((block) => ({ dtype, nestedBlock, block }))),
  );
  test.each(cases)("to $dtype, block $block, nested $nestedBlock", ({ dtype, nestedBlock, block }) => {
    const values = codebooks4[block === 64 ? "unsorted" : "nf4"]!.values;
    for (const count of [1, 31, 33, 1023, 1024, 1057, 2048, 9299]) {
      const coded = randomCodes(count, values, block, nestedBlock, count);
      const want = bytesOf(store(weightsOf(coded), dtype));
      expect(Buffer.from(bytesOf(dequantized(coded, count, dtype))).equals(want)).toBe(true);
    }
  });

  test.each(floatDTypes)("scales that are no ordinary numbers, to %s", (dtype) => {
    const count = 1024 + 32 * 9;
    const coded = randomCodes(count, codebooks4.nf4!.values, 32, 0, 1);
    for (const at of [0, 32])
      coded.scale.set([Number.NaN, 0, -0, 1e-6, -2.5, 3e38, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY], at);
    const got = load(dequantized(coded, count, dtype), dtype);
    expect([...got]).toEqual([...load(store(weightsOf(coded), dtype), dtype)]);
  });
});

/** Each as the CPU has it, to the bit; `weights` by name. */
const compare = (weights: string) => `
  import { normal } from "./test/cases.ts";
  const device = bnb.Device.open("cuda");
  const dense = (n, k) => bnb.Tensor.from(normal(n * k, n), [n, k], { device });
  const bytes = (t) => { const v = t.read(); return Buffer.from(v.buffer, v.byteOffset, v.byteLength); };
  for (const [name, q] of Object.entries(${weights})) for (const dtype of ["float32", "float16", "bfloat16"]) {
    const [here, there] = [q.to("cpu"), q].map((w) => bytes(bnb.dequantizeBlockwise(w, { dtype })));
    console.log(name, dtype, here.equals(there));
  }`;

const served = compare(`{
    ...Object.fromEntries([[1, 1], [3, 11], [33, 31], [32, 32], [41, 75], [64, 1024]].flatMap(([n, k]) =>
      [32, 64, 4096].flatMap((blocksize) => [false, true].map((compressStatistics) =>
        [[n, k, blocksize, compressStatistics].join(), bnb.quantize4bit(dense(n, k), { blocksize, compressStatistics })])))),
    fp4: bnb.quantize4bit(dense(41, 75), { quantType: "fp4" }),
    "a codebook of one's own": bnb.quantizeBlockwise(dense(41, 75), { code: bnb.createLinearMap(true, 4), blocksize: 128 }),
  }`);

const left = `const halves = (q) => bnb.QuantizedTensor.fromParts({ codes: q.codes, absmax: q.absmax.cast("float16"),
    code: bnb.Codebook.named("nf4"), blocksize: q.blocksize, shape: q.shape });
  ${compare(`{
    "short blocks": bnb.quantize4bit(dense(41, 75), { blocksize: 16 }),
    bytes: bnb.quantizeBlockwise(dense(41, 75), { blocksize: 64 }),
    "3 bits": bnb.quantizeBlockwise(dense(41, 75), { code: bnb.createLinearMap(true, 3), blocksize: 64 }),
    offsets: bnb.quantizeAffine(dense(41, 64), { bits: 4, blocksize: 32 }),
    "scales in half precision": halves(bnb.quantize4bit(dense(41, 75))),
  }`)}`;

describe.skipIf(!simulates)("the CPU's bits", () => {
  const equal = (out: string, lines: number) => {
    expect(out.trim().split("\n").length).toBe(lines);
    for (const line of out.trim().split("\n")) expect(line).toEndWith(" true");
  };

  test.each(["80", "90"])(
    "by CUDA's own kernel, of 4-bit codes in blocks of 32 and more; capability %s",
    (capability) => {
      const { out, err } = script(served, `capability=${capability}`, { BNB_PROFILE: "1" });
      equal(out, 3 * 38);
      expect(err).toMatch(/\ndequantize4 +114 /);
      expect(err).not.toContain("\ndequantize ");
    },
    120_000,
  );

  test("by the portable kernel, of everything else", () => {
    const { out, err } = script(left, "capability=90", { BNB_PROFILE: "1" });
    equal(out, 3 * 5);
    expect(err).toMatch(/\ndequantize +15 /);
    expect(err).not.toContain("\ndequantize4 ");
  }, 120_000);
});
