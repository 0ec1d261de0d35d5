// The command line as its users meet it: exit status, streams, JSON, interruption.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { openCheckpoint, shardBytesDefault } from "../src/checkpoint/checkpoint.ts";
import { writeSafetensors } from "../src/checkpoint/writer.ts";
import { serveCommand } from "../src/cli/serve.ts";
import { bytes } from "../src/cli/terminal.ts";
import { llamaDirectory, weights } from "./models.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-cli-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const main = join(import.meta.dir, "../src/cli/main.ts");
const model = join(scratch, "llama");
await llamaDirectory(model);
let folders = 0;
const fresh = () => join(scratch, `out-${folders++}`);

function run(...args: string[]) {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, main, ...args]);
  return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
}

describe("commands", () => {
  test("quantize, verify, inspect, dequantize work together", () => {
    const output = fresh();
    const made = run("quantize", model, "-o", output, "--double-quant", "--skip", "down_proj", "--skip", "up_proj");
    expect(made.status).toBe(0);
    expect(made.out).toMatch(/5 weights changed, 7 tensors kept, 2 other files/);
    expect(made.err).toMatch(/Quantising: 100% \(.* of .*\/s\)/);
    expect(run("verify", output, "--quiet")).toEqual({ status: 0, out: "", err: "" });
    const inspected = run("inspect", output, "--error-against", model, "--quiet");
    expect(inspected.out).toMatch(/^tensor +shape +format +bits\/weight +bytes +rms error +largest error\n/);
    expect(inspected.out).toMatch(/q_proj.weight +64 × 64 +nf4\+dq +\d\.\d\d +.*%/);
    expect(run("dequantize", output, "-o", fresh(), "--dtype", "float16").status).toBe(0);
  });

  test("sizes are powers of 1000, and of 1024 with an i", () => {
    const output = fresh();
    expect(run("quantize", model, "-o", output, "--quiet").status).toBe(0);
    using whole = openCheckpoint(output);
    const total = [...whole.tensors.values()].reduce((sum, { bytes }) => sum + bytes.length, 0);
    const shards = (limit: string) => {
      const folder = fresh();
      expect(run("quantize", model, "-o", folder, "--quiet", "--max-shard-size", limit).status).toBe(0);
      return readdirSync(folder).filter((name) => name.endsWith(".safetensors")).length;
    };
    const limit = ((1.05 * total) / 2 ** 20).toFixed(6); // states of weights are planned for at their longest
    expect([shards(`${limit}MiB`), shards(`${limit}MB`)]).toEqual([1, 2]);
    expect(shards("1KB")).toBe(12); // each tensor or weight by itself, and no file without one
    expect(shardBytesDefault).toBe(50e9); // as in transformers
    expect([999, 1e9, 2 ** 30, 5e12].map(bytes)).toEqual(["999 B", "1.00 GB", "1.07 GB", "5.00 TB"]);
  });

  test("a file is filled to the last byte that its limit allows", async () => {
    const [even, quantised] = [fresh(), fresh()];
    const norms = Object.fromEntries(Array.from({ length: 5 }, (_, i) => [`norm${i}.weight`, [64]]));
    await llamaDirectory(even, { "layers.0.fc.weight": [4, 16], ...norms });
    expect(run("quantize", even, "-o", quantised, "--quiet").status).toBe(0);
    const shards = (limit: string) => {
      const folder = fresh();
      const options = ["--quiet", "--dtype", "float32", "--max-shard-size", limit];
      expect(run("dequantize", quantised, "-o", folder, ...options).status).toBe(0);
      return readdirSync(folder).filter((name) => name.endsWith(".safetensors")).length;
    };
    // Six tensors of 256 bytes.
    expect(["0.767KB", "0.768KB", "1.535KB", "1.536KB"].map(shards)).toEqual([3, 2, 2, 1]);
  });

  test("quantize --scales least-squares writes weights that are closer to the original", () => {
    const errors = ["absmax", "least-squares"].map((scales) => {
      const output = fresh();
      expect(run("quantize", model, "-o", output, "--scales", scales, "--quiet").status).toBe(0);
      expect(run("verify", output, "--quiet").status).toBe(0);
      const reports: { format: string; error?: { relative: number } }[] = JSON.parse(
        run("inspect", output, "--error-against", model, "--json").out,
      );
      return reports.filter(({ format }) => format === "nf4").map(({ error }) => error!.relative);
    });
    const [absmax, leastSquares] = errors as [number[], number[]];
    expect(leastSquares.length).toBe(7);
    for (const [i, error] of leastSquares.entries()) expect(error).toBeLessThan(0.99 * absmax[i]!);
  });

  test("--json prints one JSON value on standard output", () => {
    const output = fresh();
    expect(JSON.parse(run("quantize", model, "-o", output, "--json").out)).toMatchObject({ output, weights: 7 });
    expect(JSON.parse(run("inspect", output, "--json").out).length).toBe(12);
    expect(JSON.parse(run("verify", output, "--json").out)).toMatchObject({ problems: [] });
    const refused = run("quantize", output, "-o", fresh(), "--json");
    expect(JSON.parse(refused.out)).toMatchObject({ error: { code: "invalid" } });
    expect(refused.status).toBe(1);
  });

  test("a table has one row for the same tensor of every layer, unless all are asked for", async () => {
    const folder = fresh();
    const shapes = { "layers.0.fc.weight": [4, 4], "layers.1.fc.weight": [4, 4], "layers.1.norm2.weight": [4] };
    await llamaDirectory(folder, shapes);
    expect(run("inspect", folder).out).toMatch(/layers\.\*\.fc\.weight \(2×\)/);
    expect(run("inspect", folder, "--all").out).toMatch(/layers\.1\.fc\.weight /);
  });
});

