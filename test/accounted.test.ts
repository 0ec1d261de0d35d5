// What the collector is told of native memory: all that a program holds more of, and nothing of what it takes again.
import { expect, test } from "bun:test";
import { freedByHand, freedMost, toldOf } from "../src/accounted.ts";

/** As if nothing had been freed before. */
const forget = () => toldOf(freedMost);

test("of results that are disposed of one after the other it hears once", () => {
  forget();
  const told = Array.from({ length: 100 }, () => {
    const bytes = toldOf(1e8);
    freedByHand(1e8);
    return bytes;
  });
  expect(told).toEqual([1e8, ...Array(99).fill(0)]);
});

test("of what is only dropped it hears each time, and of what is larger by how much", () => {
  forget();
  expect([toldOf(1000), toldOf(1000)]).toEqual([1000, 1000]);
  freedByHand(1000);
  expect([toldOf(1500), toldOf(10)]).toEqual([500, 10]);
});

test("however much was freed, what is dropped afterwards is told of from a limit on", () => {
  for (let i = 0; i < 100; i++) freedByHand(1e9);
  let untold = 0;
  while (toldOf(1e6) === 0) untold += 1e6;
  expect(untold).toBeLessThanOrEqual(freedMost);
});
