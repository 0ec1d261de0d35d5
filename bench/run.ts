// Owns `bun run bench`: the command line's `bench`, under the name that a clone gives it.
process.argv.splice(2, 0, "bench");
await import("../src/cli/main.ts");

export {};