describe("exit status", () => {
  test.each([
    [0, ["--help"], /Commands:/],
    [0, ["quantize", "--help"], /Examples:/],
    [0, ["--version"], /^\d+\.\d+\.\d+\n$/],
    [2, [], /Usage:/],
    [2, ["quantise"], /unknown command 'quantise'.*\n.*Did you mean quantize/],
    [2, ["quantize", model, "-o", "x", "--quant-type", "q4"], /Allowed choices are nf4, fp4, int8/],
    [2, ["quantize", model, "-o", "x", "--blocksize", "63"], /Expected 16, 32, 64/],
    [2, ["quantize", model, "-o", "x", "--scales", "best"], /Allowed choices are absmax, least-squares/],
    [1, ["quantize", model, "-o", "x", "--quant-type", "int8", "--scales", "least-squares"], /int8 weights have one/],
    [2, ["quantize", model, "-o", "x", "--max-shard-size", "big"], /Expected a size such as/],
    [1, ["verify", "/does/not/exist"], /does not exist/],
    [1, ["convert", "/does/not/exist.gguf", "-o", "x"], /ENOENT/],
  ] as [number, string[], RegExp][])("%p for %p", (status, args, message) => {
    const ran = run(...args);
    expect(ran.status).toBe(status);
    expect(ran.out + ran.err).toMatch(message);
    expect(ran.err).not.toMatch(/\n\s+at /);
  });

  test("3 for what is not supported, 1 for damage", async () => {
    const folder = fresh();
    await llamaDirectory(folder, { "h.0.c_attn.weight": [64, 192], "h.0.c_attn.bias": [192] });
    await Bun.write(join(folder, "config.json"), '{"model_type": "unheard-of"}');
    expect(run("quantize", folder, "-o", fresh()).status).toBe(3);
    truncateSync(join(folder, "model.safetensors"), 1000);
    const damaged = run("verify", folder);
    expect(damaged.status).toBe(1);
    expect(damaged.err).toMatch(/model.safetensors.*damaged or incomplete/);
  });
});

test.each([
  ["--port", 0, 65_535],
  ["--slots", 1, 256],
  ["--context", 16, 2 ** 24],
  ["--queue", 0, 1e6],
  ["--timeout", 1, 86_400],
])("serve %s takes whole numbers from %d to %d", (name, least, most) => {
  const { parseArg } = serveCommand().options.find(({ long }) => long === name)!;
  const read = parseArg as (text: string) => unknown;
  expect([read(`${least}`), read(`${most}`)]).toEqual([least, most]);
  for (const text of [`${least - 1}`, `${most + 1}`, `${least}.5`, "x"])
    expect(() => read(text)).toThrow(`Expected a whole number from ${least} to ${most}.`);
});

