// A folder from a stranger as the current one: nothing in it runs.
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { builtLibrary, hostPlatform } from "../scripts/platforms.ts";
import { findLibrary } from "../src/library.ts";
import { llamaDirectory } from "./models.ts";

const root = resolve(import.meta.dir, "..");
const main = join(root, "src/cli/main.ts");
const model = mkdtempSync(join(tmpdir(), "bnb-stranger-"));
afterAll(() => rmSync(model, { recursive: true }));
await llamaDirectory(model);
/** Says which of the files in the folder were taken: a library that is none is refused by its name. */
writeFileSync(join(model, "tokenizer.so"), "no library");
writeFileSync(
  join(model, ".env"),
  `BNB_LIBRARY=./tokenizer.so
BNB_DEVICE=cuda
HF_ENDPOINT=http://stranger.example
HF_TOKEN_PATH=./token
HF_HOME=./home
HF_HUB_CACHE=./cache
XDG_CACHE_HOME=/stranger
`,
);
writeFileSync(join(model, "bunfig.toml"), 'preload = ["./preload.ts"]\n');
writeFileSync(join(model, "preload.ts"), `require("fs").writeFileSync(${JSON.stringify(join(model, "ran"))}, "");`);

const outside = Object.entries(process.env).filter(([name]) => !/^(BNB_|HF_|HUGGINGFACE_|XDG_)/.test(name));
const env: Record<string, string | undefined> = Object.fromEntries(outside);
env.PATH = `${join(root, "node_modules/.bin")}:${env.PATH}`;
function run(command: string[], more: Record<string, string> = {}) {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { cwd: model, env: { ...env, ...more } });
  return { status: exitCode, out: stdout.toString(), err: stderr.toString() };
}

/** As the system starts the command: what stands behind `#!` in its first line, and the path. */
const command = () => [
  ...readFileSync(main, "utf8")
    .split("\n")[0]!
    .slice(2)
    .split(/ (?=-S)/),
  main,
];
const asCommand = (...args: string[]) => {
  const [program, flags, path] = command();
  return [program!, flags!, path!, ...args];
};

describe("the command", () => {
  test("loads neither .env nor bunfig.toml of the folder", () => {
    const inspected = run(asCommand("inspect", "."));
    expect([inspected.status, inspected.err]).toEqual([0, ""]);
    const doctor = JSON.parse(run(asCommand("doctor", "--json")).out);
    expect(doctor).toMatchObject({ environment: {}, library: { origin: "package" } });
    expect(existsSync(join(model, "ran"))).toBe(false);
  });

  test("takes the library that the shell names", () => {
    const { err, status } = run(asCommand("inspect", "."), { BNB_LIBRARY: "./tokenizer.so" });
    expect([status, err]).toEqual([3, expect.stringContaining("tokenizer.so is no native library")]);
  });
});

describe("an import, which can't keep Bun from loading .env", () => {
  const importing = [
    "-e",
    `const { findLibrary } = await import(${JSON.stringify(join(root, "src/library.ts"))});
    await import(${JSON.stringify(join(root, "src/index.ts"))});
    console.log(process.env.BNB_LIBRARY, findLibrary().origin, findLibrary().path);`,
  ];

  test("takes the package's own library all the same", () => {
    const { out, err } = run([process.execPath, "--config=/dev/null", ...importing], { BNB_DEVICE: "cpu" });
    expect([out, err]).toEqual([`./tokenizer.so package ${resolve(builtLibrary(hostPlatform()))}\n`, ""]);
  });

  test("takes the one that the shell names", () => {
    const named = { BNB_LIBRARY: findLibrary().path, BNB_DEVICE: "cpu" };
    const { out } = run([process.execPath, "--config=/dev/null", ...importing], named);
    expect(out).toBe(`${named.BNB_LIBRARY} BNB_LIBRARY ${named.BNB_LIBRARY}\n`);
  });

  test("believes it neither where the hub is, nor which file has the user's token", () => {
    const program = `const { startedWith } = await import(${JSON.stringify(join(root, "src/environment.ts"))});
      console.log(process.env.HF_ENDPOINT, ["HF_ENDPOINT", "HF_TOKEN_PATH", "SHELL_SAYS"].map(startedWith).join());`;
    const { out } = run([process.execPath, "--config=/dev/null", "-e", program], { SHELL_SAYS: "yes" });
    expect(out).toBe("http://stranger.example ,,yes\n");
    const hub = readFileSync(join(root, "src/checkpoint/hub.ts"), "utf8");
    for (const name of ["HF_ENDPOINT", "HF_TOKEN_PATH"]) expect(hub).toContain(`startedWith("${name}")`);
    expect(hub).not.toMatch(/HF_(ENDPOINT|TOKEN_PATH)[^;]*= process\.env|process\.env\.HF_(ENDPOINT|TOKEN_PATH)/);
  });

  test("believes it not either where models and what was tuned are kept", () => {
    const program = `const { hubCache } = await import(${JSON.stringify(join(root, "src/checkpoint/hub.ts"))});
      const { tuningPath } = await import(${JSON.stringify(join(root, "src/tuning.ts"))});
      console.log([process.env.HF_HOME, hubCache(), tuningPath()].join());`;
    const kept = (more?: Record<string, string>) => {
      const { out } = run([process.execPath, "--config=/dev/null", "-e", program], { BNB_DEVICE: "cpu", ...more });
      return out.trim().split(",");
    };
    const home = join(homedir(), process.platform === "darwin" ? "Library/Caches" : ".cache");
    const tuned = join(home, "bunsandbytes/tune.json");
    expect(kept()).toEqual(["./home", join(homedir(), ".cache/huggingface/hub"), tuned]);
    expect(kept({ HF_HOME: "/a" })).toEqual(["/a", "/a/hub", tuned]);
    expect(kept({ HF_HUB_CACHE: "/b", XDG_CACHE_HOME: "/c" })).toEqual(["./home", "/b", "/c/bunsandbytes/tune.json"]);
  });

  test("doctor says that it was not believed", () => {
    const { out } = run([process.execPath, "--config=/dev/null", main, "doctor", "--json"], { BNB_DEVICE: "cpu" });
    const { problems, library } = JSON.parse(out);
    expect(problems).toEqual([expect.stringMatching(/^BNB_LIBRARY=.\/tokenizer.so is not believed: .* a .env file/)]);
    expect(library.origin).toBe("package");
  });
});
