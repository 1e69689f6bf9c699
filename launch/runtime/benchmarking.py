"""Timing that holds on a shared machine: compilation apart, interleaved repetitions, medians, and the
device's own peak measured in the same process."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Work:
    """One measured thing, compiled and ready.

    Attributes:
      run: does one repetition and waits for its result.
      compile_seconds: XLA's compilation alone, without tracing.
      examples: done by one repetition.
      flops: of one repetition, 2 per multiply-add, by the case's formula.
    """

    run: Callable[[], Any]
    compile_seconds: float
    examples: int
    flops: float


def compiled(function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> tuple[Any, float]:
    """jit(function) for the shapes of `args` -> (executable, seconds XLA took)."""
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    start = time.perf_counter()
    executable = lowered.compile()
    return executable, time.perf_counter() - start


def measure(runs: dict[str, Callable[[], Any]], repeats: int, between: Callable[[], None]) -> dict[str, list]:
    """Seconds of every repetition, {name: [repeats]}.

    All run once unmeasured; then they take turns, repetition by repetition, each one first as often as
    the others, so that whatever else the machine does meets them alike.
    """
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    order = list(runs)
    for _ in range(repeats):
        between()
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
        order = order[1:] + order[:1]
    return times


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class Peak:
    """The best rate of a large matrix product seen so far: what this device does, when left alone, in
    this dtype. Call it now and then; a busy moment only fails to raise it."""

    def __init__(self, dtype: Any, size: int):
        self.flops = 0.0
        self._work = 2 * size**3
        self._x = jnp.ones((size, size), dtype)
        self._dot, _ = compiled(jnp.dot, self._x, self._x)
        self._dot(self._x, self._x).block_until_ready()

    def __call__(self) -> None:
        for _ in range(3):
            start = time.perf_counter()
            self._dot(self._x, self._x).block_until_ready()
            self.flops = max(self.flops, self._work / (time.perf_counter() - start))
