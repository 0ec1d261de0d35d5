// Tensors whose memory is a file: what they cost, what they show, and what becomes of them when the file changes.
import { afterAll, describe, expect, test } from "bun:test";
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  checkpoint,
  currentDevice,
  dequantizeBlockwise,
  Int8Weight,
  linear,
  Model,
  matmul,
  Parameter,
  QuantizedTensor,
  quantize4bit,
  Tensor,
} from "../src/index.ts";
import { SGD } from "../src/optim/index.ts";
import { testDevices } from "./cases.ts";
import { tiny } from "./model/fixtures.ts";
import { ggufFile, llamaGgufMetadata, llamaGgufTensors } from "./models.ts";
import { errorOf } from "./reference.ts";
import { settled } from "./settled.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-mapped-"));
afterAll(() => rmSync(scratch, { recursive: true }));
let files = 0;

/** A file of one tensor, whose data begins at `start` modulo 16; sparse where no values are given. */
function fileOf(dtype: string, shape: number[], values?: Float16Array, start = 0, bytes?: number): string {
  const path = join(scratch, `é${files++}.safetensors`);
  const length = bytes ?? values!.byteLength;
  const entry = JSON.stringify({ w: { dtype, shape, data_offsets: [0, length] } });
  const header = Buffer.from(entry.padEnd(Math.ceil(entry.length / 16) * 16 + 8 + start));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(header.length));
  const file = openSync(path, "w");
  writeSync(file, Buffer.concat([prefix, header]));
  if (values) writeSync(file, values);
  ftruncateSync(file, 8 + header.length + length);
  closeSync(file);
  return path;
}

const rows = 33;
const columns = 70;
const halves = Float16Array.from({ length: rows * columns }, (_, i) => Math.sin(i) * 3);

function load(path: string, device: string, mmap = true) {
  using opened = checkpoint.openCheckpoint(path);
  return checkpoint.loadWeight(opened, "w", device as "cpu", { mmap }) as Tensor<"float16">;
}

const dense = (w: QuantizedTensor | Int8Weight) => (w instanceof Int8Weight ? w.dequantize() : dequantizeBlockwise(w));

/** Whether a device takes a file's pages at 16 bytes, and at 8. */
const takes = (device: string) => ({ aligned: !device.startsWith("cuda"), unaligned: device === "cpu" });

