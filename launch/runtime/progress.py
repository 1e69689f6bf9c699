"""How far a run is, honestly: a live bar on a terminal, plain lines elsewhere.

The rate is of recent steps alone: compiling, checkpoints, panels and evaluation are told apart.
"""

import collections
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich import progress as bars
from rich.console import Console

RECENT = 200  # steps that the rate is taken over
LINE_SECONDS = 10.0  # between two lines of a log


def duration(seconds: float) -> str:
    """E.g. "42 s", "3 min 05 s", "2 h 07 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Progress of a run from `start_step` to `total_steps`; a context manager."""

    def __init__(self, total_steps: int, batch_size: int, start_step: int = 0):
        self._total, self._batch_size, self._step = total_steps, batch_size, start_step
        self._start_step = start_step
        self._times: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._paused = collections.Counter()
        self._compile = 0.0
        self._last = self._last_line = time.perf_counter()
        self._shown: Mapping[str, float] = {}
        console = Console(stderr=True)
        self._live = console.is_terminal
        self._bar = bars.Progress(
            bars.TextColumn("{task.percentage:>3.0f}%"),
            bars.BarColumn(),
            bars.TextColumn("{task.fields[text]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=start_step, text="compiling")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        if self._live:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def compiled(self, seconds: float) -> None:
        """The step was compiled in `seconds`; the rate starts now."""
        self._compile += seconds
        self._last = time.perf_counter()
        self.note(f"compiled in {seconds:.1f} s")

    def step(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """`step` steps are done; `metrics` where they were just read."""
        now = time.perf_counter()
        self._times.append(now - self._last)
        self._last, self._step, self._shown = now, step, metrics or self._shown
        if self._live:
            self._bar.update(self._task, completed=step, text=self._text())
        elif now - self._last_line >= LINE_SECONDS or step == self._total:
            self._last_line = now
            self.note(f"{100 * step / self._total:3.0f}% {self._text()}")

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Time that belongs to no step."""
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self._paused[name] += seconds
        self._last += seconds

    def rates(self) -> dict[str, float]:
        """steps_per_second, examples_per_second (over recent steps), compile_seconds, paused_seconds."""
        mean = statistics.fmean(self._times) if self._times else float("inf")
        return {
            "steps_per_second": 1 / mean,
            "examples_per_second": self._batch_size / mean,
            "compile_seconds": self._compile,
            "paused_seconds": sum(self._paused.values()),
        }

    def _text(self) -> str:
        rates = self.rates()
        left = (self._total - self._step) / rates["steps_per_second"]
        # what was paused so far will be paused again at the same pace
        done = max(self._step - self._start_step, 1)
        left += rates["paused_seconds"] * (self._total - self._step) / done
        loss = f"loss {self._shown['loss']:.4f}  " if "loss" in self._shown else ""
        return (
            f"{self._step}/{self._total}  {loss}{rates['steps_per_second']:.2f} steps/s  "
            f"{rates['examples_per_second']:.0f} examples/s  {duration(left)} left"
        )
