// The reading of csrc/bnb.h: every function with its parameters, and every enum, for the tests that hold to it.

const files = ["bnb_types.h", "bnb.h"].map((name) => Bun.file(`${import.meta.dir}/../csrc/${name}`).text());

/** The header's text, with the enums that it includes, without comments. */
export const header = (await Promise.all(files)).join("\n").replace(/\/\*[\s\S]*?\*\//g, "");

export interface Parameter {
  /** As declared, such as `const bnb_tensor *`. */
  readonly type: string;
  readonly name: string;
}

export interface Declaration {
  readonly name: string;
  readonly returns: string;
  readonly parameters: readonly Parameter[];
}

function parameterOf(text: string): Parameter {
  const [, type, name] = /^(.*?)(\w+)$/.exec(text.trim().replace(/\s+/g, " "))!;
  return { type: type!.trim(), name: name! };
}

/** In the header's order. */
export const declarations: readonly Declaration[] = [
  ...header.matchAll(/BNB_API\s+([\w\s]+?\**)\s*\b(bnb_\w+)\(([^)]*)\);/g),
].map(([, returns, name, parameters]) => ({
  name: name!,
  returns: returns!.trim().replace(/\s+/g, " "),
  parameters: parameters === "void" ? [] : parameters!.split(",").map(parameterOf),
}));

/** An enum's members and their values, as they are spelled there. */
export function enumMembers(name: string): [member: string, value: number][] {
  const body = new RegExp(`typedef enum ${name} \\{([\\s\\S]*?)\\}`).exec(header)![1]!;
  return [...body.matchAll(/(\w+)\s*=\s*(\d+)/g)].map(([, member, value]) => [member!, Number(value)]);
}
