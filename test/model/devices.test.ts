// A model whose layers stand on several devices writes what it writes on one; also where each has memory of its own.
import { expect, test } from "bun:test";
import { statSync } from "node:fs";
import { resolve } from "node:path";
import { kernelsFile } from "../../scripts/ptx.ts";
import { Device, Model } from "../../src/index.ts";
import { testDevices } from "../cases.ts";
import { fakeCuda } from "../cuda/host/build.ts";
import { driverEnvironment } from "../drivers/build.ts";
import { difference, expectedOf, rejection, tiny } from "./fixtures.ts";

const cpu = Device.open("cpu");

test.each(testDevices)("layers on %s and on the CPU", async (_, device) => {
  for (const name of ["llama", "gemma3", "qwen2_moe"]) {
    const { ids, largest } = expectedOf(name);
    using whole = await Model.load(tiny(name), { device, precision: "highest" });
    using split = await Model.load(tiny(name), { devices: [device, cpu], precision: "highest" });
    expect(split.devices).toEqual([...new Set([device, cpu])]);
    using a = whole.session({ cacheDtype: "float32", capacity: 64 });
    using b = split.session({ cacheDtype: "float32", capacity: 64 });
    expect(difference(b.forward(ids[0]!), a.forward(ids[0]!))).toBeLessThan(1e-5 * largest);
    b.rewind(5);
    b.forward(ids[0]!.slice(5, 9));
    a.rewind(9);
    // What the one remembers the other goes on from.
    using c = whole.session({ cacheDtype: "float32" });
    c.restore(b.save());
    expect(c.tokens).toEqual(ids[0]!.slice(0, 9));
    expect(difference(c.forward([7]), a.forward([7]))).toBeLessThan(1e-5 * largest);
    b.restore(a.save());
    expect(difference(b.forward([8]), a.forward([8]))).toBeLessThan(1e-5 * largest);
  }
});

test.each(testDevices)("an encoder's layers on the CPU and on %s", async (_, device) => {
  for (const name of ["mpnet", "modernbert"]) {
    const { ids } = expectedOf(name);
    using whole = await Model.load(tiny(name), { device, precision: "highest" });
    using split = await Model.load(tiny(name), { devices: [cpu, device], precision: "highest" });
    const [a, b] = [await whole.embed(ids), await split.embed(ids)];
    for (const [i, vector] of a.entries()) expect(difference(b[i]!, vector)).toBeLessThan(1e-5);
  }
});

test("layers go where they are told; the rest is shared evenly", async () => {
  const placed = async (...devices: NonNullable<Parameters<typeof Model.load>[1]>["devices"] & object) => {
    using model = await Model.load(tiny("modernbert"), { devices }); // three layers
    return model.devices.length;
  };
  expect(await placed("cpu", { device: "cpu", layers: 2 })).toBe(1);
  expect(await placed("cpu", cpu)).toBe(1);
  const refused = async (...devices: unknown[]) =>
    (await rejection(Model.load(tiny("llama"), { devices: devices as never }))).message;
  expect(await refused()).toContain("devices is [], expected an array of at least one device");
  expect(await refused("cpu", "cpu", "cpu")).toContain("0 layers and 3 devices for the rest, and the model has 2");
  expect(await refused({ device: "cpu", layers: 1 })).toContain("devices name 1 layers, and the model has 2");
  expect(await refused({ device: "cpu", layers: 3 }, "cpu")).toContain("name 3 layers and 1 devices for the rest");
  expect(await refused({ device: "cpu", layers: 0.5 }, "cpu")).toContain("devices[0].layers is 0.5");
  expect(await refused("tpu")).toContain('devices[0] is "tpu"');
  expect(await refused("cpu", null)).toContain("devices[1] is null");
  expect((await rejection(Model.load(tiny("llama"), { device: cpu, devices: [cpu] }))).message).toContain("both given");
});

const root = resolve(import.meta.dir, "../..");