test.each([
  ["1GB", 1e9],
  ["2.5g", 2.5e9],
  ["1000 GB", 1e12],
])("serve --memory %s is %d bytes", (text, bytes) => {
  const { parseArg } = serveCommand().options.find(({ long }) => long === "--memory")!;
  const read = parseArg as (text: string) => unknown;
  expect(read(text)).toBe(bytes);
  for (const wrong of ["GB", "1TB", "1GBx", "-1GB", "1.GB"])
    expect(() => read(wrong)).toThrow("Expected a size such as 8GB.");
});

describe("where and what is written", () => {
  test("without --output, here, under the input's name and the format", () => {
    const here = fresh();
    mkdirSync(here);
    const ran = Bun.spawnSync([process.execPath, main, "quantize", model, "--quant-type", "fp4"], { cwd: here });
    expect([ran.exitCode, readdirSync(here)]).toEqual([0, [`${basename(model)}-fp4`]]);
  });

  test("--best: blocks of 32, nested scales of least squares", () => {
    const output = fresh();
    expect(run("quantize", model, "-o", output, "--best").status).toBe(0);
    expect(run("inspect", output).out).toMatch(/nf4\/32\+dq/);
  });

  test.each(["af4", "nf2", "nf3", "nf5", "nf6", "nf7", "dynamic"])(
    "%s: sound, said to be ours, and not transformers'",
    (type) => {
      const output = fresh();
      const ran = run("quantize", model, "-o", output, "--quant-type", type);
      expect([ran.status, ran.err]).toEqual([0, expect.any(String)]);
      expect(ran.out).toMatch(new RegExp(`transformers and bitsandbytes have no format ${type}`));
      expect(run("verify", output)).toMatchObject({
        status: 0,
        out: expect.stringMatching(/is sound: .* 7 weights as blockwise/),
      });
      const config = JSON.parse(readFileSync(join(output, "config.json"), "utf8"));
      expect(config.quantization_config).toEqual({ blocksize: 64, quant_method: "bunsandbytes", quant_type: type });
    },
  );

  test("--json says of each tensor that stays why; a model of which much stays says what helps", () => {
    const output = fresh();
    const ran = run("quantize", model, "-o", output, "--json");
    const { stays, notes, kept } = JSON.parse(ran.out);
    expect(Object.keys(stays).length).toBe(kept);
    expect(stays["lm_head.weight"]).toBe("the output head, which transformers keeps");
    expect(notes).toEqual([]);
    const large = fresh();
    mkdirSync(large);
    return llamaDirectory(large, { "model.embed_tokens.weight": [960, 64], "model.layers.0.fc.weight": [64, 64] }).then(
      () => {
        expect(run("quantize", large, "-o", fresh()).out).toMatch(/shrank by 1\.\d only: \d+ % .*--dtype bfloat16/);
      },
    );
  });
});

describe("a write that does not get to its end", () => {
  const big = join(scratch, "big.safetensors");
  beforeAll(async () => {
    const bytes = weights(1024 * 1024);
    const tensors = Array.from({ length: 24 }, (_, layer) => {
      return { name: `layers.${layer}.fc.weight`, dtype: "F32" as const, shape: [1024, 1024], bytes };
    });
    await writeSafetensors(big, tensors);
  });

  test("interrupted, leaves nothing, and ends as interrupts do", async () => {
    const before = readdirSync(scratch).sort();
    const child = Bun.spawn([process.execPath, main, "quantize", big, "-o", fresh()], { stderr: "pipe" });
    await child.stderr.getReader().read();
    child.kill("SIGINT");
    await child.exited;
    expect(child.signalCode).toBe("SIGINT");
    expect(readdirSync(scratch).sort()).toEqual(before);
  });

  test("for want of space, leaves nothing, and names the file", () => {
    const before = readdirSync(scratch).sort();
    // A limit on the size of files stands for a full disk: 1 MB, and an error instead of a signal.
    const limited = `trap '' XFSZ; ulimit -f 1024; exec "$@"`;
    const args = [process.execPath, main, "quantize", big, "-o", fresh()];
    const { exitCode, stderr } = Bun.spawnSync(["bash", "-c", limited, "bash", ...args]);
    expect(stderr.toString()).toMatch(/EFBIG.*model.safetensors\)\n$/);
    expect(exitCode).toBe(1);
    expect(readdirSync(scratch).sort()).toEqual(before);
  });
});
