// The commands that run models, as their users meet them; chat in a terminal of its own.
import { afterAll, describe, expect, test } from "bun:test";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Model } from "../../src/index.ts";
import { perplexity } from "../../src/model/perplexity.ts";
import { difference, expectedOf, tiny } from "./fixtures.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-run-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const main = join(import.meta.dir, "../../src/cli/main.ts");

function run(args: string[], input = "") {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, main, ...args], { stdin: Buffer.from(input) });
  return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
}

test("generate: from an argument, from standard input, as JSON", async () => {
  using model = await Model.load(tiny("llama"));
  const whole = await model.generate("Hello", { maxTokens: 8 }).text();
  const flags = ["--max-tokens", "8", "--quiet"];
  expect(run(["generate", tiny("llama"), "Hello", ...flags])).toEqual({ status: 0, out: `${whole}\n`, err: "" });
  expect(run(["generate", tiny("llama"), ...flags], "Hello\n").out).toBe(`${whole}\n`);
  const json = JSON.parse(run(["generate", tiny("llama"), "Hello", "--json", ...flags]).out);
  expect(json).toMatchObject({ text: whole, usage: { promptTokens: 6 } });
  const stop = whole[3]!;
  const stopped = run(["generate", tiny("llama"), "Hello", "--max-tokens", "8", "--stop", stop, "--stop", "no such"]);
  expect(stopped.out).toBe(`${whole.slice(0, whole.indexOf(stop))}\n`);
  expect(stopped.err).toMatch(/^\d tokens, [\d.]+ a second$/m);
  expect(run(["generate", tiny("llama"), "Hello", "--temperature", "hot"]).status).toBe(2);
  expect(run(["generate", tiny("llama"), "Hello", "--top-p", "7", "--quiet"]).err).toContain("topP is 7");
  expect(run(["generate", tiny("bert"), "Hello", "--quiet"])).toMatchObject({ status: 3 });
  expect(run(["generate", tiny("llama"), "Hello", "--devices", "cpu, cpu", ...flags]).out).toBe(`${whole}\n`);
  const absent = run(["generate", tiny("llama"), "Hello", "--devices", "cpu,tpu", "--quiet"]);
  expect(absent.err).toContain('devices[1] is "tpu"');
});

test("perplexity is e to the mean of what transformers' logits lose", async () => {
  const { ids, values, columns } = expectedOf("llama");
  using model = await Model.load(tiny("llama"), { precision: "highest" });
  let sum = 0;
  for (let i = 0; i + 1 < ids[0]!.length; i++) {
    const row = values.subarray(i * columns, (i + 1) * columns);
    const total = Math.log(row.reduce((all, logit) => all + Math.exp(logit), 0));
    sum += total - row[ids[0]![i + 1]!]!;
  }
  const found = await perplexity(model, ids[0]!, { window: 64 });
  expect(found.tokens).toBe(ids[0]!.length - 1);
  expect(Math.abs(Math.log(found.perplexity) - sum / found.tokens)).toBeLessThan(1e-5);
  const file = join(scratch, "text.txt");
  writeFileSync(file, "Hello there, what is this text about?");
  const printed = run(["perplexity", tiny("llama"), file, "--window", "16"]);
  expect(printed.out).toMatch(/^perplexity \d+\.\d{4} over \d+ tokens, in windows of 16\n$/);
  expect(printed.err).toContain("Reading: 100%");
  const json = JSON.parse(run(["perplexity", tiny("llama"), file, "--window", "16", "--json", "--quiet"]).out);
  expect(printed.out).toBe(`perplexity ${json.perplexity.toFixed(4)} over ${json.tokens} tokens, in windows of 16\n`);
  const refused = run(["perplexity", tiny("llama"), file, "--window", "1"]);
  expect([refused.status, refused.err]).toEqual([2, expect.stringContaining("Expected a whole number of at least 2.")]);
});

test("embed: JSON, and a .npy file that NumPy's format describes", async () => {
  // The tiny encoders have no tokenizer of their own: bert takes the llama's.
  const folder = join(scratch, "bert");
  cpSync(tiny("bert"), folder, { recursive: true });
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) cpSync(join(tiny("llama"), name), join(folder, name));
  using model = await Model.load(folder);
  const want = await model.embed(["ab", "cd e"]);
  const printed: number[][] = JSON.parse(run(["embed", folder, "ab", "cd e", "--quiet"]).out);
  for (const [i, vector] of want.entries()) expect(difference(printed[i]!, vector)).toBe(0);
  const file = join(scratch, "vectors.npy");
  expect(run(["embed", folder, "--output", file], "ab\ncd e\n").out).toBe(`2 vectors of 32 numbers in ${file}\n`);
  const empty = run(["embed", folder, "--quiet"], "\n");
  expect(empty).toEqual({
    status: 1,
    out: "",
    err: "bunsandbytes: embed: there are no texts, expected at least one.\n",
  });
  const bytes = readFileSync(file);
  const start = 10 + bytes.readUInt16LE(8);
  expect([bytes.toString("latin1", 1, 6), start % 64]).toEqual(["NUMPY", 0]);
  expect(bytes.toString("latin1", 10, start)).toContain("'<f4', 'fortran_order': False, 'shape': (2, 32)");
  const numbers = new Float32Array(bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + bytes.length));
  expect(difference(numbers, [...want[0]!, ...want[1]!])).toBe(0);
});