describe.each(testDevices)("on %s", (kind, device) => {
  test("a weight is the file's own pages, where they are aligned for the device, and else a copy", () => {
    for (const [start, isMapped] of [
      [0, takes(kind).aligned],
      [8, takes(kind).unaligned],
      [1, false],
    ] as const) {
      const path = fileOf("F16", [rows, columns], halves, start);
      const before = device.counters;
      const w = load(path, kind);
      const { mapped, bytes } = device.counters;
      expect(mapped - before.mapped).toBe(isMapped ? halves.byteLength : 0);
      expect(bytes - before.bytes).toBe(isMapped ? 0 : halves.byteLength);
      expect(w.read()).toEqual(halves);
      using x = Tensor.from(new Float16Array(2 * columns).fill(1), [2, columns], { device });
      using y = linear(x, w);
      using copy = Tensor.from(halves, [rows, columns], { device });
      using want = linear(x, copy);
      expect(y.read()).toEqual(want.read());
      w.dispose();
      device.wait();
      expect(device.counters.mapped).toBe(before.mapped);
    }
  });

  test("without `mmap` it is a copy, whatever becomes of the file", () => {
    const path = fileOf("F16", [rows, columns], halves);
    const before = settled(device).mapped;
    using w = load(path, kind, false);
    expect(device.counters.mapped).toBe(before);
    truncateSync(path, 100);
    expect(w.read()).toEqual(halves);
  });

  test("what is written to it is its own, in every share of the memory, and never reaches the file", () => {
    const path = fileOf("F16", [rows, columns], halves);
    const onDisk = readFileSync(path);
    const ways: ((w: Tensor<"float16">) => void)[] = [
      (w) => w.write(new Float16Array(halves.length).fill(7)),
      (w) => {
        using p = new Parameter(w.reshape([rows, columns]));
        p.grad = Tensor.from(new Float16Array(halves.length).fill(1), [rows, columns], { device });
        using optimizer = new SGD([p], { lr: 1, momentum: 0.9 });
        optimizer.step();
      },
    ];
    if (takes(kind).aligned) ways.push((w) => w.view((values) => values.fill(7)));
    for (const write of ways) {
      using w = load(path, kind);
      using part = w.slice(8, 16); // 8 rows of 140 bytes are a multiple of 16
      using other = load(path, kind);
      write(w);
      expect(w.read()).not.toEqual(halves);
      expect(part.read()).toEqual(w.read().subarray(8 * columns, 16 * columns));
      expect(other.read()).toEqual(halves);
      expect(readFileSync(path)).toEqual(onDisk);
    }
  });

  test("every kind of quantised weight computes the same, mapped and copied", () => {
    const golden = join(import.meta.dir, "golden");
    for (const [file, name] of [
      ["nf4_double.safetensors", "layer.weight"],
      ["int8.safetensors", "layer.weight"],
    ] as const) {
      using opened = checkpoint.openCheckpoint(join(golden, file));
      using mapped = checkpoint.loadWeight(opened, name, device, { mmap: true });
      using copied = checkpoint.loadWeight(opened, name, device);
      if (!(mapped instanceof QuantizedTensor || mapped instanceof Int8Weight)) throw new Error(`${name} is dense`);
      using a = dense(mapped);
      using b = dense(copied as typeof mapped);
      expect(a.read()).toEqual(b.read());
    }
  });

  test("a GGUF file's floats are mapped in their own dtype, and copied in another or in another order", async () => {
    const path = join(scratch, "model.gguf");
    writeFileSync(path, ggufFile(llamaGgufMetadata, llamaGgufTensors));
    using model = await checkpoint.openGguf(path);
    const plain = model.tensors.filter(({ format }) => format === "F32" || format === "F16");
    expect(plain.length).toBeGreaterThan(2);
    for (const { name, format, byteLength } of plain) {
      const own = format === "F32" ? "float32" : "float16";
      for (const dtype of ["float32", "float16"] as const) {
        const before = settled(device).mapped;
        using w = checkpoint.loadGguf(model, name, { device, dtype, mmap: true }) as Tensor<typeof dtype>;
        const isPermuted = /[qk]_proj/.test(name); // llama.cpp has their rows in an order of its own
        const isMapped = takes(kind).aligned && dtype === own && !isPermuted;
        expect([name, dtype, device.counters.mapped - before]).toEqual([name, dtype, isMapped ? byteLength : 0]);
        using want = checkpoint.loadGguf(model, name, { device, dtype }) as Tensor<typeof dtype>;
        expect(w.read()).toEqual(want.read());
      }
    }
  });

  test("a model writes the same ids with its weights mapped, and lets the files go with them", async () => {
    const before = settled(device).mapped;
    const ids = async (mmap: boolean) => {
      using model = await Model.load(tiny("llama"), { device: kind as "cpu", precision: "highest", mmap });
      if (mmap && takes(kind).unaligned) expect(device.counters.mapped).toBeGreaterThan(before);
      return (await model.generateBatch([[1, 5, 9]], { maxTokens: 6, ignoreEos: true }))[0]!.ids;
    };
    expect(await ids(true)).toEqual(await ids(false));
    Bun.gc(true);
    device.wait();
    expect(device.counters.mapped).toBe(before);
  });
});

