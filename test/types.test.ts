// The tests of what tsc says and takes: errors that name the choices, and classes that are types.
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const folder = join(root, ".cache/types");

/** What tsc says of a program. */
function compiled(name: string, program: string): string {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${name}.ts`), program);
  const config = { extends: "../../tsconfig.json", include: [`${name}.ts`] };
  writeFileSync(join(folder, `${name}.json`), JSON.stringify(config));
  const { stdout } = Bun.spawnSync([join(root, "node_modules/.bin/tsc"), "-p", join(folder, `${name}.json`)]);
  return stdout.toString();
}

test("errors name the choices, not an alias", () => {
  const wrong = [
    ['quantize4bit(x, { quantType: "nf5" })', '"nf4"'],
    ['quantize4bit(x, { scales: "max" })', '"leastSquares"'],
    ['x.cast("float64")', '"float16"'],
    ['Tensor.zeros([2], { dtype: "f32" })', '"uint8"'],
    ['Tensor.zeros([2], { device: "tpu" })', '"mps"'],
    ['Tensor.from([2], [1], { dtype: "f32" })', '"uint8"'],
    ['Codebook.named("nf7")', '"dynamic_unsigned"'],
    ['Device.open("tpu")', '"mps"'],
    ['linear(x, x, { precision: "low" })', '"highest"'],
    ['new nn.Linear4bit(x, { computeDtype: "half" })', '"bfloat16"'],
  ] as const;
  const program = [
    'import { Codebook, Device, linear, nn, quantize4bit, Tensor } from "../../src/index.ts";',
    "const x = Tensor.zeros([2, 64]);",
    ...wrong.map(([line]) => `${line};`),
  ];
  const said = compiled("wrong", program.join("\n"));
  for (const [index, [line, choice]] of wrong.entries()) {
    const at = said.split(/^(?=\S)/m).find((error) => error.includes(`wrong.ts(${index + 3},`));
    expect([line, at?.includes(choice)]).toEqual([line, true]);
  }
});

test("optimizers, layers and handles are types", () => {
  const program = `
    import { nn, optim, Parameter, Tensor, type Weight } from "../../src/index.ts";
    const parameter = new Parameter(Tensor.zeros([2]));
    export let one: optim.AdamW8bit = new optim.AdamW8bit([parameter], { lr: 1e-3 });
    one = new optim.AdamW8bit([parameter]);
    export const all: [optim.SGD, optim.PagedLion32bit, optim.LAMB] = [
      new optim.SGD([parameter], { lr: 1 }), new optim.PagedLion32bit([parameter]), new optim.LAMB([parameter]),
    ];
    export const weight: Weight = Tensor.zeros([2, 2]);
    export const layer: nn.LinearLayer = new nn.Linear(weight);
    const nested: Tensor<"float32"> = Tensor.from([[1, 2], [3, 4]]);
    export const made: [Tensor<"int32">, Tensor<"bfloat16">] = [
      Tensor.from([1, 2], [2], { dtype: "int32" }), nested.cast("bfloat16"),
    ];
  `;
  expect(compiled("right", program)).toBe("");
});
