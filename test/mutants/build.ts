// Builds the mutation run's library for this machine: once whole, then of each change only the unit that it is in.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename } from "node:path";
import { formsFlags, ownInstructionSets, sources } from "../../scripts/compile.ts";
import { builtLibrary, hostPlatform } from "../../scripts/platforms.ts";
import { findZig } from "../../scripts/zig.ts";

/** Runs a command in the copy that is changed; false where it fails. */
export type Run = (command: string[]) => Promise<boolean>;

/** "same" is a change that the compiler makes nothing of: on this machine nothing can notice it. */
export type Built = "built" | "same" | "fails";

/** This processor's best instruction set, and no other. */
const set = ownInstructionSets(hostPlatform())[0]!;

/** An index beyond the end of an array ends the process: what is there would else be anyone's guess. */
const bounds = ["-fno-sanitize=all", "-fsanitize=bounds", "-fsanitize-trap=bounds"];

/** What a library is linked from, by the source that each comes from. */
export class Library {
  readonly #copy: string;
  readonly #run: Run;
  readonly #sound = new Map<string, string>();

  /** @param copy the folder that the sources lie in */
  constructor(copy: string, run: Run) {
    this.#copy = copy;
    this.#run = run;
    mkdirSync(`${copy}/.cache/objects`, { recursive: true });
  }

  /** The objects of the sources as they stand, kept for the next run. */
  async make(): Promise<void> {
    const inputs = [...new Bun.Glob("{csrc,metal}/**/*").scanSync(this.#copy), "test/mutants/build.ts"].sort();
    const texts = inputs.map((file) => `${file}\0${readFileSync(`${this.#copy}/${file}`, "utf8")}`);
    const state = Bun.hash(texts.join("\0")).toString();
    const stamp = this.#objectOf("stamp");
    const isMade = existsSync(stamp) && readFileSync(stamp, "utf8") === state;
    for (const source of [sources.forms, ...sources.sources]) {
      const object = this.#objectOf(source);
      if (!isMade && !(await this.#compile(source, object))) throw new Error(`${source} does not compile`);
      this.#sound.set(source, object);
    }
    writeFileSync(stamp, state);
  }

  /** The library with the file changed. */
  async change(file: string): Promise<Built> {
    const source = unitOf(file);
    const object = this.#objectOf(`changed/${source}`);
    if (!(await this.#compile(source, object))) return "fails";
    if (readFileSync(object).equals(readFileSync(this.#sound.get(source)!))) return "same";
    return (await this.#link(new Map([...this.#sound, [source, object]]))) ? "built" : "fails";
  }

  /** The library as the sources stand. */
  async restore(): Promise<void> {
    if (!(await this.#link(this.#sound))) throw new Error("the copy does not link");
  }

  #objectOf(source: string): string {
    return `${this.#copy}/.cache/objects/${source.replaceAll("/", "-")}.o`;
  }

  #compile(source: string, object: string): Promise<boolean> {
    const isForms = source === sources.forms;
    const { target } = hostPlatform();
    const cpu = isForms ? set.cpu : "baseline";
    const tables = isForms ? [`-DISA=${set.name}`] : formsFlags([set]);
    const flags = ["-target", target, `-mcpu=${cpu}`, "-O2", ...bounds, "-g0", ...sources.flags, ...tables];
    return this.#run([findZig(), "cc", ...flags, "--embed-dir=metal", "-c", `csrc/${source}`, "-o", object]);
  }

  #link(objects: ReadonlyMap<string, string>): Promise<boolean> {
    const library = `${this.#copy}/zig-out/lib/${hostPlatform().name}/${basename(builtLibrary(hostPlatform()))}`;
    const flags = ["-target", hostPlatform().target, "-shared", "-s"];
    return this.#run([findZig(), "cc", ...flags, ...objects.values(), "-o", library]);
  }
}

/** The source that a file is compiled in. */
function unitOf(file: string): string {
  if (file.startsWith("metal/")) return "gpu/kernels.c";
  const source = file.replace(/^csrc\//, "");
  return source.endsWith(".h") ? sources.forms : source;
}
