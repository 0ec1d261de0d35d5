// The kernels' texts on their way into the pack and out of it: nothing is lost, whatever they count, and what is
// damaged is not read beyond its end.
import { CString, dlopen, type Pointer } from "bun:ffi";
import { beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { familySource } from "../../scripts/msl/families.ts";
import { kernelsFile, packOf, withDistances } from "../../scripts/ptx.ts";
import { build } from "../metal/host/build.ts";

const root = resolve(import.meta.dir, "../..");

function load() {
  const sources = [join(import.meta.dir, "host/text.c"), join(root, "csrc/gpu/cuda/text.c")];
  return dlopen(build("library", "libtext.so", sources), {
    write_text: { args: ["buffer", "u64", "i32", "bool"], returns: "ptr" },
    free_text: { args: ["ptr"], returns: "void" },
  });
}

/** What the driver is given. */
let written: (text: string, capability?: number, waits?: boolean) => string;

/** What the driver is given of texts without distances. */
const given = (text: string) =>
  text
    .replace(/BNB(\d)/g, (_, index: string) => String([10, 11, 12][Number(index)] ?? 0))
    .replaceAll("BNB_THREADS", "256");

const rowsOf = (pack: string) =>
  pack
    .split(/^\/\/ bnb .*\n/m)
    .slice(1)
    .map((text): [name: string, text: string] => [text.slice(0, text.indexOf(" constants")), text]);

describe.skipIf(process.platform !== "linux" || process.arch !== "x64")("kernels' texts", () => {
  beforeAll(() => {
    const { write_text, free_text } = load().symbols;
    written = (text, capability = 80, waits = false) => {
      const at = write_text(Buffer.from(text), Buffer.byteLength(text), capability, waits) as Pointer;
      const all = new CString(at).toString();
      free_text(at);
      return all;
    };
  }, 120_000);

  test("distances are from the first of a kind in the last line that has one", () => {
    const text =
      "mov %r40,%rd7;\n@%p1 bra $L__BB0_9;\nadd %r41,%r40,%r41;\n$L__BB0_9:\nmov %rd8,%r1;\nst [%rd7+8],%r44;\n";
    expect(withDistances(text)).toBe(
      "mov %r40,%rd+7;\n@%p+1 bra $L__BB0_+9;\nadd %r+1,%r+0,%r+1;\n$L__BB0_+0:\nmov %rd+1,%r1;\nst [%rd-1+8],%r44;\n",
    );
    expect(written(withDistances(text))).toBe(text);
  });

  test("what is no number of theirs stays as it is", () => {
    const text =
      ".reg .b32 %r<310>;\nmov %r1,%tid.x;\nadd %rd1,%SP,-4;\nld [%SP+8],%ctaid.y;\nBNX $L_1 $L__BB1_2 %f3 % $ B";
    expect(written(withDistances(text))).toBe(text);
    expect(() => withDistances("add %r1,%r-1;")).toThrow("the PTX has %r-");
  });

  test("constants and threads are put in, and constants that are not given are 0", () => {
    expect(written("mov %r1,BNB0;\n.maxntid BNB_THREADS,1,1\nBNB2 BNB3 BNB9 BNB_ BNBX BNB")).toBe(
      "mov %r1,10;\n.maxntid 256,1,1\n12 0 0 BNB_ BNBX BNB",
    );
  });

  test("any numbers, in any order", () => {
    let state = 1;
    const random = (below: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * below);
    };
    const most = [3, 40, 70, 5000, 2 ** 32];
    for (let turn = 0; turn < 50; turn++) {
      const word = () =>
        ["$L__BB0_", "%p", "%r", "%rd", "%rs"][random(5)]! + random(random(9) ? most[turn % 5]! : 2 ** 32);
      const line = () => Array.from({ length: random(5) }, word).join([",", "", "+8],["][random(3)]);
      const text = Array.from({ length: 60 }, line).join("\n");
      expect(written(withDistances(text))).toBe(text);
    }
  });

  test("much that is short and stands for what is long", () => {
    expect(written(`%r4294967295\n${"%r+0".repeat(5000)}`)).toBe(`%r4294967295\n${"%r4294967295".repeat(5000)}`);
  });

  test("a text that is cut anywhere, or counts beyond all bounds, is not read beyond its end", () => {
    const text = "mov %r+1,BNB0;\n$L__BB0_-7:\n.maxntid BNB_THREADS,1,1\nmov %rd99999999999999,%rs+";
    for (let bytes = 1; bytes <= text.length; bytes++)
      expect(written(text.slice(0, bytes))).toStartWith("mov %r".slice(0, bytes));
  });

  test("a wait is put in front, with the version that knows it", () => {
    const text = ".version 7.4\n.target sm_80\n.entry bnb_x(\n)\n{\nmov %r+1,BNB1;\n}\n";
    const body = "{\ngriddepcontrol.launch_dependents;\ngriddepcontrol.wait;\nmov %r1,11;\n}\n";
    expect(written(text, 80, true)).toBe(`.version 7.8\n.target sm_90\n.entry bnb_x(\n)\n${body}`);
    expect(written(text, 90, true)).toBe(`.version 7.4\n.target sm_80\n.entry bnb_x(\n)\n${body}`);
  });

  test("of a family, and of the pack where setup has made it: nothing is lost", async () => {
    const family = await packOf([{ family: "nested", source: familySource("nested") }]);
    const made = readFileSync(kernelsFile);
    const pack = made.length ? Buffer.from(Bun.zstdDecompressSync(made)).toString() : "";
    const rows = rowsOf(family + pack);
    expect(rows.length).toBeGreaterThan(2);
    // Different texts have different distances, so that whose are the same is the same.
    for (const [name, text] of rows) {
      const all = written(text);
      expect({ name, distances: /%r[-+]/.test(all), same: withDistances(all) === given(text) }).toEqual({
        ...{ name, distances: false, same: true },
      });
    }
  }, 120_000);
});
