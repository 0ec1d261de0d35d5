// safetensors files: identical with the `safetensors` library's, strict on damage, atomic on failure.
import { afterAll, describe, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { headerText, type SafetensorsDtype } from "../src/checkpoint/header.ts";
import { openSafetensors } from "../src/checkpoint/safetensors.ts";
import { SafetensorsWriter, writeSafetensors } from "../src/checkpoint/writer.ts";
import { BnbError } from "../src/error.ts";

const scratch = mkdtempSync(join(tmpdir(), "bnb-safetensors-"));
afterAll(() => rmSync(scratch, { recursive: true }));
const golden = join(import.meta.dir, "golden");
let files = 0;
const fresh = () => join(scratch, `${files++}.safetensors`);

/** A file with any header text and any number of zero bytes of data. */
function raw(header: string | Uint8Array, dataBytes: number, claimed?: bigint): string {
  const text = Buffer.from(header);
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(claimed ?? BigInt(text.length));
  const path = fresh();
  writeFileSync(path, Buffer.concat([prefix, text, Buffer.alloc(dataBytes)]));
  return path;
}

const entry = (dtype: string, shape: unknown, offsets: unknown) =>
  `{"dtype":${JSON.stringify(dtype)},"shape":${JSON.stringify(shape)},"data_offsets":${JSON.stringify(offsets)}}`;

describe("reading", () => {
  test("views are the file's own bytes, typed by dtype", () => {
    using file = openSafetensors(join(golden, "nf4_double.safetensors"));
    const onDisk = readFileSync(file.path);
    const start = 8 + Number(onDisk.readBigUInt64LE());
    expect(file.metadata).toEqual({ format: "pt" });
    const absmax = file.tensor("layer.weight.nested_absmax");
    expect(absmax.values).toBeInstanceOf(Float32Array);
    expect((absmax.values as Float32Array)[0]).toBe(onDisk.readFloatLE(start));
    const weight = file.tensor("layer.weight");
    expect(weight.shape).toEqual([4096, 1]);
    expect(Buffer.compare(weight.bytes, onDisk.subarray(start + 1220, start + 5316))).toBe(0);
    expect(file.tensor("layer.bias").values).toBeInstanceOf(Uint16Array);
  });

  test("writing to a view leaves the file alone", async () => {
    const path = fresh();
    await writeSafetensors(path, [{ name: "x", dtype: "U8", shape: [3], bytes: Uint8Array.of(1, 2, 3) }]);
    using file = openSafetensors(path);
    file.tensor("x").bytes[0] = 9;
    expect([...readFileSync(path).subarray(-3)]).toEqual([1, 2, 3]);
  });

  test("release and close detach, and a closed file refuses", () => {
    const file = openSafetensors(join(golden, "int8.safetensors"));
    const tensor = file.tensor("layer.weight");
    const before = tensor.bytes;
    tensor.release();
    expect(before.length).toBe(0);
    expect(tensor.bytes.length).toBe(64 * 128);
    file.close();
    file.close();
    expect(() => tensor.bytes).toThrow(/was closed; open it again to read layer.weight/);
  });

  test("elements that the file does not align are copied, and are right", () => {
    const header = `{"a":${entry("U8", [1], [0, 1])},"b":${entry("F32", [1], [1, 5])}}`;
    const path = raw(header, 5);
    const bytes = readFileSync(path);
    bytes.writeFloatLE(2.5, bytes.length - 4);
    writeFileSync(path, bytes);
    using file = openSafetensors(path);
    expect(file.tensor("b").values).toEqual(Float32Array.of(2.5));
  });

  test("a file that was replaced while open is read as it was opened", async () => {
    const path = fresh();
    const other = fresh();
    await writeSafetensors(path, [{ name: "x", dtype: "U8", shape: [2], bytes: Uint8Array.of(1, 2) }]);
    await writeSafetensors(other, [{ name: "x", dtype: "U8", shape: [2], bytes: Uint8Array.of(3, 4) }]);
    using file = openSafetensors(path);
    renameSync(other, path);
    // Elsewhere Bun can map by name only, and the other file is noticed.
    if (process.platform === "linux") expect([...file.tensor("x").bytes]).toEqual([1, 2]);
    else expect(() => file.tensor("x").bytes).toThrow(/was replaced or cut short/);
  });

  test("a file that may be read but not written cannot be mapped by Bun, and is read", async () => {
    const path = fresh();
    await writeSafetensors(path, [{ name: "x", dtype: "U8", shape: [3], bytes: Uint8Array.of(1, 2, 3) }]);
    chmodSync(path, 0o444);
    chmodSync(scratch, 0o755);
    // Root may write anything, so the child becomes nobody first.
    const program = `
      import { openSafetensors } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/safetensors.ts"))};
      if (process.getuid() === 0) { process.setgid(65534); process.setuid(65534); }
      try {
        Bun.mmap(${JSON.stringify(path)}, { shared: false });
        console.log("mapped");
      } catch (error) {
        console.log(error.code);
      }
      using file = openSafetensors(${JSON.stringify(path)});
      console.log([...file.tensor("x").bytes].join());`;
    const { stdout, stderr } = Bun.spawnSync([process.execPath, "-e", program]);
    expect(stdout.toString() + stderr.toString()).toBe("EACCES\n1,2,3\n");
  });

  test("an absent name is answered with names that exist", () => {
    using file = openSafetensors(join(golden, "int8.safetensors"));
    expect(() => file.tensor("weight")).toThrow(/no tensor "weight"; it has 4: layer.SCB/);
  });
});

describe("damage", () => {
  const ok = entry("U8", [4], [0, 4]);
  const cases: [string, RegExp, string | Uint8Array, number, bigint?][] = [
    ["length beyond the file", /header ends at byte 1008, but the file has/, "{}", 0, 1000n],
    ["length beyond the limit", /above the limit of 100000000/, "{}", 0, 2n ** 63n],
    ["not JSON", /not JSON/, "{", 0],
    ["not UTF-8", /not JSON/, Uint8Array.of(0x7b, 0xff, 0x7d), 0],
    ["not an object", /not a JSON object/, "[]", 0],
    ["a name twice", /has the key "x" twice/, `{"x":${ok},"\\u0078":${ok}}`, 4],
    ["a field twice", /has the key "dtype" twice/, `{"x":{"dtype":"U8",${ok.slice(1)}}`, 4],
    ["metadata of numbers", /__metadata__ has no text at "a"/, `{"__metadata__":{"a":1},"x":${ok}}`, 4],
    ["an entry that is a number", /"x": its entry/, `{"x":1}`, 0],
    ["an unknown dtype", /"x": dtype "F99" is none of BOOL/, `{"x":${entry("F99", [4], [0, 4])}}`, 4],
    ["a dtype of Object.prototype", /"x": dtype "toString"/, `{"x":${entry("toString", [4], [0, 4])}}`, 4],
    ["a shape that is text", /"x": shape "4" is not a list/, `{"x":${entry("U8", "4", [0, 4])}}`, 4],
    [
      "a shape too deep",
      /not JSON \(lists and objects are nested/,
      `{"x":${entry("U8", 0, [0, 4]).replace("0,", `${"[".repeat(1e5)}${"]".repeat(1e5)},`)}}`,
      4,
    ],
    ["an endless shape", /of U8 needs 4$|…/, `{"x":${entry("U8", Array(1e5).fill(1), [0, 4])}}`, 4],
    ["a negative extent", /"x": extent -4/, `{"x":${entry("U8", [-4], [0, 4])}}`, 4],
    ["half an extent", /"x": extent 0.5/, `{"x":${entry("U8", [0.5, 8], [0, 4])}}`, 4],
    ["a size that overflows", /"x": shape .* overflows/, `{"x":${entry("U8", [2 ** 40, 2 ** 40], [0, 4])}}`, 4],
    ["offsets that are three", /"x": data_offsets \[0, 4, 8, …\]/, `{"x":${entry("U8", [4], [0, 4, 8])}}`, 4],
    [
      "offsets against shape",
      /"x": .* hold 4 bytes, but shape \[4\] of F32 needs 16/,
      `{"x":${entry("F32", [4], [0, 4])}}`,
      4,
    ],
    ["offsets backwards", /"x": data_offsets \[4, 0\] hold -4 bytes/, `{"x":${entry("U8", [4], [4, 0])}}`, 4],
    ["a float as an extent", /"x": extent 4.0 of the shape is not a count/, `{"x":${ok.replace("[4]", "[4.0]")}}`, 4],
    ["an exponent", /"x": data_offsets with 4e0 are not two/, `{"x":${ok.replace("0,4", "0,4e0")}}`, 4],
    ["minus zero", /"x": data_offsets with -0 are not two/, `{"x":${ok.replace("0,4", "-0,4")}}`, 4],
    ["a zero before digits", /not JSON \(at byte \d+: expected a value\)/, `{"x":${ok.replace("[4]", "[04]")}}`, 4],
    [
      "an extent beyond 2⁵³",
      /"x": extent 9007199254740993 of/,
      `{"x":${ok.replace("[4]", "[9007199254740993, 0]")}}`,
      4,
    ],
    ["a size beyond all, times 0", /overflows/, `{"x":${entry("F32", [2 ** 32, 2 ** 32, 0], [0, 0])}}`, 0],
    ["half of a surrogate pair", /half of a surrogate pair/, `{"\\ud800":${ok}}`, 4],
    ["metadata with one", /half of a surrogate pair/, `{"__metadata__":{"a":"\\udc00"},"x":${ok}}`, 4],
    ["a number beyond doubles", /a number beyond all doubles/, `{"x":${ok.replace("{", '{"y":1e400,')}}`, 4],
    ["NaN", /not JSON \(at byte \d+: expected a value\)/, `{"x":${ok.replace("{", '{"y":NaN,')}}`, 4],
    ["no dtype", /"x": it has no dtype/, `{"x":{"shape":[4],"data_offsets":[0,4]}}`, 4],
    ["a dtype that is a list", /"x": dtype \["U8"\] is none of/, `{"x":${ok.replace('"U8"', '["U8"]')}}`, 4],
    ["a dtype that is an object", /"x": dtype \{"toString":1\} is/, `{"x":${ok.replace('"U8"', '{"toString":1}')}}`, 4],
    ["a comma too many", /not JSON/, `{"x":${ok},}`, 4],
    ["text after it", /not JSON \(at byte \d+: expected nothing\)/, `{"x":${ok}}{}`, 4],
    ["a control character", /not JSON \(at byte \d+: found text with a control/, `{"x\u0001":${ok}}`, 4],
    ["a wrong escape", /not JSON \(at byte \d+: found text with/, `{"\\x":${ok}}`, 4],
    ["half a byte", /"x": 3 elements of F4 do not fill/, `{"x":${entry("F4", [3], [0, 2])}}`, 2],
    ["an overlap", /"y": it overlaps/, `{"x":${ok},"y":${entry("U8", [4], [2, 6])}}`, 6],
    ["a gap", /"y": it leaves a gap/, `{"x":${ok},"y":${entry("U8", [4], [6, 10])}}`, 10],
    ["data missing", /describes 4 bytes of data, but 3 follow/, `{"x":${ok}}`, 3],
    ["data left over", /describes 4 bytes of data, but 5 follow/, `{"x":${ok}}`, 5],
  ];
  test.each(cases.map((row) => [row[0], row] as const))("%s", (_, [, message, header, dataBytes, claimed]) => {
    const path = raw(header, dataBytes, claimed);
    expect(() => openSafetensors(path)).toThrow(BnbError);
    expect(() => openSafetensors(path)).toThrow(message);
    expect(() => openSafetensors(path)).toThrow(path);
    expect(() => openSafetensors(path)).toThrow(/^.{1,2010}$/s);
  });

  test("every truncation of a sound file is refused", () => {
    const whole = readFileSync(join(golden, "nf4_nodouble.safetensors"));
    const path = fresh();
    for (let length = 0; length < whole.length; length += length < 450 ? 1 : 97) {
      writeFileSync(path, whole.subarray(0, length));
      expect(() => openSafetensors(path)).toThrow(BnbError);
    }
  });

  test("a directory and a pipe, which are no files, are refused and not waited for", () => {
    const pipe = join(scratch, "pipe");
    expect(Bun.spawnSync(["mkfifo", pipe]).exitCode).toBe(0);
    expect(() => openSafetensors(scratch)).toThrow(`${scratch} is a folder, expected a file`);
    expect(() => openSafetensors(pipe)).toThrow(`${pipe} is no ordinary file`);
  });

  test("tensors in any order, fields that are unknown, and escapes are read", () => {
    const b = entry("U8", [1], [4, 5]).replace("{", '{"more":[{"a":[1.5e3,true,null,"\\u00e9"]}],');
    using file = openSafetensors(raw(`{ "\\u0062\\n\u00e9" :${b},\t"a":${ok}, "e":${entry("F32", [0], [4, 4])}}`, 5));
    expect([...file.tensors.keys()]).toEqual(["a", "e", "b\né"]);
  });

  test("what the format allows is read: sub-byte floats, empty tensors, null metadata, padding", () => {
    const header = `{"__metadata__":null,"e":${entry("F32", [0, 3], [0, 0])},"f":${entry("F4", [2, 3], [0, 3])}}\n  `;
    using file = openSafetensors(raw(header, 3));
    expect(file.tensor("e").values).toEqual(new Float32Array(0));
    expect(file.tensor("f").bytes.length).toBe(3);
  });
});

describe("writing", () => {
  const written = readdirSync(golden).filter((name) => name.endsWith(".safetensors"));
  test.each(written)("%s comes out as the safetensors library wrote it", async (name) => {
    using file = openSafetensors(join(golden, name));
    const path = fresh();
    const shuffled = [...file.tensors.values()].reverse();
    await writeSafetensors(path, shuffled, { metadata: file.metadata });
    expect(Buffer.compare(readFileSync(path), readFileSync(file.path))).toBe(0);
  });

  test("the dtypes are laid out in the library's order", async () => {
    // The order that safetensors 0.8.0 wrote for one tensor of each dtype.
    const order: SafetensorsDtype[] = ["U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"];
    order.push(
      "F8_E5M2FNUZ",
      "F8_E4M3FNUZ",
      "F8_E8M0",
      "F8_E4M3",
      "F8_E5M2",
      "I8",
      "U8",
      "F6_E3M2",
      "F6_E2M3",
      "F4",
      "BOOL",
    );
    const tensors = order.toSorted().map((dtype) => ({ name: dtype, dtype, shape: [0], bytes: new Uint8Array(0) }));
    const path = fresh();
    await writeSafetensors(path, tensors);
    using file = openSafetensors(path);
    expect([...file.tensors.keys()]).toEqual(order);
  });

  test("names that JavaScript would reorder or mangle survive", async () => {
    const names = ["10", "9", "__proto__", "é", "\u{1f600}", "\uffee", 'a"b\\c\n'];
    const path = fresh();
    await writeSafetensors(
      path,
      names.map((name) => ({ name, dtype: "U8" as const, shape: [], bytes: Uint8Array.of(1) })),
    );
    using file = openSafetensors(path);
    // By UTF-8 bytes: U+FFEE before U+1F600, where UTF-16 has them the other way round.
    expect([...file.tensors.keys()]).toEqual(["10", "9", "__proto__", 'a"b\\c\n', "é", "\uffee", "\u{1f600}"]);
  });

  test("a vector of open length takes the length that it is given", () => {
    const path = fresh();
    using writer = new SafetensorsWriter(path, [
      { name: "b", dtype: "U8", shape: { atMost: 200 } },
      { name: "c", dtype: "U8", shape: [2] },
      { name: "a", dtype: "F32", shape: [1] },
    ]);
    expect(() => writer.write("c", Uint8Array.of(7, 8))).toThrow(/"c" stands behind "b", whose length is open/);
    expect(() => writer.write("b", new Uint8Array(201))).toThrow(
      /"b" has 201 bytes of data, but it was announced with 200/,
    );
    writer.write("b", Uint8Array.of(1, 2, 3));
    writer.write("c", Uint8Array.of(7, 8));
    writer.write("a", Float32Array.of(0.5));
    writer.commit();
    using file = openSafetensors(path);
    expect(file.tensor("b").shape).toEqual([3]);
    expect([...file.tensor("c").bytes]).toEqual([7, 8]);
    expect(file.tensor("a").values).toEqual(Float32Array.of(0.5));
  });

  test("mistakes of the caller are named", () => {
    const x = { name: "x", dtype: "U8" as const, shape: [2] };
    const make = (...specs: object[]) => new SafetensorsWriter(fresh(), specs as never);
    expect(() => make(x, x)).toThrow(/name "x" twice/);
    expect(() => make({ ...x, name: "__metadata__" })).toThrow(/the format's own/);
    expect(() => make({ ...x, dtype: "float32" })).toThrow(/dtype "float32"/);
    expect(() => make({ ...x, shape: [-1] })).toThrow(/extent -1/);
    expect(() => make({ ...x, name: "\ud800" })).toThrow(/tensor "\\ud800": this name is no text that a reader takes/);
    expect(() => make({ ...x, name: 1 })).toThrow(/tensor 1: this name is no text/);
    const withMetadata = (metadata: object) => () => new SafetensorsWriter(fresh(), [], { metadata } as never);
    expect(withMetadata({ a: 1 })).toThrow(/metadata "a" is 1, expected text/);
    expect(withMetadata({ a: "\udc00" })).toThrow(/metadata "a" has half of a surrogate pair/);
    using writer = make(x);
    expect(() => writer.write("y", Uint8Array.of(1))).toThrow(/"y" was not announced/);
    expect(() => writer.write("x", Uint8Array.of(1))).toThrow(/"x" has 1 bytes of data, but it was announced with 2/);
    expect(() => writer.commit()).toThrow(/"x" was announced but not written/);
  });
});

describe("atomicity", () => {
  test("a producer that fails leaves the old file and nothing else", async () => {
    const folder = mkdtempSync(join(scratch, "fail-"));
    const path = join(folder, "model.safetensors");
    await writeSafetensors(path, [{ name: "x", dtype: "U8", shape: [1], bytes: Uint8Array.of(1) }]);
    const before = readFileSync(path);
    const bytes = () => {
      expect(readdirSync(folder).length).toBe(2);
      throw new Error("no more data");
    };
    const writing = writeSafetensors(path, [{ name: "x", dtype: "U8", shape: [1], bytes }]);
    await expect(writing).rejects.toThrow("no more data");
    await writing.catch(() => {});
    expect(readdirSync(folder)).toEqual(["model.safetensors"]);
    expect(readFileSync(path)).toEqual(before);
  });

  test.each(["SIGINT", "SIGTERM", "exit"])("%s in the middle leaves nothing", async (how) => {
    const folder = mkdtempSync(join(scratch, "signal-"));
    const program = `
      import { writeSafetensors } from ${JSON.stringify(join(import.meta.dir, "../src/checkpoint/writer.ts"))};
      const stop = async () => {
        console.log("writing");
        await Bun.sleep(60_000);
        return new Uint8Array(1);
      };
      if (${JSON.stringify(how)} === "exit") setTimeout(() => process.exit(3), 300);
      await writeSafetensors(${JSON.stringify(join(folder, "x"))}, [{ name: "x", dtype: "U8", shape: [1], bytes: stop }]);`;
    const child = Bun.spawn([process.execPath, "-e", program], { stdout: "pipe" });
    await child.stdout.getReader().read();
    expect(readdirSync(folder).length).toBe(1);
    if (how !== "exit") child.kill(how as NodeJS.Signals);
    await child.exited;
    expect(how === "exit" ? child.exitCode : child.signalCode).toBe(how === "exit" ? 3 : (how as NodeJS.Signals));
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a directory that is missing is the system's error, and no listener stays", () => {
    const listeners = process.listenerCount("SIGINT");
    expect(() => new SafetensorsWriter(join(scratch, "none/x"), [])).toThrow(/ENOENT/);
    expect(process.listenerCount("SIGINT")).toBe(listeners);
    expect(existsSync(join(scratch, "none"))).toBe(false);
  });
});

test("the header's text is that of serde_json", () => {
  const text = headerText({ z: "é" }, [{ name: "x", dtype: "U8", shape: [1, 2], start: 0, end: 2 }]);
  expect(text).toBe('{"__metadata__":{"z":"é"},"x":{"dtype":"U8","shape":[1,2],"data_offsets":[0,2]}}');
});
