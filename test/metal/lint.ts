// Owns the lint: whether a Metal source holds together as C++14 when its address spaces are real.

import { translate } from "../../scripts/msl/translate.ts";
import { typeCheck } from "./toolchain.ts";

/**
 * Type-checks a source with `device`, `constant` and `threadgroup` as clang address spaces, which the simulator erases.
 *
 * @throws TranslateError with `file:line` for a pointer that changes its address space, and for what C++14 lacks
 */
export function lint(source: string, name: string): void {
  typeCheck(translate(source, name, { target: "lint" }).cpp, name, "c++14");
}
