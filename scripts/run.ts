// How the scripts run other programs: their output passes through, and a failure ends the script with a sentence.

/** The repository's folder. */
export const root = `${import.meta.dir}/..`;

/** Prints one line of progress. On stderr, so that a script's own output stays clean. */
export function say(line: string): void {
  console.error(line);
}

/** Ends the script with a sentence that says what is wrong and what to do. */
export function stop(sentence: string): never {
  console.error(`\n${sentence}`);
  process.exit(1);
}

/** Runs a command, in the repository's folder by default, and gives its exit status. Its output passes through. */
export function run(command: string[], env: Record<string, string> = {}, cwd = root): number {
  const { exitCode } = Bun.spawnSync(command, {
    cwd,
    env: { ...process.env, ...env },
    stdout: "inherit",
    stderr: "inherit",
  });
  return exitCode;
}

/** What a command prints, or undefined where it can't be run or fails. */
export function output(command: string[]): string | undefined {
  try {
    const { exitCode, stdout } = Bun.spawnSync(command, { cwd: root, stderr: "ignore" });
    return exitCode === 0 ? stdout.toString().trim() : undefined;
  } catch {
    return undefined; // not on PATH
  }
}
