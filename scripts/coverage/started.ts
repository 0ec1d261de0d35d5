// What a process starts while lines are counted counts too: Workers, and processes of Bun, whatever environment they
// are given.
import { countersFolder } from "./counters.ts";

const variable = "COUNTED_STATEMENTS";

/** The folder of the copies that count; undefined where nothing is counted. */
export const statementsFolder = (): string | undefined => process.env[variable] || undefined;

/** Bun as a shell or env is given it. */
const bun = /(^|[/ ])bun( |$)/;

interface Options {
  env?: Record<string, string | undefined>;
}

/** From now on. */
export function countStarted(): void {
  const preload = `${import.meta.dir}/processes.ts`;
  const inherited = { ...process.env }; // what Bun hands on by itself: the environment that this process began with
  const ours = { COUNTERS_FOLDER: countersFolder(), [variable]: statementsFolder() };

  // Executables are left alone: what is compiled into one counts nothing, and its environment may be what is tested.
  // So is what counts by itself.
  const counts = (command: readonly string[], env: Options["env"] = {}) =>
    [...command, ...Object.values(env)].some((word = "") => word.includes(process.execPath) || bun.test(word)) &&
    !command.includes("--coverage");
  const counted = (command: string[], options?: Options): [command: string[], options: Options | undefined] => {
    if (!counts(command, options?.env)) return [command, options];
    const env = { ...(options?.env ?? inherited), ...ours };
    // A preload of the test's own may replace a source, of which the first that does so is the only one.
    const own = command.lastIndexOf("--preload");
    return own < 0
      ? [command, { ...options, env: { ...env, BUN_OPTIONS: `--preload=${preload}` } }]
      : [command.toSpliced(own + 2, 0, `--preload=${preload}`), { ...options, env }];
  };
  const counting = (plain: (...all: never[]) => unknown) => {
    const start = plain as (command: string[], options?: Options) => unknown;
    return (first: string[] | (Options & { cmd: string[] }), options?: Options) =>
      start(...(Array.isArray(first) ? counted(first, options) : counted(first.cmd, first)));
  };
  Object.assign(Bun, { spawn: counting(Bun.spawn), spawnSync: counting(Bun.spawnSync) });

  globalThis.Worker = class extends Worker {
    constructor(url: string | URL, options?: WorkerOptions) {
      super(url, { ...options, preload: [preload] });
    }
  };
}
