// What holds on a device that launches nothing and shares nothing: `bun test ./test/drivers/null.ts` with its
// environment.
import { describe, expect, test } from "bun:test";
import { add } from "../../src/elementwise.ts";
import { BnbError, Device, type DeviceKind, matmul4bit, quantize4bit, Tensor } from "../../src/index.ts";
import { wave } from "../cases.ts";

/** A device, or why there is none: not through Device.open, which knows the kinds that users have. */
const find = (name: string): Device | string => Device.find(name as DeviceKind);
const [first, second] = [find("null"), find("null:1")] as [Device, Device];

const errorOf = (action: () => unknown): BnbError => {
  try {
    action();
  } catch (error) {
    if (error instanceof BnbError) return error;
    throw error;
  }
  throw new Error("nothing was thrown");
};

describe("several GPUs of a kind", () => {
  test("each is a device with a name of its own; the first is the kind's", () => {
    expect([String(first), String(second)]).toEqual(["null", "null:1"]);
    expect(find("null:0")).toBe(first);
    expect(find("null:1")).toBe(second);
    expect(Device.open()).toBe(first); // BNB_DEVICE
  });

  test("one too many is absent, and a place that is none is refused", () => {
    expect(find("null:2")).toBe('null:2 is absent: there are two; use "null" or "null:1"');
    for (const name of ["null:", "null:x", "null:-1", "null:1x", "null:1000", "nul", ":0", ""])
      expect(find(name)).toStartWith(`device_open: kind is "${name}", expected`);
    expect(errorOf(() => Device.open("cpu:1")).message).toContain(
      'cpu:1 is absent: all processors are one device, "cpu"',
    );
  });

  test("memory goes from one to another, by way of the host, and only so", () => {
    const values = wave(3 * (1 << 19) + 7); // more than a piece
    using x = Tensor.from(values, [values.length], { device: first });
    using there = x.to(second);
    using back = there.to(Device.open("cpu"));
    expect(back.read()).toEqual(values);
    expect(errorOf(() => add(x, there)).message).toContain("is on null, expected it on null:1: move it there first");
  });

  test("each counts its own", () => {
    const before = second.counters.operations;
    using x = Tensor.from([1, 2], [2], { device: first });
    add(x, x).dispose();
    expect(second.counters.operations).toBe(before);
  });
});

describe("falling back", () => {
  test("is counted and named, with the reason", () => {
    const { fallbacks } = first.counters;
    using x = Tensor.from(wave(128), [2, 64], { device: first });
    using w = quantize4bit(x);
    using y = matmul4bit(x, w);
    expect(y.read().length).toBe(4);
    expect(first.counters.fallbacks).toBe(fallbacks + 2);
    expect(first.fallbacks).toContainEqual(
      expect.stringMatching(/^matmul: the null driver launches nothing \(\d+ times\)$/),
    );
  });

  test("is an error under BNB_STRICT=1", () => {
    const script = `import { add, Tensor } from "./src/index.ts"; using x = Tensor.from([1]); add(x, x);`;
    const { exitCode, stderr } = Bun.spawnSync([process.execPath, "-e", script], {
      cwd: `${import.meta.dir}/../..`,
      env: { ...process.env, BNB_STRICT: "1" },
      stderr: "pipe",
    });
    expect(exitCode).toBe(1);
    expect(stderr.toString()).toContain(
      "add: null has no kernel for this case (the null driver launches nothing), and BNB_STRICT=1 forbids the CPU's",
    );
  });
});
