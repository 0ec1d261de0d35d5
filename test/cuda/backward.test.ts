// The products' gradients on simulated NVIDIA GPUs: which kernels ran for which case, and how near they are to float64.
import { describe, expect, test } from "bun:test";
import { run, simulates } from "./child.ts";

/** What the scripts share: tensors, and how far a gradient is from float64's, of the numbers that it was made of. */
const prelude = `
  import { normal, wave } from "./test/cases.ts";
  import { matmul, relativeError, transpose } from "./test/reference.ts";
  const device = bnb.Device.open("cuda");
  const tensor = (values, shape, dtype) => bnb.Tensor.from(values, shape, { device }).cast(dtype);
  const numbersOf = (w) => w instanceof bnb.Tensor ? w.readFloat32()
    : (w.bits === 4 ? bnb.dequantize4bit : bnb.dequantizeBlockwise)(w, { dtype: "float32" }).readFloat32();
  function dx(m, dtype, w) {
    const [n, k] = w.shape, dy = tensor(wave(m * n, 3), [m, n], dtype);
    const found = bnb.matmulBackward(dy, w).readFloat32();
    return relativeError(found, matmul(dy.readFloat32(), transpose(numbersOf(w), n, k), undefined, m, k, n));
  }
  function dw(m, n, k, dtype, to = dtype, other = dtype) {
    const dy = tensor(wave(m * n, 3), [m, n], dtype), x = tensor(normal(m * k, 4), [m, k], other);
    const found = bnb.linearBackwardWeight(dy, x, { dtype: to }).readFloat32();
    const want = matmul(transpose(dy.readFloat32(), m, n), transpose(x.readFloat32(), m, k), undefined, n, k, m);
    return relativeError(found, want);
  }
  const dense = (n, k, dtype) => tensor(normal(n * k, 5), [n, k], dtype);
  const bounds = { float32: 2e-6, float16: 6e-4, bfloat16: 4e-3 };
  const say = (name, error, dtype) => console.log(name, error < bounds[dtype] ? "is near" : "is off by " + error);
`;

/** All of it on tensor cores: any format of weight, sides ragged beside tiles, depths beside steps. */
const served = `${prelude}
  for (const dtype of ["bfloat16", "float16"]) {
    for (const [m, n, k] of [[1, 8, 8], [9, 72, 40], [70, 136, 24], [130, 40, 136], [8, 1096, 72]])
      say("dx dense " + [m, n, k], dx(m, dtype, dense(n, k, dtype)), dtype);
    for (const depth of [1, 7, 63, 65, 130, 1100])
      for (const to of [dtype, "float32"]) say("dw " + [depth, to], dw(depth, 136, 72, dtype, to), to);
    say("dw wide", dw(5, 8, 264, dtype, "float16"), "float16");
    const w = dense(40, 192, "float32"), code = bnb.createLinearMap(true, 3);
    const weights = {
      nf4: bnb.quantize4bit(w),
      fp4: bnb.quantize4bit(w, { quantType: "fp4", blocksize: 32 }),
      nested: bnb.quantize4bit(w, { compressStatistics: true }),
      bytes: bnb.quantizeBlockwise(w, { blocksize: 256 }),
      "nested bytes": bnb.quantizeBlockwise(w, { blocksize: 64, nested: true }),
      "3 bits": bnb.quantizeBlockwise(w, { code, blocksize: 128 }),
      "nested 3 bits": bnb.quantizeBlockwise(w, { code, blocksize: 32, nested: true }),
      offsets: bnb.quantizeAffine(w, { bits: 4, blocksize: 32 }),
      "half offsets": bnb.quantizeAffine(w.cast("float16"), { bits: 6 }),
      rows: bnb.Int8Weight.quantize(w).blockwise,
      "long blocks": bnb.quantize4bit(w, { blocksize: 4096 }),
    };
    for (const [name, of] of Object.entries(weights))
      for (const m of [9, 72]) say(name + " " + m, dx(m, dtype, of), dtype);
  }`;

/** None of it: other dtypes than one half, few rows by codes, rows that are no multiple of 16 bytes. */
const left = `${prelude}
  const w = dense(16, 64, "float32");
  say("float32", dx(16, "float32", dense(16, 64, "float32")), "float32");
  say("float32 by codes", dx(16, "float32", bnb.quantize4bit(w)), "float32");
  say("two dtypes", dx(16, "float16", dense(16, 64, "bfloat16")), "float16");
  say("x of another dtype", dw(16, 16, 64, "bfloat16", "float32", "float16"), "float32");
  say("few rows by codes", dx(8, "bfloat16", bnb.quantize4bit(w)), "bfloat16");
  say("ragged dy", dx(16, "bfloat16", dense(12, 64, "bfloat16")), "bfloat16");
  say("ragged w", dx(16, "bfloat16", dense(16, 60, "bfloat16")), "bfloat16");
  say("ragged codes", dx(16, "bfloat16", bnb.quantize4bit(dense(16, 60, "float32"))), "bfloat16");
  say("ragged dw", dw(16, 12, 64, "bfloat16"), "bfloat16");
  say("ragged x", dw(16, 16, 60, "bfloat16"), "bfloat16");`;

