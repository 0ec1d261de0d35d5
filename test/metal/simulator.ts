// Owns the simulator as tests use it: compile a Metal source, run one of its kernels, get its buffers back.

import { dlopen, FFIType } from "bun:ffi";
import { existsSync, readFileSync } from "node:fs";
import { type Dialect, type KernelInfo, translate } from "../../scripts/msl/translate.ts";
import { lint } from "./lint.ts";
import { cached, compileKernels, type Functions, type Mode, runtimeLibrary, writeWhole } from "./toolchain.ts";

export type { Mode } from "./toolchain.ts";

const { ptr, cstring, u32, i32, u64: usize } = FFIType;

type Address = NonNullable<ReturnType<ReturnType<typeof openRuntime>["sim_allocate"]>>;

function openRuntime() {
  return dlopen(runtimeLibrary(), {
    sim_errors: { args: [], returns: cstring },
    sim_library_open: { args: [cstring], returns: ptr },
    sim_library_kernel: { args: [ptr, cstring], returns: ptr },
    sim_library_constant_bytes: { args: [ptr, u32], returns: u32 },
    sim_kernel_threadgroup_bytes: { args: [ptr], returns: usize },
    sim_allocate: { args: [usize], returns: ptr },
    sim_release: { args: [ptr], returns: FFIType.void },
    sim_write: { args: [ptr, ptr, usize], returns: FFIType.void },
    sim_read: { args: [ptr, ptr, usize], returns: FFIType.void },
    sim_launch_new: { args: [ptr], returns: ptr },
    sim_launch_free: { args: [ptr], returns: FFIType.void },
    sim_launch_buffer: { args: [ptr, u32, ptr, usize, u32], returns: i32 },
    sim_launch_bytes: { args: [ptr, u32, ptr, usize], returns: i32 },
    sim_launch_threadgroup: { args: [ptr, u32, usize], returns: i32 },
    sim_launch_constant: { args: [ptr, u32, ptr, usize], returns: i32 },
    sim_run: { args: [ptr, u32, u32, u32, u32, u32, u32, u32, u32], returns: i32 },
  }).symbols;
}

let opened: ReturnType<typeof openRuntime> | undefined;
const runtime = () => {
  opened ??= openRuntime();
  return opened;
};

/** What a kernel did wrong, one line an error: `file:line: kind: text [kernel, thread]`. */
export class KernelError extends Error {
  override readonly name = "KernelError";
}

/** Memory of a typed array that is not shared. */
export type View = NodeJS.TypedArray<ArrayBuffer>;

export interface RunOptions {
  /** Function constants by index, as numbers of the type that the source declares. */
  readonly constants?: Readonly<Record<number, number | boolean>>;
  /** Small values by buffer index, as setBytes gives them. */
  readonly args?: Readonly<Record<number, View>>;
  /** Buffers by index. Those that the kernel may write are written back when it is done. */
  readonly buffers?: Readonly<Record<number, View>>;
  /** Indices of buffers whose first contents the kernel must not read (checked mode sees it). */
  readonly fresh?: readonly number[];
  /** Bytes of threadgroup arguments by index; a multiple of 16. */
  readonly threadgroup?: Readonly<Record<number, number>>;
  /** Threadgroups in the grid: x, or x, y, z. */
  readonly grid: number | readonly [number, number, number];
  /** Threads of a threadgroup. */
  readonly group: number | readonly [number, number, number];
  /** 0 (the default) runs in order; others shuffle threads and threadgroups. */
  readonly seed?: number;
  /** Lets simdgroup operations run without lanes that returned, as third-party kernels expect. */
  readonly lax?: boolean;
  /** Takes subnormal fp32 numbers for zeros, as Apple's GPUs do; BNB_SIM_FLUSH=0 says no where it isn't given. */
  readonly flush?: boolean;
  /** Allows more threadgroup memory than Apple's GPUs have, as NVIDIA's do. */
  readonly large?: boolean;
}

const triple = (size: RunOptions["grid"]): readonly [number, number, number] =>
  typeof size === "number" ? [size, 1, 1] : size;

function encodeConstant(value: number | boolean, type: string): Uint8Array {
  const view = new DataView(new ArrayBuffer(4));
  const number = Number(value);
  if (type === "float") view.setFloat32(0, number, true);
  else if (type === "half") view.setFloat16(0, number, true);
  else view.setInt32(0, number, true);
  return new Uint8Array(view.buffer);
}

/** A compiled Metal source. */
export class MetalLibrary {
  constructor(
    readonly path: string,
    readonly kernels: readonly KernelInfo[],
    private readonly handle: Address,
  ) {}

  private find(name: string): { info: KernelInfo; kernel: Address } {
    const info = this.kernels.find((kernel) => kernel.name === name);
    const kernel = runtime().sim_library_kernel(this.handle, Buffer.from(`${name}\0`));
    if (!info || !kernel) {
      throw new TypeError(`no kernel is named ${name}; there are ${this.kernels.map((k) => k.name).join(", ")}`);
    }
    return { info, kernel };
  }

