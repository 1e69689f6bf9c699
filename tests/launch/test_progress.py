import os
import pty
import subprocess
import sys

import pytest

from launch.runtime import progress
from launch.runtime.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def run(clock, bar, steps, seconds=0.1, log_steps=5):
    """Dispatches at once, and waits for the device where metrics are read, as the trainer does."""
    for step in steps:
        logged = None
        if step % log_steps == 0:
            clock.now += seconds * log_steps
            logged = {"loss": 1 / step}
        bar.step(step, logged)


def test_rate_leaves_out_compiling_and_pauses(clock):
    with Progress(100, batch_size=8) as bar:
        clock.now += 30
        bar.compiled(30)
        run(clock, bar, range(1, 21))
        with bar.pause("evaluate"):
            clock.now += 500
        run(clock, bar, range(21, 41))
        rates = bar.rates()
    assert rates["steps_per_second"] == pytest.approx(10)
    assert rates["examples_per_second"] == pytest.approx(80)
    assert rates["compile_seconds"] == 30
    assert rates["paused_seconds"] == pytest.approx(500)


def test_one_slow_stretch_does_not_move_the_rate(clock):
    with Progress(1000, batch_size=1) as bar:
        run(clock, bar, range(1, 51))
        run(clock, bar, range(51, 56), seconds=60)
        run(clock, bar, range(56, 101))
        assert bar.rates()["steps_per_second"] == pytest.approx(10)


def test_rate_follows_a_lasting_change(clock):
    with Progress(1000, batch_size=1) as bar:
        run(clock, bar, range(1, 101), seconds=0.1)
        run(clock, bar, range(101, 301), seconds=0.4)
        assert bar.rates()["steps_per_second"] == pytest.approx(2.5)


def test_time_left_counts_pauses_to_come(clock, capsys):
    with Progress(100, batch_size=1) as bar:
        run(clock, bar, range(1, 51))
        with bar.pause("evaluate"):
            clock.now += 60
        bar.step(51)
    # 49 steps at 0.1 s, and 60 s of pauses per 51 steps
    assert duration(49 * 0.1 + 49 * 60 / 51) + " left" in capsys.readouterr().err.splitlines()[-1]


def test_resumed_run_counts_from_where_it_was(clock, capsys):
    with Progress(1000, batch_size=2, start_step=900) as bar:
        run(clock, bar, range(901, 951))
        assert bar.rates()["steps_per_second"] == pytest.approx(10)
    first = capsys.readouterr().err.splitlines()[0]
    assert "905/1000" in first and "10 s left" in first


def test_log_lines_are_plain_and_few(clock, capsys):
    with Progress(1000, batch_size=2) as bar:
        bar.compiled(1.0)
        run(clock, bar, range(1, 1001))  # 100 s
        bar.note("exported")
    out, err = capsys.readouterr()
    assert not out
    assert 10 <= len(err.splitlines()) <= 14, err
    assert all(c.isprintable() or c == "\n" for c in err)
    assert "1000/1000" in err.splitlines()[-2] and "100%" in err.splitlines()[-2]
    assert err.splitlines()[-1] == "exported"


def test_nothing_left_to_do_is_no_error(clock):
    with Progress(10, batch_size=2, start_step=10) as bar:
        bar.compiled(1.0)
    assert bar.rates()["steps_per_second"] == 0


def test_a_failing_pause_is_still_counted(clock):
    bar = Progress(10, batch_size=2)
    with pytest.raises(RuntimeError), bar.pause("evaluate"):
        clock.now += 7
        raise RuntimeError
    assert bar.rates()["paused_seconds"] == 7


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273600, "3 d 04 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_live_bar_on_a_terminal():
    code = (
        "from launch.runtime.progress import Progress\n"
        "with Progress(20, 4) as bar:\n"
        "    for step in range(1, 21): bar.step(step, {'loss': 0.25})\n"
        "    bar.note('a note')\n"
    )
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    done = subprocess.run([sys.executable, "-c", code], stderr=child, env=environment, timeout=60)
    os.close(child)
    shown = os.read(parent, 100_000).decode()
    os.close(parent)
    assert done.returncode == 0
    assert "100%" in shown and "20/20" in shown and "loss 0.25" in shown and "a note" in shown
    assert "\x1b[" in shown


def test_a_later_compilation_is_left_out_of_its_stretch_alone(clock):
    with Progress(100, batch_size=8) as bar:
        clock.now += 9
        bar.compiled(9)
        run(clock, bar, range(1, 4))
        clock.now += 0.3 + 5
        bar.compiled(5)
        clock.now += 0.2
        bar.step(5, {"loss": 1.0})
        assert list(bar._step_seconds) == [pytest.approx(0.5 / 5)]