test("examples/chat.ts is one executable, which runs where there is nothing else", () => {
  const root = join(import.meta.dir, "../..");
  const file = join(scratch, "chat");
  const build = ["build", "--compile", "--no-compile-autoload-dotenv", "--no-compile-autoload-bunfig"];
  const built = Bun.spawnSync([process.execPath, ...build, "examples/chat.ts", "--outfile", file], { cwd: root });
  expect({ status: built.exitCode, said: built.exitCode ? built.stderr.toString() : "" }).toEqual({
    status: 0,
    said: "",
  });
  const chat = Bun.spawnSync([file, tiny("llama")], { cwd: scratch, env: {}, stdin: Buffer.from("hi\nyes\n") });
  expect(chat.stderr.toString()).toBe("");
  expect(chat.exitCode).toBe(0);
  expect(chat.stdout.toString().split("\n> ").length).toBeGreaterThanOrEqual(3); // after each answer another question
}, 60_000);

describe("chat", () => {
  test("from a pipe: commands, lines that go on, the end of the input", () => {
    const args = ["chat", tiny("llama"), "--max-tokens", "4", "--quiet"];
    const { status, out } = run(args, "hi\n/help\nmore\\\nlines\n/undo\n");
    expect(status).toBe(0);
    expect(out).toContain("/undo    take back");
  });

  test("begins anew, tells its figures, and leaves where it is told to", () => {
    const { status, out } = run(["chat", tiny("llama"), "--max-tokens", "4"], "hi\n/reset\nhi\n/exit\nno\n");
    expect(status).toBe(0);
    const figures = [...out.matchAll(/^4 tokens, [\d.]+ a second; read (\d+) of \1; [\d.]+ [kM]?B$/gm)];
    expect(figures.length).toBe(2); // both times all of the prompt is read
    expect(new Set(figures.map(([, read]) => read)).size).toBe(1);
  });

  test("what fails at one answer ends no conversation, and a model without a template has none", () => {
    const args = ["chat", tiny("llama"), "--max-tokens", "4", "--top-p", "7", "--quiet"];
    const { status, err } = run(args, "hi\nhi\n");
    expect([status, err.match(/topP is 7/g)?.length]).toEqual([0, 2]);
    expect(run(["chat", tiny("bert"), "--quiet"])).toMatchObject({ status: 3 });
  });

  const script = Bun.which("script");

  test.skipIf(!script || process.platform !== "linux")(
    "in a terminal: answers stream, Ctrl-C stops one, Ctrl-D leaves",
    async () => {
      // An answer that is still being written whenever it is stopped: there is room, and no token ends it.
      const folder = join(scratch, "roomy");
      cpSync(tiny("llama"), folder, { recursive: true });
      const config = JSON.parse(readFileSync(join(folder, "config.json"), "utf8"));
      const endless = { max_position_embeddings: 100_000, eos_token_id: [] };
      writeFileSync(join(folder, "config.json"), JSON.stringify({ ...config, ...endless }));
      const command = `${process.execPath} ${main} chat ${folder} --max-tokens 90000`;
      const child = Bun.spawn([script!, "-qfec", command, "/dev/null"], {
        stdin: "pipe",
        stdout: "pipe",
        env: { ...process.env, TERM: "xterm" },
      });
      let screen = "";
      const reading = (async () => {
        for await (const chunk of child.stdout) screen += Buffer.from(chunk).toString();
      })();
      const until = async (text: string, from = 0) => {
        while (!screen.slice(from).includes(text)) await new Promise((resolve) => setTimeout(resolve, 10));
        return screen.length;
      };
      const type = (text: string) => {
        child.stdin.write(text);
        child.stdin.flush();
      };
      await until("/help says what can be done");
      type("hi\r");
      await until("\ng:jj"); // it has begun
      type("\x03");
      await until("stopped; ");
      let at = await until(" a second; read ");
      type("\x03"); // nothing is under way
      at = await until("(/exit or Ctrl-D leaves)", at);
      type("/help\r");
      at = await until("Ctrl-C stops an answer", at);
      type("\x04");
      await child.exited;
      await reading;
      expect(child.exitCode).toBe(0);
      expect(screen).toContain("Model(llama, 2 layers of 32");
    },
  );
});
