// What the target "cuda" writes otherwise than the simulator's: constants, threadgroup variables and kernels' entries.
//
// A function constant is a word in the PTX, BNB0, BNB1 and so on, which the driver replaces by its value before the
// GPU's assembler sees the text and folds it. library/cuda.h has what this text leans on.

import type { BufferInfo } from "./scope.ts";
import type { Entry } from "./table.ts";

/** `constant uint X [[function_constant(index)]]`. */
export function patchedConstant(index: number, name: string): string {
  return `static constexpr sim::patched<${index}> ${name}{};`;
}

/** A global that is computed from function constants: worked out where it is used. */
export function derivedConstant(name: string, type: string, initialiser: string): string {
  const kind = `sim_derived_${name}`;
  return `static constexpr struct ${kind} { SIM_INLINE operator ${type}() const { return ${initialiser}; } } ${name}{};`;
}

/** A kernel's own threadgroup variable. */
export function sharedVariable(id: number, name: string, type: string, dimensions: string): string {
  return `typedef ${type} sim_type_${id}${dimensions}; __shared__ alignas(16) sim_type_${id} ${name};`;
}

/**
 * A kernel's entry `bnb_<host name>`: the struct at buffer 0 is a parameter by value, and buffers 1 to the last are
 * pointers, also those that the kernel lacks, so that a launch gives its bindings in their order.
 */
export function cudaEntry({ hostName, kernel, templateArguments }: Entry): string {
  const buffers = kernel.parameters.filter((p): p is { kind: "buffer" } & BufferInfo => p.kind === "buffer");
  const last = Math.max(0, ...buffers.map((b) => b.index));
  const name = `${kernel.name}${templateArguments}`;
  const types = `sim::types_of<decltype(&${name})>`;
  const parameters: string[] = [];
  for (let index = 0; index <= last; index++) {
    const at = kernel.parameters.findIndex((p) => p.kind === "buffer" && p.index === index);
    const buffer = buffers.find((b) => b.index === index);
    if (index > 0) parameters.push(`${buffer?.readOnly ? "const " : ""}void *__restrict__ b${index}`);
    else if (buffer) parameters.push(`const sim::value_of<${types}, ${at}> b0 __grid_constant__`);
  }
  const given = kernel.parameters.map((p, at) => {
    const type = `sim::nth<${types}, ${at}>`;
    if (p.kind === "value") return `sim::position<${type}>(${p.value})`;
    if (p.kind === "threadgroup") return `(${type})sim_shared`;
    if (p.index === 0) return p.reference ? "b0" : "&b0";
    return p.reference ? `*(sim::referred<${type}> *)b${p.index}` : `(${type})b${p.index}`;
  });
  return (
    `extern "C" __global__ void __launch_bounds__(SIM_MAX_THREADS) bnb_${hostName}(${parameters.join(", ")}) {\n` +
    `  ${name}(${given.join(", ")});\n}\n`
  );
}
