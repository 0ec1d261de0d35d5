// The commands that write a model as something else: with an adapter, for MLX, for Core ML; and what they refuse.
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../src/checkpoint/checkpoint.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { tiny } from "./model/fixtures.ts";
import { llamaDirectory, weights } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-cli-written-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const main = join(import.meta.dir, "../src/cli/main.ts");
const model = join(scratch, "llama");
await llamaDirectory(model);

function run(...args: string[]) {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, main, ...args], { cwd: scratch });
  return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
}

test("merge, under its default name, and quantised where that is asked for", async () => {
  const adapter = join(scratch, "adapter");
  mkdirSync(adapter);
  const module = "base_model.model.model.layers.0.mlp.up_proj";
  await writeSafetensors(join(adapter, "adapter_model.safetensors"), [
    { name: `${module}.lora_A.weight`, dtype: "F32", shape: [4, 64], bytes: weights(4 * 64, 1) },
    { name: `${module}.lora_B.weight`, dtype: "F32", shape: [128, 4], bytes: weights(128 * 4, 2) },
  ]);
  writeFileSync(join(adapter, "adapter_config.json"), '{"peft_type": "LORA", "r": 4, "lora_alpha": 8}');
  const merged = run("merge", model, adapter);
  expect(merged.status).toBe(0);
  expect(merged.out).toMatch(/^Wrote .*llama-merged in .*\n.*\n {2}1 weight changed, 11 tensors kept, /);
  using plain = openCheckpoint(join(scratch, "llama-merged"));
  expect(plain.quantized.size).toBe(0);
  expect(run("merge", model, adapter, "-o", "small", "--quant-type", "nf4", "--quiet").status).toBe(0);
  using small = openCheckpoint(join(scratch, "small"));
  expect(small.quantized.size).toBe(7);
  expect(run("merge", model, model, "-o", "none")).toMatchObject({
    status: 1,
    err: expect.stringContaining("has no adapter_config.json"),
  });
});

test("quantize --format mlx takes MLX's options, and no other", () => {
  const made = run("quantize", model, "--format", "mlx", "--bits", "8", "--blocksize", "32", "--json");
  const { output, weights: changed } = JSON.parse(made.out);
  expect([output, changed]).toEqual([expect.stringMatching(/llama-mlx-8bit$/), expect.any(Number)]);
  const { quantization } = JSON.parse(readFileSync(join(scratch, "llama-mlx-8bit/config.json"), "utf8"));
  expect(quantization).toMatchObject({ bits: 8, group_size: 32 });
  for (const more of [["--double-quant"], ["--scales", "least-squares"], ["--quant-type", "fp4"], ["--best"]])
    expect(run("quantize", model, "-o", "none", "--format", "mlx", ...more)).toMatchObject({
      status: 1,
      err: expect.stringContaining("MLX's format has --bits and --blocksize only"),
    });
});

test("export writes an .mlpackage of an encoder, under its default name, and refuses a decoder", () => {
  expect(run("export", tiny("bert"), "--tokens", "16", "--quiet")).toEqual({ status: 0, out: "", err: "" });
  expect(readdirSync(join(scratch, "bert.mlpackage")).sort()).toEqual(["Data", "Manifest.json"]);
  const decoder = run("export", tiny("llama"), "-o", "llama.mlpackage");
  expect(decoder.status).toBe(3);
  expect(decoder.err).toContain("llama");
});

test("verify tells of problems in words or as JSON, and by its exit status", async () => {
  const sound = run("verify", model, "--json", "--quiet");
  expect([sound.status, JSON.parse(sound.out)]).toMatchObject([0, { tensors: 12, problems: [] }]);
  const file = join(scratch, "broken.safetensors");
  await writeSafetensors(file, [{ name: "broken", dtype: "F32", shape: [2], bytes: Float32Array.of(1, Number.NaN) }]);
  const json = run("verify", file, "--json", "--quiet");
  expect([json.status, JSON.parse(json.out)]).toEqual([1, expect.objectContaining({ tensors: 1 })]);
  const [problem] = JSON.parse(json.out).problems;
  expect(problem).toMatch(/broken.*NaN/);
  expect(run("verify", file, "--quiet")).toEqual({ status: 1, out: "", err: `${problem}\n` });
});
