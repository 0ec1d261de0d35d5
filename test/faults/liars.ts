// The fuzzing of the public functions, in a process of its own: `bun liars.ts <note> <seed> <seconds> [rounds]`, with
// BNB_LIBRARY naming the fault harness's library. Each is given arrays, proxies, clones and getters that lie in the
// place of each argument; an answer that is no BnbError of the argument's name ends it. Prints JSON with what was
// tried.
import { writeFileSync } from "node:fs";
import fc from "fast-check";
import { callables } from "../arguments/callables.ts";
import { misuse } from "../arguments/misuse.ts";
import { isExempt, recipeOf } from "../arguments/recipes.ts";

const [note, seedText, secondsText, roundsText] = process.argv.slice(2) as [string, string, string, string?];
const until = performance.now() + 1000 * Number(secondsText);
const rounds = Number(roundsText ?? Number.POSITIVE_INFINITY);
const numRuns = 25;

const tried = callables.filter((callable) => !isExempt(callable));
let calls = 0;
for (let round = 0; round < rounds && performance.now() < until; round++)
  for (const callable of tried) {
    const seed = Number(seedText) + round;
    writeFileSync(note, `seed ${seed}: ${callable.name}`);
    await fc.assert(misuse(callable, recipeOf(callable)!), { numRuns, seed });
    calls += numRuns;
  }
console.log(JSON.stringify({ functions: tried.length, calls }));
