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

RECENT = 25  # stretches between two readings of the metrics that the rate is the median of
LINE_SECONDS = 10.0  # between two lines of a log


def duration(seconds: float) -> str:
    """E.g. "42 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24:02d} h"


def number(value: float) -> str:
    """Three digits that count, never an exponent for a rate one meets: "0.0312", "4.56", "1,230"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Progress:
    """Progress of a run from `start_step` to `total_steps`; a context manager.

    Steps are dispatched ahead of the device, so one step's time on the host says nothing. Only where
    metrics were read has the device caught up: times are taken from one such step to the next. A `silent`
    one only measures.
    """

    def __init__(self, total_steps: int, batch_size: int, start_step: int = 0, silent: bool = False):
        self._silent = silent
        self._total, self._batch_size = total_steps, batch_size
        self._step = self._start_step = self._synced_step = start_step
        self._synced_at = time.perf_counter()
        self._step_seconds: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._compile = 0.0
        self._paused: collections.Counter[str] = collections.Counter()
        self._last_line = -LINE_SECONDS
        self._loss = ""
        console = Console(stderr=True)
        self._live = not silent and sys.stderr.isatty() and not console.is_dumb_terminal
        self._bar = bars.Progress(
            bars.TextColumn("{task.percentage:>3.0f}%"),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.fields[text]}"),
            console=console,
            disable=not self._live,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total_steps, completed=start_step, text="compiling")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line of its own."""
        if self._silent:
            return
        if self._live:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def compiled(self, seconds: float) -> None:
        """A step was compiled in `seconds`, which the rate leaves out; with the first it begins."""
        self._compile += seconds
        now = time.perf_counter()
        first = self._step == self._start_step
        self._synced_at = now if first else min(self._synced_at + seconds, now)
        self.note(f"compiled in {seconds:.1f} s")

    def step(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """`step` steps were dispatched; with `metrics` just read, they are done."""
        now = time.perf_counter()
        self._step = step
        if metrics is not None:
            if step > self._synced_step:
                self._step_seconds.append((now - self._synced_at) / (step - self._synced_step))
            self._synced_at, self._synced_step = now, step
            if "loss" in metrics:
                self._loss = f"loss {metrics['loss']:.4g}"
        if self._live:
            self._bar.update(self._task, completed=step, text=self._text())
        elif now - self._last_line >= LINE_SECONDS and self._step_seconds or step == self._total:
            self._last_line = now
            percent = 100 * step / max(self._total, 1)
            self.note(f"{percent:3.0f}%  {step}/{self._total}  {self._text()}")

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Time that belongs to no step: evaluating, saving, drawing."""
        started = time.perf_counter()
        if self._live:
            self._bar.update(self._task, text=name)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._paused[name] += seconds
            self._synced_at += seconds

    def rates(self) -> dict[str, float]:
        """steps_per_second, examples_per_second (of recent steps; 0 before the first reading),
        compile_seconds, paused_seconds."""
        per_second = 1 / statistics.median(self._step_seconds) if self._step_seconds else 0.0
        return {
            "steps_per_second": per_second,
            "examples_per_second": self._batch_size * per_second,
            "compile_seconds": self._compile,
            "paused_seconds": sum(self._paused.values()),
        }

    def _seconds_left(self, steps_per_second: float) -> float:
        """Steps at the recent rate, and pauses as often and as long as so far."""
        done = max(self._step - self._start_step, 1)
        pauses = sum(self._paused.values()) / done
        return (self._total - self._step) * (1 / steps_per_second + pauses)

    def _text(self) -> str:
        """What matters most comes first: a narrow terminal cuts the end off."""
        rates = self.rates()
        parts = [f"{self._step}/{self._total}"] if self._live else []
        if self._step_seconds:
            parts.append(f"{duration(self._seconds_left(rates['steps_per_second']))} left")
            parts.append(self._loss)
            parts.append(f"{number(rates['steps_per_second'])} steps/s")
            parts.append(f"{number(rates['examples_per_second'])} examples/s")
        return "  ".join(filter(None, parts))
