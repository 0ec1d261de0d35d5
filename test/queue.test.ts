// Work of the CPU's that is queued: the event loop turns meanwhile, and order, memory and failures are as in the call.
import { expect, test } from "bun:test";
import { attention } from "../src/attention.ts";
import { concat, Device, embedding, embeddingBackward, matmul4bit, quantize4bit, scale, Tensor } from "../src/index.ts";
import { native } from "../src/native.ts";
import { Recording } from "../src/recording.ts";
import { wave } from "./cases.ts";
import { errorOf } from "./reference.ts";
import { settled } from "./settled.ts";

const device = Device.open("cpu");
const tensor = (values: Float32Array, shape: number[]) => Tensor.from(values, shape, { device });
const side = 512;

/** A product that is queued, of 134 million multiplications. */
const [x, w] = [tensor(wave(side * side, 1), [side, side]), tensor(wave(side * side, 2), [side, side])];
const product = () => matmul4bit(x, q);
const q = quantize4bit(w);

/** Whether the queue has something to do. */
const isBusy = () => !native.bnb_device_idle(device.pointer);

/** Asks until the queue is seen busy: a loaded machine may finish one call's work before it comes back here. */
const untilBusy = (ask: () => void) => {
  for (let asked = 0; asked < 100; asked++) {
    ask();
    if (isBusy()) return;
  }
  throw new Error("a hundred calls were done when they returned");
};

test("timers fire while a long operation runs", async () => {
  const fires = async (rows: number) => {
    using large = tensor(wave(rows * 2048, 3), [rows, 2048]);
    using found = quantize4bit(large, { scales: "leastSquares", compressStatistics: true });
    await new Promise((fired) => setTimeout(fired, 1));
    const during = isBusy(); // never, had the call done the work
    await found.ready();
    expect(found.offset).toBeGreaterThan(0);
    return during;
  };
  // A loaded machine may finish a short operation before it comes back to this thread; a long one it does not.
  let rows = 256;
  while (!(await fires(rows))) {
    rows *= 2;
    expect(rows).toBeLessThanOrEqual(8192);
  }
}, 60_000);

test("what is no number is refused in the call, however long the operation would take", () => {
  const values = wave(side * side, 4);
  values[7] = Number.NaN;
  using bad = tensor(values, [side, side]);
  expect(errorOf(() => quantize4bit(bad, { scales: "leastSquares" })).message).toContain("[0, 7] is ");
});

test("rows by indices, and their gradient, are queued where the host wrote the indices, and else done in the call", () => {
  const count = 40 * side;
  const rows = Int32Array.from({ length: count }, (_, i) => (i * 7) % side);
  using indices = Tensor.from(rows, [count], { device });
  using y = embedding(indices, w);
  untilBusy(() => embedding(indices, w).dispose());
  untilBusy(() => embeddingBackward(y, indices, side).dispose());
  using gradient = embeddingBackward(y, indices, side);
  device.wait();
  const sum = (value: number) => Array.from({ length: 40 }, () => value).reduce((a, b) => Math.fround(a + b), 0);
  expect(gradient.slice(7, 8).read()).toEqual(w.slice(7, 8).read().map(sum));
  indices.view((elements) => {
    elements[1] = side;
  });
  expect(errorOf(() => embedding(indices, w)).message).toContain(`indices[0, 1] is ${side}`);
  expect(errorOf(() => embeddingBackward(y, indices, side)).message).toContain(`indices[0, 1] is ${side}`);
  indices.write(rows); // somebody has had the address
  embedding(indices, w).dispose();
  expect(isBusy()).toBe(false);
});

test("what is asked for meanwhile comes in its order: results, writes, frees", async () => {
  using expected = product();
  const values = expected.read();
  using y = product();
  using twice = scale(y, 2); // small, but it reads what is yet to be written
  x.write(wave(side * side, 9)); // after the product
  using other = product();
  x.write(wave(side * side, 1));
  const again = product();
  again.dispose(); // before it is done
  using kept = product();
  untilBusy(() => product().dispose());
  await device.ready();
  expect(y.read()).toEqual(values);
  expect(twice.read()).toEqual(Float32Array.from(values, (value) => 2 * value));
  expect(other.read()).not.toEqual(values);
  expect(kept.read()).toEqual(values);
});

test("copies of what is yet to be written take their turn too: no call waits for them", async () => {
  using most = w.slice(0, side - 1);
  using narrow = quantize4bit(most);
  using expected = matmul4bit(x, narrow);
  const values = expected.read();
  const copies: Tensor<"float32">[] = [];
  untilBusy(() => {
    for (const copy of copies.splice(0)) copy.dispose();
    using y = matmul4bit(x, narrow);
    copies.push(y.slice(1, 3), y.to(device), concat([y, y])); // row 1 begins at no multiple of 16 bytes
    y.write(new Float32Array(side * (side - 1)));
  });
  const [rows, all, twice] = copies.map((copy) => copy.read());
  expect(rows).toEqual(values.slice(side - 1, 3 * (side - 1)));
  expect(all).toEqual(values);
  expect([...twice!]).toEqual([...values, ...values]);
  for (const copy of copies) copy.dispose();
});

