// Runs the examples of docstrings: all of them as one module, whose `// → value` comments are checked.
import type { PublicName } from "./names.ts";

/** The code of a docstring's example; undefined where it has none. */
export function exampleOf({ doc = "" }: PublicName): string | undefined {
  return /^@example\n```ts\n([\s\S]*?)\n```/m.exec(doc)?.[1];
}

/**
 * A module that runs each example by itself, with every name of the package in scope, and prints as JSON what went
 * wrong: a list of `[name, message]`.
 *
 * @param examples the code of each, and whose it is
 * @param names what to import of the package
 */
export function moduleOf(examples: ReadonlyMap<string, string>, names: readonly string[]): string {
  const runs = [...examples].map(
    ([code, name]) => `await run(${JSON.stringify(name)}, async () => {\n${checked(code)}\n});`,
  );
  return [
    `import { ${names.join(", ")} } from "bunsandbytes";`,
    `import { run, expected, failures } from "../../test/docs/runner.ts";`,
    ...runs,
    "process.stdout.write(JSON.stringify(failures));",
  ].join("\n");
}

/** Each line `code; // → value` with a check of what the code, or the variable that it makes, is. */
function checked(code: string): string {
  return code.replaceAll(/^( *)(.*); \/\/ → (.*)$/gm, (_, space, statement, value) => {
    const variable = /^(?:const|using) (\w+) = /.exec(statement)?.[1];
    const condition = /^(if \(.*\)) (.+)$/.exec(statement);
    const check = (what: string) => `expected(${what}, ${JSON.stringify(value)})`;
    if (variable) return `${space}${statement}; ${check(variable)};`;
    if (condition) return `${space}${condition[1]} ${check(condition[2]!)};`;
    return `${space}${check(statement)};`;
  });
}
