// The property that every public function answers garbage in its caller's words: a BnbError that names the argument.
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Callable, callables } from "./arguments/callables.ts";
import { misuse } from "./arguments/misuse.ts";
import { isExempt, recipeOf, run, stale } from "./arguments/recipes.ts";

/** Which take longer. */
const readsFiles = ({ exported }: Callable) => exported.startsWith("checkpoint.");

const covered = callables.filter((callable) => !isExempt(callable));

test("the table has a call of every public function, and of nothing else", () => {
  expect(covered.filter((callable) => !recipeOf(callable)).map(({ name }) => name)).toEqual([]);
  expect(stale).toEqual([]);
});

const withRecipe = covered.flatMap((callable) => (recipeOf(callable) ? [[callable.name, callable] as const] : []));

describe("a call that is right succeeds", () => {
  test.each(withRecipe)("%s", async (_, callable) => {
    await run(callable, recipeOf(callable)!());
  });
});

describe("garbage in the place of one argument", () => {
  test.each(withRecipe)("%s", async (_, callable: Callable) => {
    await fc.assert(misuse(callable, recipeOf(callable)!), { numRuns: readsFiles(callable) ? 60 : 200, seed: 16 });
  });
});
