// The tests of products with a weight of any kind: each is the product of its own kind, to the bit.
import { expect, test } from "bun:test";
import {
  createLinearMap,
  embedding,
  Int8Weight,
  linear,
  linearBackward,
  matmul,
  matmul4bit,
  matmul4bitBackward,
  matmul8bitFp,
  matmulBackward,
  matmulBlockwise,
  matmulBlockwiseBackward,
  nn,
  quantize4bit,
  quantizeBlockwise,
  Tensor,
  type Weight,
} from "../src/index.ts";
import { testDevices, wave } from "./cases.ts";
import { errorOf } from "./reference.ts";

const [n, k] = [33, 64];

test.each(testDevices)("matmul and its gradient take every kind of weight, on %s", (_, device) => {
  using dense = Tensor.from(wave(n * k), [n, k], { device });
  using x = Tensor.from(wave(3 * k, 2), [3, k], { device });
  using dy = Tensor.from(wave(3 * n, 3), [3, n], { device });
  using bias = Tensor.from(wave(n, 4), [n], { device });
  const four = quantize4bit(dense);
  const three = quantizeBlockwise(dense, { code: createLinearMap(true, 3) });
  const eight = Int8Weight.quantize(dense);
  const cases: [Weight, Tensor, Tensor][] = [
    [dense, linear(x, dense, { bias }), linearBackward(dy, dense)],
    [four, matmul4bit(x, four, { bias }), matmul4bitBackward(dy, four)],
    [three, matmulBlockwise(x, three, { bias }), matmulBlockwiseBackward(dy, three)],
    [eight, matmul8bitFp(x, eight, { bias }), matmulBlockwiseBackward(dy, eight.blockwise)],
  ];
  for (const [w, y, dx] of cases) {
    expect(matmul(x, w, { bias }).read()).toEqual(y.read() as Float32Array);
    expect(matmulBackward(dy, w).read()).toEqual(dx.read() as Float32Array);
    if ("matmul" in w) expect(w.matmul(x, { bias }).read()).toEqual(y.read() as Float32Array);
    using layer = new nn.Linear(w, { bias: bias.to(device) });
    expect(layer.forward(x).read()).toEqual(y.read() as Float32Array);
    expect(layer.backward(dy).read()).toEqual(dx.read() as Float32Array);
  }
});

test("an embedding takes what loadWeight gives, a weight in int8 too", () => {
  using dense = Tensor.from(wave(n * k), [n, k]);
  const eight = Int8Weight.quantize(dense);
  using indices = Tensor.from([5, 32], [2], { dtype: "int32" });
  const rows = eight.dequantize().readFloat32();
  const want = [5, 32].flatMap((row) => [...rows.subarray(row * k, (row + 1) * k)]);
  expect([...embedding(indices, eight).readFloat32()]).toEqual(want);
});

test("what is no weight is refused, and every kind is named", () => {
  using x = Tensor.zeros([1, k]);
  for (const wrong of [{}, null, [1], structuredClone({ shape: [n, k] })])
    expect(errorOf(() => matmul(x, wrong as unknown as Tensor)).message).toMatch(
      /^matmul: w is .+, expected a Tensor, a QuantizedTensor or an Int8Weight\.$/,
    );
});
