"""Owns the Python side of the benchmark's protocol: one peer in a process of its own, told by lines of JSON what to time.

    python worker.py MODULE THREADS

`prepare` makes a contestant of a case and checks what it computes, `measure` times it, `release` forgets it.
A module has `describe()` and `make(case, variant, threads)`, which returns a Contestant or raises Skip.
"""
import functools
import importlib
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Callable

import numpy as np

# Rows and columns of a product that are held to float64.
CHECKED_ROWS, CHECKED_COLUMNS = 8, 64

folder = os.environ["BNB_PEERS_INPUTS"]


class Skip(Exception):
    """This peer can't run this case, for a reason that is worth a sentence."""


@dataclass
class Contestant:
    """What to time, and the error of what it computes: of the arithmetic where that can be told apart, else of all."""

    run: Callable[[], object]
    error: float


@functools.cache
def load(name, shape):
    """An input that the driver wrote: float32, row-major."""
    values = np.fromfile(os.path.join(folder, f"{name}.f32"), dtype=np.float32, count=int(np.prod(shape)))
    values.flags.writeable = False
    return values.reshape(shape)


def weight(case):
    """The weight [n, k] of a case."""
    return load("w", (case["n"], case["k"]))


def activations(case):
    """x [m, k]; with outlier columns for LLM.int8()."""
    return load("x_outliers" if case["operation"] == "int8" else "x", (case["m"], case["k"]))


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def checked_rows(case):
    """The rows of the weight whose products are checked: those that `product_error` wants to have dequantised."""
    return weight(case)[:CHECKED_COLUMNS]


def product_error(case, y, dequantized):
    """The error of y [m, n] against float64 products with what the peer's own codes of `checked_rows` stand for."""
    x = activations(case)[:CHECKED_ROWS].astype(np.float64)
    rows = np.asarray(dequantized, np.float64)
    return relative(np.asarray(y, np.float32).reshape(case["m"], case["n"])[:CHECKED_ROWS, :CHECKED_COLUMNS], x @ rows.T)


def measure(run, milliseconds):
    """Times of a run in milliseconds, as many as fit; runs of a few microseconds are timed in batches."""
    clock = time.perf_counter_ns
    end = clock() + int(milliseconds * 1e6)

    def timed(batch):
        began = clock()
        for _ in range(batch):
            run()
        return (clock() - began) / batch / 1e6

    first = timed(1)  # it finds caches cold: counted only where there is no time for another
    batch = max(1, int(0.1 / first))
    samples = []
    while clock() < end:
        samples.append(timed(batch))
    return samples or [first]


def main():
    name, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints must not get between the answers
    os.dup2(2, 1)

    def answer(**fields):
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        module = importlib.import_module(name)
        answer(description=module.describe())
    except Exception as error:  # reported to the driver, which skips the peer and says so
        return answer(skip=f"{type(error).__name__}: {str(error).splitlines()[0]}")

    contestants = {}
    for line in sys.stdin:
        command = json.loads(line)
        key = command["key"]
        if command["do"] == "prepare":
            try:
                contestants[key] = module.make(command["case"], command["variant"], threads)
                answer(error=contestants[key].error)
            except Skip as reason:
                answer(skip=str(reason))
            except Exception as error:  # a library's own refusal: shown in the report, with its class
                answer(skip=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        elif command["do"] == "measure":
            answer(samples=measure(contestants[key].run, command["milliseconds"]))
        else:
            contestants.pop(key, None)
            answer()


if __name__ == "__main__":
    sys.modules["worker"] = sys.modules["__main__"]
    main()