/** Each run of a recording reads what its tensors hold then; a weight is written out anew. */
const recorded = `${prelude}
  import { Recording } from "./src/recording.ts";
  const [m, n, k] = [16, 1088, 64];
  const [dy, x, w] = [dense(m, n, "bfloat16"), dense(m, k, "bfloat16"), dense(n, k, "bfloat16")];
  const q = bnb.quantize4bit(w);
  const step = () => [bnb.matmulBackward(dy, q), bnb.linearBackward(dy, w), bnb.linearBackwardWeight(dy, x)];
  let out;
  const recording = Recording.of(() => { out = step(); }, device);
  dy.write(dense(m, n, "float32").cast("bfloat16").read().map((v) => v ^ 0x8000));
  recording.run();
  for (const [i, eager] of step().entries()) console.log(Buffer.compare(
    Buffer.from(out[i].read().buffer), Buffer.from(eager.read().buffer)));`;

/** A weight of 512 × 1024 can't be written out in half precision where all but 900 kB of memory are taken. */
const crowded = `${prelude}
  const q = bnb.quantize4bit(dense(512, 1024, "float32")), bytes = bnb.quantizeBlockwise(dense(512, 1024, "float32"));
  const [dy, x] = [tensor(wave(16 * 512, 3), [16, 512], "bfloat16"), tensor(wave(16 * 1024, 3), [16, 1024], "bfloat16")];
  const w = numbersOf(q), wantX = matmul(dy.readFloat32(), transpose(w, 512, 1024), undefined, 16, 1024, 512);
  const wantY = matmul(x.readFloat32(), numbersOf(bytes), undefined, 16, 512, 1024);
  const spare = bnb.Tensor.zeros([200_000], { device }), taken = [];
  try {
    for (;;) taken.push(bnb.Tensor.zeros([25_000], { device }));
  } catch (error) {
    console.log(error.code);
  }
  spare.dispose();
  say("dx", relativeError(bnb.matmulBackward(dy, q).readFloat32(), wantX), "bfloat16");
  say("y", relativeError(bnb.matmul(x, bytes).readFloat32(), wantY), "bfloat16");`;

const near = (out: string) => {
  for (const line of out.trim().split("\n")) expect(line).toEndWith("is near");
};

describe.skipIf(!simulates).each([
  ["90", ["dense_hopper_f16_128", "dense_hopper_bf16_128"]],
  ["86", ["matmul_dense_half_64", "matmul_dense_half_128"]],
])("gradients on a GPU of capability %s", (capability, products) => {
  const on = (script: string, more: Record<string, string> = {}) => run(script, `capability=${capability}`, more);

  test("of halves run on tensor cores, by weights of any format", () => {
    const { out, err } = on(served, { BNB_PROFILE: "1" });
    expect(out.trim().split("\n").length).toBe(2 * (5 + 12 + 1 + 22));
    near(out);
    for (const kernel of [...products, "matmul_sum", "dequantize"]) expect(err).toContain(`\n${kernel} `);
    expect(err).not.toContain("matmul_backward");
  }, 120_000);

  test("of everything else run on the portable kernels", () => {
    const { out, err } = on(left, { BNB_PROFILE: "1" });
    near(out);
    expect(err).toMatch(/\nmatmul_backward_32 +10 /);
    expect(err).not.toContain("matmul_dense");
  }, 120_000);

  test("are read and written in place and in order", () => {
    const { out, err } = on(served, { BNB_SIM: "check", BNB_SIM_SEED: "5" });
    expect(err).toBe("");
    near(out);
  }, 240_000);

  test("take the portable kernels where a weight can't be written out, as products do", () => {
    const { out, err } = run(crowded, `capability=${capability},memory=20000000`, { BNB_PROFILE: "1" });
    expect(out).toBe("out_of_memory\ndx is near\ny is near\n");
    expect(err).toContain("\nmatmul_backward_32 ");
    expect(err).not.toContain("matmul_dense");
  }, 120_000);

  test("are recorded", () => {
    const { out, err } = on(recorded);
    expect(err).toBe("");
    expect(out).toBe("0\n0\n0\n");
  }, 120_000);
});