describe("on the CPU", () => {
  const cpu = "cpu";

  test("a file that is cut short makes an error of whatever reads the weight, and the process lives on", () => {
    const [large, wide] = [1024, 4096]; // enough for several threads, which must take the signal too
    const values = new Float16Array(large * wide).fill(0.5);
    const path = fileOf("F16", [large, wide], values);
    using w = load(path, cpu);
    using kept = Tensor.from(values, [large, wide], { device: cpu });
    using x = Tensor.from(new Float16Array(wide).fill(1), [1, wide], { device: cpu });
    truncateSync(path, 4096);
    const sentence = `${path} was cut short, or could not be read any more, while a tensor was mapped to it: load the tensor again`;
    for (const use of [() => linear(x, w), () => w.read(), () => matmul(x, w), () => w.to(cpu), () => quantize4bit(w)])
      expect(errorOf(use)).toEqual({ code: "invalid", message: expect.stringContaining(sentence) });
    using y = linear(x, kept);
    expect(y.read()[0]).toBe(wide / 2);
  });

  test("a bus error of another cause is what it was: Bun says that it crashes, and the process ends", () => {
    const [path, other] = [fileOf("F16", [rows, columns], halves), fileOf("F16", [rows, columns], halves)];
    const program = `
      import { truncateSync } from "node:fs";
      import { checkpoint } from ${JSON.stringify(join(import.meta.dir, "../src/index.ts"))};
      using opened = checkpoint.openCheckpoint(${JSON.stringify(path)});
      using w = checkpoint.loadWeight(opened, "w", "cpu", { mmap: true });
      const bytes = Bun.mmap(${JSON.stringify(other)}, { shared: false });
      truncateSync(${JSON.stringify(other)}, 0);
      console.log("before");
      console.log(bytes[100]);`;
    const env = { ...process.env, BUN_ENABLE_CRASH_REPORTING: "0" };
    const { exitCode, signalCode, stdout, stderr } = Bun.spawnSync([process.execPath, "-e", program], { env });
    expect(String(stdout)).toBe("before\n");
    expect(String(stderr)).toContain("Bun has crashed");
    expect(signalCode ?? exitCode).not.toBe(0);
  });

  test("a file that is gone or replaced under its name is still the one that was opened", () => {
    const path = fileOf("F16", [rows, columns], halves);
    using w = load(path, cpu);
    rmSync(path);
    expect(w.read()).toEqual(halves);
  });

  test("a file that was closed is an error, and a weight that came of it before is none of its business", () => {
    const opened = checkpoint.openCheckpoint(fileOf("F16", [rows, columns], halves));
    using w = checkpoint.loadWeight(opened, "w", cpu, { mmap: true });
    opened.close();
    expect((w as Tensor).read()).toEqual(halves);
    expect(() => checkpoint.loadWeight(opened, "w", cpu, { mmap: true })).toThrow(
      /was closed; open it again to read w/,
    );
  });

  test("a file that was cut short before is an error, mapped or not", () => {
    for (const mmap of [true, false]) {
      const path = fileOf("F16", [rows, columns], halves);
      using opened = checkpoint.openCheckpoint(path);
      truncateSync(path, 4000);
      expect(errorOf(() => checkpoint.loadWeight(opened, "w", cpu, { mmap })).message).toContain(
        "it was replaced or cut short while it was open, so open it again",
      );
    }
  });

  test("1 GB is mapped in no memory, and only what is used of it becomes resident", async () => {
    const bytes = 2 ** 30;
    const path = fileOf("F16", [2 ** 17, 2 ** 12], undefined, 0, bytes);
    const program = `
      import { checkpoint, Device, linear, Tensor } from ${JSON.stringify(join(import.meta.dir, "../src/index.ts"))};
      const cpu = Device.open("cpu");
      using opened = checkpoint.openCheckpoint(${JSON.stringify(path)});
      const start = process.memoryUsage.rss();
      using w = checkpoint.loadWeight(opened, "w", "cpu", { mmap: true });
      const { bytes, mapped } = cpu.counters;
      const loaded = process.memoryUsage.rss() - start;
      using rows = w.slice(0, 4096);
      using x = Tensor.from(new Float16Array(4096).fill(1), [1, 4096], { device: "cpu" });
      using y = linear(x, rows);
      console.log(JSON.stringify({ bytes, mapped, loaded, used: process.memoryUsage.rss() - start, y: y.read()[0] }));`;
    const child = Bun.spawn([process.execPath, "-e", program], { stdout: "pipe", stderr: "inherit" });
    const { bytes: held, mapped, loaded, used, y } = JSON.parse(await new Response(child.stdout).text());
    expect({ held, mapped, y }).toEqual({ held: 0, mapped: bytes, y: 0 });
    expect(loaded).toBeLessThan(20e6);
    expect(used).toBeLessThan(150e6); // of 4096 rows, 34 MB
  });
});

test("options are checked", () => {
  using opened = checkpoint.openCheckpoint(fileOf("F16", [rows, columns], halves));
  const message = (mmap: unknown) =>
    errorOf(() => checkpoint.loadWeight(opened, "w", currentDevice(), { mmap } as never)).message;
  expect(message("yes")).toBe('loadWeight: mmap is "yes", expected true or false.');
});
