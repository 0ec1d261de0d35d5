// What `bun run bench:models` and its workers say to each other: one JSON value a line, an answer to each command.

/** A prompt to read, and how many tokens to write after it, each the likeliest. */
export interface ModelCommand {
  readonly prompt: readonly number[];
  readonly tokens: number;
}

/** Seconds by the clock and of the processor. */
export interface Took {
  readonly wall: number;
  readonly cpu: number;
}

/** The first answer, unasked, has a description; all others times. */
export interface ModelAnswer {
  readonly description?: string;
  readonly prefill?: Took;
  readonly decode?: Took;
  readonly ids?: readonly number[];
  /** The most memory that the process has had, in bytes; 0 where the system does not tell. */
  readonly peak: number;
}
