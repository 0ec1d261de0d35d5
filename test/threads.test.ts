// The tests of the CPU's threads as a process sees them: how many there are, what a wrong number or instruction
// set says, and Workers that share the pool and end while it works. test/cpu/forms_test.c has the pool itself.
import { expect, test } from "bun:test";

const folder = `${import.meta.dir}/..`;
const describe = 'console.log((await import("./src/index.ts")).Device.open("cpu").description)';

function run(code: string, env: Record<string, string> = {}, prefix: string[] = []) {
  const child = Bun.spawnSync([...prefix, process.execPath, "-e", code], {
    cwd: folder,
    env: { ...process.env, BNB_DEVICE: "cpu", ...env },
    timeout: 60_000,
  });
  return { exitCode: child.exitCode, output: child.stdout.toString() + child.stderr.toString() };
}

test.each(["1", "2", "256"])("BNB_NUM_THREADS=%s is taken", (wanted) => {
  expect(run(describe, { BNB_NUM_THREADS: wanted }).output).toStartWith(`${wanted} thread`);
});

test.each(["0", "-1", "abc", "2x", "1.5", "257", "1000000"])("BNB_NUM_THREADS=%s is refused", (wanted) => {
  const { exitCode, output } = run(describe, { BNB_NUM_THREADS: wanted });
  expect(exitCode).not.toBe(0);
  expect(output).toContain(`BNB_NUM_THREADS is "${wanted}", expected a whole number from 1 to 256`);
});

test("BNB_ISA that is none is refused, with those that there are", () => {
  const { exitCode, output } = run(describe, { BNB_ISA: "avx3" });
  expect(exitCode).not.toBe(0);
  expect(output).toMatch(/BNB_ISA is "avx3", expected one that this processor has:( \w+,)* plain; unset it/);
});

test("empty variables say nothing", () => {
  expect(run(describe, { BNB_ISA: "", BNB_NUM_THREADS: "" }).output).toMatch(/^\d+ threads?, \w+ kernels/);
});

test.if(Bun.which("taskset") !== null)("a process that may use one processor uses one thread", () => {
  const { output } = run(describe, { BNB_NUM_THREADS: "" }, ["taskset", "-c", "0"]);
  expect(output).toStartWith("1 thread,");
});

test("Workers share the pool, and one that is terminated at work does not stop the others", () => {
  const worker = `
    const { matmul4bit, quantize4bit, Tensor } = await import("${folder}/src/index.ts");
    const q = quantize4bit(Tensor.from(new Float32Array(512 * 512).map((_, i) => Math.sin(i)), [512, 512]));
    const x = Tensor.from(new Float32Array(512).fill(1), [1, 512]);
    const first = matmul4bit(x, q).read();
    for (let round = 0; ; round++) {
      using y = matmul4bit(x, q);
      if (!Buffer.from(y.read().buffer).equals(Buffer.from(first.buffer))) throw new Error("a product changed");
      if (round % 50 === 0) postMessage(round);
    }`;
  const { exitCode, output } = run(
    `
    const url = URL.createObjectURL(new Blob([${JSON.stringify(worker)}], { type: "application/javascript" }));
    const rounds = [0, 0, 0];
    const workers = rounds.map((_, i) => {
      const worker = new Worker(url);
      worker.onmessage = ({ data }) => { rounds[i] = data; };
      worker.onerror = ({ message }) => { console.error(message); process.exit(1); };
      return worker;
    });
    const until = async (done) => { while (!done()) await Bun.sleep(5); };
    await until(() => rounds.every((round) => round >= 100));
    await workers[0].terminate();
    const before = rounds.slice(1);
    await until(() => rounds.slice(1).every((round, i) => round >= before[i] + 200));
    console.log("all went on");
    process.exit(0);`,
    { BNB_NUM_THREADS: "2" },
  );
  expect(output).toBe("all went on\n");
  expect(exitCode).toBe(0);
});
