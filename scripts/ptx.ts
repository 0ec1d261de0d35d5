// Owns the CUDA kernels' text: metal/ and cuda/ translated to CUDA C++, compiled to PTX by zig's clang with nothing of
// NVIDIA's, and packed into one file beside the libraries, for every processor takes the same. Imports no packages:
// setup needs it.
//
// The pack is a row of texts, each after a line `// bnb <family> <kernel> <architecture> <bytes of the text>`. In a
// text BNB0, BNB1, … stand for the function constants, BNB_THREADS for a threadgroup's threads, and numbers with a sign
// for what is so far off: csrc/gpu/cuda/text.c replaces them. The file is compressed (RFC 8878): src/library.ts hands
// its contents to the library where a GPU is.
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { constants as zstd, zstdCompressSync } from "node:zlib";
import { libraryFolder } from "./msl/clang.ts";
import { cudaFamilies, families, familySource, isHoppers } from "./msl/families.ts";
import { translate } from "./msl/translate.ts";
import { root, say, stop } from "./run.ts";
import { findZig, zigVersion } from "./zig.ts";

const cache = join(root, ".cache/ptx");

/** Where the pack lies, compressed: an empty file where nobody asked for it. package.json's `imports` name it. */
export const kernelsFile = join(root, "zig-out/lib/kernels.ptx.zst");

/** What the pack is made of. */
export const packInputs = ["metal", "cuda", "scripts/msl", "scripts/ptx.ts", "scripts/zig.ts"].map((path) =>
  join(root, path),
);

/** What a text is compiled for: any GPU from this architecture on, or those of Hopper alone. */
const architectures = { sm_80: "ptx74", sm_90: "ptx78", sm_90a: "ptx80" } as const;
type Architecture = keyof typeof architectures;

const flags = [
  ...["clang", "-x", "cuda", "--cuda-device-only", "-nocudainc", "-nocudalib", "-nostdinc", "-std=c++20", "-O3"],
  ...["-ffp-contract=on", "-ferror-limit=5", "-Wno-everything", "-S", `-I${libraryFolder}`],
];

/** A kernel's C++ on its way to PTX. */
interface Source {
  readonly family: string;
  readonly kernel: string;
  readonly architecture: Architecture;
  readonly cpp: string;
}

/** A family in Metal's language. */
interface Family {
  readonly family: string;
  readonly source: string;
}

/** Kernels that NVIDIA's GPUs have no use for: a row by eight rows of w a simdgroup is Apple's GPUs'. */
const leftOut: ReadonlySet<string> = new Set(["matmul_vector_1_wide"]);

function translated({ family, source }: Family): Source[] {
  const { kernels: all } = translate(source, family, { target: "cuda" });
  const kernels = all.filter(({ name }) => !leftOut.has(name));
  const compiledFor: Architecture[] = isHoppers(family) ? ["sm_90a"] : ["sm_80"];
  if (source.includes("nv_wait_for_last")) compiledFor.push("sm_90");
  return kernels.flatMap(({ name }) => {
    const { cpp } = translate(source, family, { target: "cuda", only: [name] });
    return compiledFor.map((architecture) => ({ family, kernel: name, architecture, cpp }));
  });
}

function headers(): string {
  const files = readdirSync(libraryFolder, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".h"));
  return files
    .sort()
    .map((file) => readFileSync(join(libraryFolder, file), "utf8"))
    .join("\0");
}

/** What the assembler is told of kernels besides their threads. */
const directives: readonly (readonly [RegExp, string])[] = [
  // Two threadgroups a multiprocessor, so that one loads while another's table is filled.
  [/^matmul_few_1_2_8_choose/, "\n.minnctapersm 2"],
  // One, whose simdgroups give each other registers; and two of them are a pair.
  [/^(dense|matmul)_hopper/, "\n.minnctapersm 1\n.reqnctapercluster 2,1,1"],
];

/** The driver's words in the place of what clang wrote, and nothing that the GPU's assembler would pass over. */
function withWords(kernel: string, ptx: string): string {
  const further = directives.find(([kernels]) => kernels.test(kernel))?.[1] ?? "";
  const threads = ptx.replace(/^\.maxntid 1024(, 1, 1)?$/m, `.maxntid BNB_THREADS, 1, 1${further}`);
  if (!threads.includes("BNB_THREADS"))
    throw new Error("the PTX has no .maxntid: clang writes it otherwise than expected");
  const bare = threads.replace(/\/\/.*$/gm, "").replace(/[ \t]+/g, " ");
  return bare
    .replace(/^ | $/gm, "")
    .replace(/, /g, ",")
    .replace(/\n{2,}/g, "\n")
    .replace(/^\n/, "");
}