test("arguments that are freed meanwhile are there until they were used", async () => {
  using expected = product();
  const values = expected.read();
  const results: Tensor[] = [];
  for (let i = 0; i < 8; i++) {
    const copy = tensor(wave(side * side, 1), [side, side]);
    const weight = quantize4bit(w);
    results.push(matmul4bit(copy, weight));
    copy.dispose();
    weight.dispose();
    tensor(new Float32Array(side * side), [side, side]).dispose(); // which may have the memory that copy had
  }
  await device.ready();
  for (const result of results) {
    expect(result.read()).toEqual(values);
    result.dispose();
  }
});

test("a long queue of results that nobody holds takes no more memory than one", () => {
  device.wait();
  // Held or kept for reuse: what another test dropped goes from one to the other whenever the collector likes.
  const taken = ({ bytes, cached }: Device["counters"]) => bytes + cached;
  const before = settled(device);
  for (let i = 0; i < 40; i++) product().dispose();
  expect(taken(device.counters)).toBeLessThanOrEqual(taken(before) + 8 * 4 * side * side);
  device.wait();
  expect(device.counters.bytes).toBeLessThanOrEqual(before.bytes);
});

test("a view waits for the work before it", () => {
  using y = product();
  const values = y.view((view) => [...view]);
  using expected = product();
  expect(values).toEqual([...expected.read()]);
});

test("a failure is told by the next wait and by whoever reads the result, and by nobody else", async () => {
  using y = product();
  using queries = y.reshape([side, side]);
  const rows = Tensor.from(new Int32Array(4 * side).fill(-1), [side, 4], { device });
  for (let i = 0; i < 20; i++) product().dispose(); // so that all is asked for before any of it fails
  using attended = attention(queries, rows, { heads: 8, kvHeads: 8, k: queries, v: queries });
  using after = scale(attended, 2);
  rows.dispose();
  const refused = await device.ready().then(
    () => undefined,
    (error: Error) => error,
  );
  expect(refused?.message).toContain("an operation that was queued has failed: attention: rows[0] is");
  await device.ready(); // told once
  expect(errorOf(() => attended.read()).message).toContain("rows[0]");
  expect(errorOf(() => after.read()).message).toContain("rows[0]");
  expect(errorOf(() => scale(after, 2)).message).toContain("rows[0]");
  expect(y.read().length).toBe(side * side);
  after.write(new Float32Array(side * side).fill(3)); // makes it good again
  expect(after.read()[0]).toBe(3);
});

test("a recording that is long is queued as one", async () => {
  let y: Tensor | undefined;
  using recording = Recording.of(() => {
    y = product();
  }, device);
  const values = y!.read();
  x.write(wave(side * side, 5));
  untilBusy(() => recording.run());
  const changed = y!.read();
  expect(changed).not.toEqual(values);
  x.write(wave(side * side, 1));
  recording.run();
  expect(y!.read()).toEqual(values);
  recording.run();
  recording.dispose(); // while it runs
  expect(y!.read()).toEqual(values);
  y!.dispose();
});

test("a Worker that ends, and a process that exits, leave work behind without harm", async () => {
  const program = `
    import { concat, Device, matmul4bit, quantize4bit, Tensor } from ${JSON.stringify(`${import.meta.dir}/../src/index.ts`)};
    const device = Device.open("cpu");
    const x = Tensor.from(new Float32Array(1024 * 1024).fill(1), [1024, 1024], { device });
    const w = quantize4bit(x);
    const ask = () => Array.from({ length: 8 }, () => matmul4bit(x, w));
    if (Bun.isMainThread) {
      const worker = new Worker(import.meta.url);
      await new Promise((resolve) => { worker.onmessage = resolve; });
      worker.terminate();
      ask();
      console.log(device.counters.operations > 0);
      process.exit(0);
    }
    ask();
    postMessage("asked");
  `;
  const path = `${import.meta.dir}/.queue-${process.pid}.ts`;
  await Bun.write(path, program);
  try {
    const child = Bun.spawn([process.execPath, path], { stdout: "pipe", stderr: "pipe" });
    expect([await child.exited, await new Response(child.stdout).text()]).toEqual([0, "true\n"]);
  } finally {
    await Bun.file(path).delete();
  }
}, 30_000);

test.each(["-1", "some", "nan"])("BNB_QUEUE_FROM=%s is refused, with a sentence", (wanted) => {
  const program = `import { Device } from "${import.meta.dir}/../src/index.ts"; Device.open("cpu");`;
  const env = { ...process.env, BNB_QUEUE_FROM: wanted };
  const { stderr, exitCode } = Bun.spawnSync([process.execPath, "-e", program], { env });
  expect(exitCode).not.toBe(0);
  expect(stderr.toString()).toContain(`BNB_QUEUE_FROM is "${wanted}"`);
});