  /** Bytes of threadgroup memory that the kernel declares, as Metal's staticThreadgroupMemoryLength. */
  threadgroupBytes(name: string): number {
    return Number(runtime().sim_kernel_threadgroup_bytes(this.find(name).kernel));
  }

  /**
   * Runs a kernel over `grid` threadgroups of `group` threads and waits.
   *
   * @throws KernelError if the launch is illegal or the kernel did something wrong
   */
  run(name: string, options: RunOptions): void {
    const { info, kernel } = this.find(name);
    const sim = runtime();
    const launch = sim.sim_launch_new(kernel)!;
    const memory = new Map<number, Address>();
    const flushes = options.flush ?? process.env.BNB_SIM_FLUSH !== "0";
    const flags = (options.lax ? 1 : 0) | (flushes ? 2 : 0) | (options.large ? 4 : 0);
    const check = (status: number) => {
      if (status !== 0) throw new KernelError(String(sim.sim_errors()).trim());
    };
    try {
      for (const [index, value] of Object.entries(options.constants ?? {})) {
        const declared = info.constants.find((constant) => constant.index === Number(index));
        const bytes = sim.sim_library_constant_bytes(this.handle, Number(index));
        if (bytes)
          check(sim.sim_launch_constant(launch, Number(index), encodeConstant(value, declared?.type ?? "int"), bytes));
      }
      for (const [index, view] of Object.entries(options.args ?? {})) {
        check(sim.sim_launch_bytes(launch, Number(index), view, view.byteLength));
      }
      for (const [index, view] of Object.entries(options.buffers ?? {})) {
        const at = sim.sim_allocate(view.byteLength);
        if (!at) throw new RangeError(`buffer ${index} of ${view.byteLength} bytes cannot be allocated`);
        memory.set(Number(index), at);
        sim.sim_write(at, view, view.byteLength);
        check(
          sim.sim_launch_buffer(
            launch,
            Number(index),
            at,
            view.byteLength,
            options.fresh?.includes(Number(index)) ? 1 : 0,
          ),
        );
      }
      for (const [index, bytes] of Object.entries(options.threadgroup ?? {})) {
        check(sim.sim_launch_threadgroup(launch, Number(index), bytes));
      }
      check(sim.sim_run(launch, ...triple(options.grid), ...triple(options.group), options.seed ?? 0, flags));
      for (const buffer of info.buffers) {
        const view = options.buffers?.[buffer.index];
        if (view && !buffer.readOnly) sim.sim_read(view, memory.get(buffer.index)!, view.byteLength);
      }
    } finally {
      sim.sim_launch_free(launch);
      for (const at of memory.values()) sim.sim_release(at);
    }
  }
}

export interface CompileOptions {
  readonly mode?: Mode;
  /** Metal's math functions where the source names neither form; BNB_SIM_FUNCTIONS says so where it isn't given. */
  readonly functions?: Functions;
  /** The file name for places before the first `#line`; by default Metal's own, so that all share what is compiled. */
  readonly name?: string;
  readonly dialect?: Dialect;
  /** Folders for `#include "…"`, which only third-party sources have. */
  readonly includes?: readonly string[];
  /** Host names of the kernels to compile, out of sources that hold hundreds; all if not given. */
  readonly only?: readonly string[];
  /** Refuses what the lint refuses too, as Apple's compiler would. */
  readonly linted?: boolean;
}

/** Translates and compiles a source, or finds it compiled, and says where the library is and what kernels it holds. */
export function compileToFile(source: string, options: CompileOptions = {}): { path: string; kernels: KernelInfo[] } {
  const { mode = "fast", name = "program_source", dialect = "ours", includes = [], only, linted = false } = options;
  const { functions = process.env.BNB_SIM_FUNCTIONS === "fast" ? "fast" : "precise" } = options;
  const manifest = cached(
    ".json",
    source,
    mode,
    functions,
    name,
    dialect,
    `${linted}`,
    ...includes,
    "only",
    ...(only ?? []),
  );
  if (existsSync(manifest)) {
    const known = JSON.parse(readFileSync(manifest, "utf8"));
    if (existsSync(known.path)) return known;
  }
  if (linted) lint(source, name);
  const { cpp, kernels } = translate(source, name, { dialect, includes, ...(only ? { only } : {}) });
  const compiled = { path: compileKernels(cpp, name, mode, functions), kernels: [...kernels] };
  writeWhole(manifest, JSON.stringify(compiled));
  return compiled;
}

/**
 * Compiles a Metal source for the simulator, once for each content, mode and toolchain (.cache/metal/ keeps the
 * result).
 *
 * @throws TranslateError with `file:line` if the source is not accepted
 */
export function compile(source: string, options: CompileOptions = {}): MetalLibrary {
  const { path, kernels } = compileToFile(source, options);
  return openLibrary(path, kernels);
}

/** Opens a library of kernels that stands already. */
export function openLibrary(path: string, kernels: readonly KernelInfo[]): MetalLibrary {
  const handle = runtime().sim_library_open(Buffer.from(`${path}\0`));
  if (!handle) throw new Error(String(runtime().sim_errors()));
  return new MetalLibrary(path, kernels, handle);
}