/** Logits of the tiny llama, over devices that an expression names in another process. */
function logitsOn(devices: string, env: Record<string, string>): { got: number[]; err: string } {
  const script = `
    import { Device, Model } from "./src/index.ts";
    const devices = ${devices};
    using model = await Model.load("test/fixtures/models/llama", { devices, precision: "highest" });
    using session = model.session({ cacheDtype: "float32" });
    const logits = session.forward([1, 5, 9, 33]);
    if (devices.some((device) => device.kind !== "cpu" && device.counters.bytes < 10_000)) throw new Error("no layers");
    console.log(JSON.stringify([...logits, ...session.forward([7])]));`;
  const { stdout, stderr } = Bun.spawnSync([process.execPath, "-e", script], {
    cwd: root,
    env: { ...process.env, ...env },
  });
  return { got: JSON.parse(stdout.toString() || "[]"), err: stderr.toString() };
}

async function onOne(): Promise<{ want: number[]; largest: number }> {
  using model = await Model.load(tiny("llama"), { device: cpu, precision: "highest" });
  using session = model.session({ cacheDtype: "float32" });
  const want = [...session.forward([1, 5, 9, 33]), ...session.forward([7])];
  return { want, largest: want.reduce((most, value) => Math.max(most, Math.abs(value)), 0) };
}

const simulates = process.platform === "linux" && process.arch === "x64";

test.skipIf(!simulates)(
  "a GPU with memory of its own before the CPU, and behind it",
  async () => {
    const { want, largest } = await onOne();
    const orders = ["[Device.open(), Device.open('cpu')]", "[Device.open('cpu'), Device.open()]"];
    for (const devices of orders) {
      const { got, err } = logitsOn(devices, driverEnvironment("discrete"));
      expect(err).toBe("");
      expect(difference(got, want)).toBeLessThan(1e-5 * largest);
    }
  },
  120_000,
);

test.skipIf(!simulates)(
  "as many layers as there is room for on each of two GPUs, and the CPU takes the rest",
  async () => {
    const { want, largest } = await onOne();
    const script = `
      import { dlopen } from "bun:ffi";
      import { Model } from "./src/index.ts";
      const { fake_drivers_set } = dlopen(process.env.BNB_DRIVER_LIBRARY, {
        fake_drivers_set: { args: ["cstring", "i32"], returns: "void" },
      }).symbols;
      for (const room of [1000, 20_000, 40_000, 10_000_000]) {
        fake_drivers_set(Buffer.from("room\\0"), room);
        using model = await Model.load("test/fixtures/models/llama", { devices: "auto", precision: "highest" });
        const devices = model.devices.map(String).join();
        if (room === 20_000) { // so little that one layer is all that it is good for
          console.log(JSON.stringify({ devices }));
          continue;
        }
        using session = model.session({ cacheDtype: "float32", capacity: 16 });
        const logits = [...session.forward([1, 5, 9, 33]), ...session.forward([7])];
        console.log(JSON.stringify({ devices, logits }));
      }`;
    const { stdout, stderr } = Bun.spawnSync([process.execPath, "-e", script], {
      cwd: root,
      env: { ...process.env, ...driverEnvironment("discrete") },
    });
    expect(stderr.toString()).toBe("");
    const lines = stdout.toString().trim().split("\n");
    const found = lines.map((line): { devices: string; logits?: number[] } => JSON.parse(line));
    for (const { logits } of found) if (logits) expect(difference(logits, want)).toBeLessThan(1e-5 * largest);
    expect(found.map(({ devices }) => devices)).toEqual(["cpu", "discrete,cpu", "discrete,discrete:1", "discrete"]);
  },
  120_000,
);

/** As in test/cuda/devices.test.ts: only `bun run test:cuda` has setup make kernels for CUDA. */
const hasKernels = statSync(kernelsFile).size > 0;

test.skipIf(!simulates || !hasKernels)(
  "two NVIDIA GPUs",
  async () => {
    const { want, largest } = await onOne();
    const fake = { BNB_DEVICE: "", BNB_STRICT: "1", BNB_CUDA_LIBRARY: fakeCuda(), BNB_FAKE_CUDA: "devices=2" };
    const { got, err } = logitsOn("['cuda:0', 'cuda:1'].map((name) => Device.open(name))", {
      ...fake,
      BNB_SIM_BUN: process.execPath,
    });
    expect(err).toBe("");
    expect(difference(got, want)).toBeLessThan(1e-5 * largest);
  },
  300_000,
);
