// Owns what follows the translated declarations: which kernels there are under which host name, and the runtime's
// table.

import { cudaEntry } from "./cuda.ts";
import type { BufferInfo, KernelFunction, KernelInfo, Parameter, Scope } from "./scope.ts";
import { TranslateError } from "./tokens.ts";

/** A kernel under its host name: a plain one, or an instance of a template. */
export interface Entry {
  readonly hostName: string;
  readonly kernel: KernelFunction;
  readonly templateArguments: string;
}

/** Everything that a function's body names, and the functions and constants that it names, and so on. */
function reach(scope: Scope, name: string): Set<string> {
  const found = new Set<string>();
  const queue = [name];
  for (let at = queue.pop(); at !== undefined; at = queue.pop()) {
    for (const word of scope.uses.get(at) ?? []) {
      if (found.has(word)) continue;
      found.add(word);
      queue.push(word);
    }
  }
  return found;
}

function refuseRecursion(scope: Scope): void {
  if (scope.dialect === "any") return;
  for (const [name, { count, at }] of scope.plainFunctions) {
    if (count === 1 && reach(scope, name).has(name)) {
      throw new TranslateError(`the function ${name} calls itself`, at.file, at.line);
    }
  }
}

function entriesOf(scope: Scope): Entry[] {
  const entries: Entry[] = [];
  for (const kernel of scope.kernels.values()) {
    if (!kernel.templateNames)
      entries.push({ hostName: kernel.hostName ?? kernel.name, kernel, templateArguments: "" });
  }
  for (const { hostName, kernel: name, templateArguments, at } of scope.instances) {
    const kernel = scope.kernels.get(name);
    if (!kernel) throw new TranslateError(`an instance of ${name}, which is no kernel template`, at.file, at.line);
    entries.push({ hostName, kernel, templateArguments });
  }
  const names = new Set<string>();
  for (const { hostName, kernel } of entries) {
    if (names.has(hostName)) {
      throw new TranslateError(`two kernels have the host name ${hostName}`, kernel.at.file, kernel.at.line);
    }
    names.add(hostName);
  }
  return entries;
}

function constantsOf(scope: Scope, kernel: string): KernelInfo["constants"] {
  const reached = reach(scope, kernel);
  return [...scope.functionConstants.values()]
    .filter((constant) => reached.has(constant.name))
    .map((constant) => ({ ...constant, required: !scope.optionalConstants.has(constant.name) }));
}

/**
 * The kernels of a translated source, and the C++ that makes them known to the runtime (or has the lint check
 * them).
 */
export function kernelTable(scope: Scope, only?: readonly string[]): { kernels: KernelInfo[]; cpp: string } {
  refuseRecursion(scope);
  const entries = entriesOf(scope).filter(({ hostName }) => !only || only.includes(hostName));
  const kernels = entries.map(({ hostName, kernel }) => ({
    name: hostName,
    buffers: kernel.parameters.filter((p): p is { kind: "buffer" } & BufferInfo => p.kind === "buffer"),
    threadgroup: kernel.parameters.filter((p) => p.kind === "threadgroup"),
    constants: constantsOf(scope, kernel.name),
    maxThreads: kernel.maxThreads,
  }));
  if (scope.target === "lint") return { kernels, cpp: instances(entries) };
  if (scope.target === "cuda") return { kernels, cpp: entries.map(cudaEntry).join("\n") };
  return { kernels, cpp: registration(scope, entries, kernels) };
}

const functionOf = ({ kernel, templateArguments }: Entry) => `&${kernel.name}${templateArguments}`;

/** Mentions every kernel, so that the compiler instantiates and checks the templates. */
function instances(entries: readonly Entry[]): string {
  return entries.map((entry, n) => `void *const sim_instance_${n} = (void *)(${functionOf(entry)});\n`).join("");
}

const kinds = {
  buffer: "SIM_PARAMETER_BUFFER",
  threadgroup: "SIM_PARAMETER_THREADGROUP",
  value: "SIM_PARAMETER_VALUE",
};

function parameterRow(parameter: Parameter, bytes: string): string {
  const index = parameter.kind === "value" ? parameter.value : parameter.index;
  const readOnly = parameter.kind === "buffer" && parameter.readOnly ? 1 : 0;
  return `{"${parameter.name}", ${kinds[parameter.kind]}, ${index}, ${readOnly}, ${bytes}}`;
}

function registration(scope: Scope, entries: readonly Entry[], kernels: readonly KernelInfo[]): string {
  const lines = ["static void sim_derive() {"];
  for (const [name, initialiser] of scope.derived) lines.push(`  ${name} = ${initialiser};`);
  lines.push("}");
  const rows = entries.map((entry, n) => {
    const { hostName, kernel } = entry;
    const values = kernel.parameters.map((p) => (p.kind === "value" ? `, ${p.value}` : ", -1")).join("");
    const parameters = kernel.parameters.map((p, at) => parameterRow(p, `sim_entry_${n}::bytes[${at}]`));
    const needs = kernels[n]!.constants.flatMap((constant) => (constant.required ? [constant.index] : []));
    lines.push(`using sim_entry_${n} = sim::entry<${functionOf(entry)}${values}>;`);
    lines.push(`static const sim_parameter sim_parameters_${n}[] = {${[...parameters, "{}"].join(", ")}};`);
    lines.push(`static const sim_u32 sim_constants_${n}[] = {${[...needs, 0].join(", ")}};`);
    return (
      `{${JSON.stringify(hostName)}, (const void *)${functionOf(entry)}, sim_entry_${n}::run, sim_parameters_${n}, ` +
      `${parameters.length}, ${kernel.maxThreads ?? "0"}, sim_constants_${n}, ${needs.length}}`
    );
  });
  const constants = [...scope.functionConstants.values()];
  const constantRows = constants.map(
    (c) => `{"${c.name}", ${c.index}, ${c.bytes}, &${c.name}, &sim_defined_${c.name}}`,
  );
  lines.push(
    `static const sim_kernel_entry sim_kernels[] = {${[...rows, "{}"].join(",\n")}};`,
    `static const sim_constant_entry sim_constants[] = {${[...constantRows, "{}"].join(", ")}};`,
    `extern "C" __attribute__((visibility("default"), used)) const sim_module sim_translated_module = {`,
    `  sim_kernels, ${rows.length}, sim_constants, ${constants.length}, sim_derive, &sim::variables, SIM_IS_CHECKED};`,
    "",
  );
  return lines.join("\n");
}
