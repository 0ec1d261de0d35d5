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
  const ours = {
    BUN_OPTIONS: `--preload=${preload}`,
    COUNTERS_FOLDER: countersFolder(),
    [variable]: statementsFolder(),
  };
  const inherited = { ...process.env }; // what Bun hands on by itself: the environment that this process began with

  // Executables are left alone: what is compiled into one counts nothing, and its environment may be what is tested.
  // So is what has a preload of its own, which may replace a source too (the first that does so is the only one), and
  // what counts by itself.
  const counts = (command: readonly string[], env: Options["env"] = {}) =>
    [...command, ...Object.values(env)].some((word = "") => word.includes(process.execPath) || bun.test(word)) &&
    !command.some((word) => /^--(preload|coverage)/.test(word));
  const counted = <T extends Options>(command: readonly string[], options: T | undefined): T =>
    (counts(command, options?.env) ? { ...options, env: { ...(options?.env ?? inherited), ...ours } } : options) as T;
  const counting = (plain: (...all: never[]) => unknown) => {
    const start = plain as (...all: unknown[]) => unknown;
    return (first: string[] | (Options & { cmd: string[] }), options?: Options) =>
      Array.isArray(first) ? start(first, counted(first, options)) : start(counted(first.cmd, first));
  };
  Object.assign(Bun, { spawn: counting(Bun.spawn), spawnSync: counting(Bun.spawnSync) });

  globalThis.Worker = class extends Worker {
    constructor(url: string | URL, options?: WorkerOptions) {
      super(url, { ...options, preload: [preload] });
    }
  };
}