async function compile(source: Source, library: string): Promise<string> {
  const { family, kernel, architecture, cpp } = source;
  const words = String(withWords) + String(directives);
  const key = [zigVersion, flags.join(" "), architecture, library, cpp, words].join("\0");
  const hash = new Bun.CryptoHasher("sha256").update(key).digest("hex").slice(0, 24);
  const path = join(cache, `${hash}.ptx`);
  if (existsSync(path)) return readFileSync(path, "utf8");
  const cu = join(cache, `${hash}.cu`);
  const partial = `${path}.${process.pid}`;
  writeFileSync(cu, cpp);
  const target = [`--cuda-gpu-arch=${architecture}`, `--cuda-feature=+${architectures[architecture]}`];
  if (architecture === "sm_90a") target.push("-DSIM_HOPPER");
  if (architecture === "sm_90") target.push("-DSIM_OVERLAP");
  const clang = Bun.spawn([findZig(), ...flags, ...target, cu, "-o", partial], { stderr: "pipe", stdout: "ignore" });
  const [status, message] = await Promise.all([clang.exited, new Response(clang.stderr).text()]);
  if (status !== 0) stop(`The kernel ${kernel} of ${family} could not be compiled to PTX:\n${message}`);
  writeFileSync(partial, withWords(kernel, readFileSync(partial, "utf8")));
  renameSync(partial, path);
  return readFileSync(path, "utf8");
}

/** What a text counts: labels, and registers of four kinds. */
const counted = /(\$L__BB0_|%(?:p|rd|rs|r))(\d+)/g;

/** Numbers that differ by less are written by their distance; half and twice as much were measured to be larger. */
const near = 32;

/**
 * The text with labels and registers that are near written as `%r-3`, by their distance from the first of their kind in
 * the last line above that has one. The turns of an unrolled loop, and a kernel's variants, so have lines alike: the
 * compressed pack is less than half as large. Nothing is lost.
 */
export function withDistances(text: string): string {
  const ambiguous = /(\$L__BB0_|%(?:p|rd|rs|r))[-+]/.exec(text);
  if (ambiguous) throw new Error(`the PTX has ${ambiguous[0]}, which in a pack stands for a distance`);
  const bases = new Map<string, number>();
  const lines = text.split("\n").map((line) => {
    const firsts = new Map<string, number>();
    const written = line.replace(counted, (word, kind: string, digits: string) => {
      const number = Number(digits);
      const distance = number - (bases.get(kind) ?? 0);
      if (!firsts.has(kind)) firsts.set(kind, number);
      return Math.abs(distance) < near ? `${kind}${distance < 0 ? "" : "+"}${distance}` : word;
    });
    for (const [kind, number] of firsts) bases.set(kind, number);
    return written;
  });
  return lines.join("\n");
}

/** All constants, so that a patched text says what they are. */
const constants = Array.from({ length: 10 }, (_, i) => `BNB${i}`).join(" ");

async function packed(sources: readonly Source[]): Promise<string> {
  mkdirSync(cache, { recursive: true });
  const library = headers();
  const texts: string[] = [];
  let next = 0;
  const work = async () => {
    for (let at = next++; at < sources.length; at = next++) texts[at] = await compile(sources[at]!, library);
  };
  await Promise.all(Array.from({ length: Math.max(1, availableParallelism() - 1) }, work));
  const rows = sources.map(({ family, kernel, architecture }, at) => {
    const text = `// ${family} ${kernel} constants ${constants}\n${withDistances(texts[at]!)}`;
    return `// bnb ${family} ${kernel} ${architecture} ${Buffer.byteLength(text)}\n${text}`;
  });
  return rows.join("");
}

/** The pack of these families alone, for tests. */
export const packOf = (families: readonly Family[]): Promise<string> => packed(families.flatMap(translated));

/** Levels of zstd's: one that is quick, and one for what is published, which saves a fifth in ten seconds. */
export type Effort = 9 | 19;

/** Writes the pack of all kernels; what was compiled before is taken from .cache/ptx. */
export async function writeKernels(to: string, effort: Effort): Promise<void> {
  const ours = [...families, ...cudaFamilies].map((family) => ({ family, source: familySource(family) }));
  const text = await packed(ours.flatMap(translated));
  // A window over the whole: texts of a family repeat one another.
  const params = { [zstd.ZSTD_c_compressionLevel]: effort, [zstd.ZSTD_c_windowLog]: 25 };
  const partial = `${to}.${process.pid}`;
  mkdirSync(dirname(to), { recursive: true });
  writeFileSync(partial, zstdCompressSync(text, { params }));
  renameSync(partial, to);
}

if (import.meta.main) {
  const started = performance.now();
  await writeKernels(kernelsFile, 19);
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  say(`Wrote ${kernelsFile}, ${(Bun.file(kernelsFile).size / 1e6).toFixed(2)} MB, in ${seconds} s.`);
}
