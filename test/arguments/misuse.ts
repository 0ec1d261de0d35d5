// One property for every public function: garbage in the place of one argument is a BnbError that names the argument.
import fc from "fast-check";
import { BnbError } from "../../src/index.ts";
import type { Callable } from "./callables.ts";
import { fits, garbage } from "./garbage.ts";
import { type Call, run } from "./recipes.ts";

/** A place where an argument stands: by its number, or a member of an object of options. */
interface Place {
  readonly path: readonly (string | number)[];
  readonly name: string;
}

/** Arguments whose members are arguments themselves. */
const optionNames = /^(options|parts|config|dict)$/;

const isOptions = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype;

function placesOf({ parameters }: Callable, { args }: Call): Place[] {
  return parameters.flatMap((name, index) => {
    const value = args[index];
    const members = optionNames.test(name) && isOptions(value) ? Object.keys(value) : [];
    return [{ path: [index], name }, ...members.map((member) => ({ path: [index, member], name: member }))];
  });
}

/** Arguments that say how much memory is asked for. */
const sizes = /^(n|r|rows|shape|numEmbeddings|embeddingDim|inFeatures|outFeatures)$/;

/** Arguments that name files: what is wrong with such a text is told by itself. */
const paths = /^(path|input|output|errorAgainst|base)$/;

/** Whether so much memory would be asked for that a test should not, and not so much that it is refused at once. */
function isTooLarge({ name }: Place, given: unknown): boolean {
  const all = Array.isArray(given) ? given : [given];
  const elements = all.reduce((product, n) => product * (typeof n === "number" ? n : 1), 1);
  return sizes.test(name) && elements > 2 ** 20 && elements < 2 ** 50;
}

const words = (name: string) => new RegExp(`\\b${name}\\b`);

/** What is wrong with the answer to one value in one place; undefined where it is right. */
async function answer(callable: Callable, call: Call, places: Place[], at: number, make: (valid: unknown) => unknown) {
  const place = places[at]!;
  const { path, name } = place;
  const args = [...call.args];
  const [index, member] = path as [number, string?];
  const valid = member === undefined ? args[index] : (args[index] as Record<string, unknown>)[member];
  const given = make(valid);
  args[index] = member === undefined ? given : { ...(args[index] as object), [member]: given };
  // A path of garbage would be written to, wherever that is.
  if (typeof valid === "function" && typeof given === "function") return undefined; // it is called, whatever it does
  if (isTooLarge(place, given) || (paths.test(name) && typeof given === "string")) return undefined;
  const optional = member !== undefined || index >= requiredOf(callable);
  let error: unknown;
  try {
    await run(callable, { ...call, args });
    return fits(valid, given, optional, name) ? undefined : `${name} = ${shown(given)} is taken`;
  } catch (thrown) {
    error = thrown;
  }
  if (!(error instanceof BnbError)) return `${name} = ${shown(given)} is ${String(error)}`;
  const { message } = error;
  // What is wrong with a file or one of its tensors is told with their names before it.
  const ofFile = callable.exported.startsWith("checkpoint.") && fits(valid, given, optional, name);
  if (!ofFile && !speakers(callable, call).some((name) => message.startsWith(`${name}: `)))
    return `${name} = ${shown(given)} is answered by another: ${message}`;
  // What is of the right kind, but does not fit the other arguments, is told by any name of theirs.
  const names = fits(valid, given, optional, name) ? places.map((place) => place.name) : [name];
  return names.some((name) => words(name).test(message))
    ? undefined
    : `${name} = ${shown(given)} is not named: ${message}`;
}

const shown = (value: unknown) => Bun.inspect(value, { depth: 1 }).slice(0, 120);

/** Arguments that can't be left out: those before the first that has a default, or is said to be optional here. */
function requiredOf({ name, parameters }: Callable): number {
  const optionals: Record<string, number> = {
    "Tensor.from": 1,
    "Tensor.slice": 0,
    fromStateDict: 1,
    loadWeight: 2,
    createNormalMap: 0,
    "Device.open": 0,
  };
  if (name.startsWith("create")) return 0;
  const options = parameters.findIndex((parameter) => parameter === "options" || parameter === "device");
  return optionals[name] ?? (options < 0 || parameters[options] === "device" ? parameters.length : options);
}

/** Who may speak: the function, or the class that it makes or belongs to. */
function speakers({ name, kind }: Callable, { on }: Call): string[] {
  if (kind === "static") return [name, name.slice(0, name.indexOf("."))];
  return on ? [name, `${on.constructor.name}.${name.slice(name.indexOf(".") + 1)}`] : [name];
}

/** The property, for fast-check. */
export function misuse(callable: Callable, recipe: () => Call) {
  return fc.asyncProperty(fc.nat(), garbage(), async (n, make) => {
    const call = recipe();
    const places = placesOf(callable, call);
    const wrong = await answer(callable, call, places, n % places.length, make);
    if (wrong !== undefined) throw new Error(wrong);
  });
}
