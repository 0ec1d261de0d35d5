// What is believed of the environment. Bun puts into process.env what a `.env` file of the current folder says,
// and that may be the folder of a model from a stranger, who must name neither code to run nor who gets the user's
// secrets.
import { libc } from "./libc.ts";

/**
 * A variable, if this process was started with it; `undefined` too where it is empty, or a `.env` file or code says it.
 */
export function startedWith(name: string): string | undefined {
  const value = process.env[name];
  return value && libc.getenv(name) === value ? value : undefined;
}
